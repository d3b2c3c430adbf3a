"""Parameters, arithmetic and kept values of the heads on a SAM encoder. No torch.

Counts follow the heads of AutoSAM (arXiv 2306.13731) as they are built in `networks`; a test compares them.
Multiply-adds are of one forward pass of one sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from samunet.networks.cnn_stages import cnn_stages
from samunet.networks.sam.variants import PAPER_LINEAR_WIDTH, PATCH, STRIDE, SamVariant, finest_stride
from samunet.planning.sam_costs import PartCost

DECODER_VALUES = 25
"""Values kept per image token, channel and class of SAM's mask decoder (measured on meta tensors)."""
TRANSFORMER_LAYERS = 2


@dataclass(frozen=True, kw_only=True)
class HeadInput:
    """What a head stands on.

    Attributes:
        exclusive: the first output is the background; regions have none.
        detail: the head also sees the picture, as it does on a small encoder that is trained along.
        normalised: instance norms in the CNN head (not in the paper's code).
    """

    variant: SamVariant
    input_size: int
    patch_size: tuple[int, ...]
    num_outputs: int
    detail: bool
    normalised: bool = True
    exclusive: bool = True

    @property
    def foreground(self) -> int:
        """Outputs besides the background's."""
        return self.num_outputs - self.exclusive

    @property
    def tokens(self) -> int:
        return (self.input_size // PATCH) ** 2

    def pixels(self, stride: int) -> int:
        """Cells of a map with that many input pixels a cell along each side."""
        return (self.input_size // stride) ** 2


@dataclass(frozen=True)
class _Layer:
    """A convolution: cells of its output, taps each reads, kernels held, other parameters a channel."""

    cells: int
    inputs: int
    outputs: int
    taps: int
    kernels: int
    affine: int
    kept: int


def linear_head_cost(place: HeadInput, width: int = PAPER_LINEAR_WIDTH) -> PartCost:
    """Two transposed convolutions and two 1x1 convolutions; logits at a quarter of the input size."""
    half = width // 2
    eighth, quarter = 4 * place.tokens, 16 * place.tokens
    return _total(
        [
            # Layer norm and GELU keep several copies.
            _Layer(eighth, place.variant.prompt_dim, width, 1, 4, 3, 4),
            _Layer(quarter, width, half, 1, 4, 1, 2),
            _Layer(quarter, half, half, 1, 1, 1, 2),
            _Layer(quarter, half, place.num_outputs, 1, 1, 1, 1),
        ]
    )


def cnn_head_cost(place: HeadInput, width: int, depth: int = 4) -> PartCost:
    """UNet-like decoder: `depth` stages that halve the width, the later ones double the resolution."""
    stages = cnn_stages(
        width, depth, finest_stride(place.input_size, place.patch_size) if place.detail else None
    )
    cells, bottom = place.tokens, stages.bottom
    layers = [_plain(cells, place.variant.prompt_dim, bottom, 1), _plain(cells, bottom, bottom, 1)]
    for channels in stages.keeping:
        layers += [_convolution(place, cells, channels, channels)]
        layers += [_convolution(place, cells, channels, channels // 2)]
    if stages.finest is not None:
        layers += _detail(place, stages.after[::-1], stages.finest)
    for inside, channels, outputs in zip(stages.joined, stages.before, stages.after):
        layers += [
            _convolution(place, cells, inside, channels),
            _convolution(place, cells, channels, channels),
        ]
        cells *= 4
        # Joined with the detail, the map is kept a second time.
        layers.append(_Layer(cells, channels, outputs, 1, 4, 1, 1 + place.detail))
    layers.append(_convolution(place, cells, stages.joined[-1], width))
    layers.append(_plain(cells, width, place.num_outputs, 1))
    return _total(layers)


def autosam_head_cost(place: HeadInput, width: int) -> PartCost:
    """SAM's mask decoder on a copy of the embedding per class: transformer, upscaling, hypernetwork."""
    inner, quarter, eighth = width // 2, width // 4, width // 8
    tokens, outputs = place.tokens, place.num_outputs
    per_class = (2 * TRANSFORMER_LAYERS + 1) * 2 * tokens * width * inner
    per_class += 4 * tokens * width * quarter + 16 * tokens * quarter * eighth
    values = float(outputs * DECODER_VALUES * tokens * width)
    decoder = PartCost(
        parameters=_decoder_parameters(place.variant, width, outputs),
        multiply_adds=float(outputs * per_class),
        values=values,
        passing_values=values / 4,
    )
    if not place.detail:
        return decoder
    detail = _total(
        [
            *_detail(place, (eighth, quarter), STRIDE),
            _plain(place.pixels(STRIDE), eighth, eighth, 1),
            _plain(place.pixels(2 * STRIDE), quarter, quarter, 1),
        ]
    )
    return PartCost(
        parameters=decoder.parameters + detail.parameters,
        multiply_adds=decoder.multiply_adds + detail.multiply_adds,
        values=decoder.values + detail.values,
        passing_values=max(decoder.passing_values, detail.passing_values),
    )


def _decoder_parameters(variant: SamVariant, width: int, outputs: int) -> int:
    inner, quarter, eighth, mlp = width // 2, width // 4, width // 8, variant.decoder_mlp
    own = 4 * (width**2 + width)
    crossing = 4 * width * inner + 3 * inner + width
    layer = own + 2 * crossing + 2 * width * mlp + mlp + width + 4 * 2 * width
    transformer = TRANSFORMER_LAYERS * layer + crossing + 2 * width
    upscaling = 4 * width * quarter + 3 * quarter + 4 * quarter * eighth + eighth
    hypernetwork = 2 * (width**2 + width) + width * eighth + eighth
    projection = 0 if width == variant.prompt_dim else variant.prompt_dim * width + width
    return transformer + upscaling + hypernetwork + projection + (2 * outputs + 1) * width


def _detail(place: HeadInput, widths: Sequence[int], finest: int) -> list[_Layer]:
    """The convolutional pyramid over the picture: two 3x3 convolutions a level, finest level first."""
    layers, inputs = [], 3
    for level, width in enumerate(widths):
        cells = place.pixels(finest * 2**level)
        layers += [
            _convolution(place, cells, inputs, width),
            _convolution(place, cells, width, width, extra=1),
        ]
        inputs = width
    return layers


def _convolution(place: HeadInput, cells: int, inputs: int, outputs: int, extra: int = 0) -> _Layer:
    """3x3 convolution with norm and activation (or activation alone)."""
    norm = int(place.normalised)
    return _Layer(cells, inputs, outputs, 9, 9, 1 + norm, 1 + norm + extra)


def _plain(cells: int, inputs: int, outputs: int, taps: int) -> _Layer:
    return _Layer(cells, inputs, outputs, taps, taps, 1, 1)


def _total(layers: Iterable[_Layer]) -> PartCost:
    layers = list(layers)
    return PartCost(
        parameters=sum(n.inputs * n.outputs * n.kernels + n.affine * n.outputs for n in layers),
        multiply_adds=float(sum(n.cells * n.inputs * n.outputs * n.taps for n in layers)),
        values=float(sum(n.cells * n.outputs * n.kept for n in layers)),
        passing_values=float(2 * max(n.cells * n.outputs for n in layers)),
    )
