"""Parameters, arithmetic and kept values of SAM's encoder in 3D with its generator and decoder. No torch.

Counts follow the network as it is built in `networks/adapter3d.py` (AutoProSAM, arXiv 2308.14936); a test
compares them with the network's own parameters, with counted arithmetic, and with the tensors that autograd
saves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samunet.networks.sam.variants import KERNEL_WIDTH, SamVariant
from samunet.networks.volume_shape import REFINED_WIDTH, WIDTH_FACTORS, level_blocks, pooling_plan
from samunet.planning.memory import LOGIT_COPIES

if TYPE_CHECKING:
    from samunet.planning.methods.adapter3d import AdapterConfig

LEAST_GENERATOR_WIDTH = 8
KERNEL = 27


@dataclass(frozen=True, kw_only=True)
class VolumeWidths:
    """Channels inside an adapter, of the feature maps, of the decoder, and of the generator's first level."""

    adapter: int
    neck: int
    decoder: int
    generator: int


def volume_widths(variant: SamVariant, config: AdapterConfig) -> VolumeWidths:
    """The user's widths; by default the paper's, scaled down with a small encoder."""
    neck = config.neck_width or (variant.prompt_dim // 2 if variant.from_scratch else variant.prompt_dim)
    return VolumeWidths(
        adapter=config.adapter_width or variant.width // 2,
        neck=neck,
        decoder=config.decoder_width or neck // 2,
        generator=config.generator_width or max(LEAST_GENERATOR_WIDTH, neck // 16),
    )


@dataclass(frozen=True, kw_only=True)
class VolumeInput:
    """What the cost depends on; lengths in voxels (z, y, x).

    Attributes:
        checkpointed: blocks are computed again in the backward pass.
    """

    variant: SamVariant
    config: AdapterConfig
    patch_size: tuple[int, ...]
    num_channels: int
    num_outputs: int
    checkpointed: bool

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(n // t for n, t in zip(self.patch_size, self.config.token_size))

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def voxels(self) -> int:
        return math.prod(self.patch_size)

    @property
    def window(self) -> tuple[int, ...]:
        return tuple(math.ceil(n / math.ceil(n / self.config.window)) for n in self.grid)

    @property
    def padded_tokens(self) -> int:
        return math.prod(math.ceil(n / w) * w for n, w in zip(self.grid, self.window))

    @property
    def decoded_voxels(self) -> int:
        """Cells of the decoder's aggregate."""
        return math.prod(n * (2 if t > 1 else 1) for n, t in zip(self.grid, self.config.token_size))


@dataclass(frozen=True, kw_only=True)
class VolumeCost:
    """Cost of one sample.

    Attributes:
        parameters: all; `trainable` those that are trained.
        convolutions / transformer: multiply-adds of a forward pass by kind of work.
        values: kept for the backward pass.
        again: share of the transformer's forward work that checkpointing repeats (1 or 0).
    """

    parameters: int
    trainable: int
    convolutions: float
    transformer: float
    values: float
    again: float


def volume_cost(place: VolumeInput) -> VolumeCost:
    """Cost of `3d_adapter` on a patch."""
    widths = volume_widths(place.variant, place.config)
    encoder, added = _encoder_parameters(place, widths)
    others = _generator(place, widths)[0] + _decoder(place, widths)[0]
    frozen = place.config.encoder == "frozen"
    block = _block_values(place, widths)
    depth, width, tokens = place.variant.depth, place.variant.width, place.tokens
    behind = _neck_values(place, widths) + _generator(place, widths)[2] + _decoder(place, widths)[2]
    behind += LOGIT_COPIES * place.num_outputs * place.voxels
    # A block is computed again when what lies behind the blocks is free already.
    values = depth * tokens * width + max(block, behind) if place.checkpointed else depth * block + behind
    return VolumeCost(
        parameters=encoder + added + others,
        trainable=added + others if frozen else encoder + added + others,
        convolutions=_necks_work(place, widths) + _generator(place, widths)[1] + _decoder(place, widths)[1],
        transformer=_blocks_work(place, widths),
        values=float(values),
        again=float(place.checkpointed),
    )


def _encoder_parameters(place: VolumeInput, widths: VolumeWidths) -> tuple[int, int]:
    """Parameters that SAM's weights fill and that stay frozen with them; and those that are always
    trained."""
    variant, inside = place.variant, widths.adapter
    width, head = variant.width, variant.width // variant.heads
    own = (3 * 16**2 + 1) * width + variant.native_grid**2 * width
    added = place.grid[0] * width + 17 * width
    for block in range(variant.depth):
        side = variant.native_grid if block in variant.global_blocks else variant.window
        own += 12 * width**2 + 9 * width + 2 * (2 * side - 1) * head
        added += 2 * width * inside + (KERNEL + 2) * inside + width + 4 * width + (2 * side - 1) * head
    necks = width * widths.neck + KERNEL * widths.neck**2 + 4 * widths.neck
    return own, added + num_levels(variant) * necks


def num_levels(variant: SamVariant) -> int:
    """Feature maps that the encoder hands on."""
    return len(level_blocks(variant.depth))


def _blocks_work(place: VolumeInput, widths: VolumeWidths) -> float:
    """Front end, adapters, attention and MLP."""
    variant, tokens, padded = place.variant, place.tokens, place.padded_tokens
    width, window = variant.width, place.window
    block = tokens * (8 * width**2 + 2 * width * widths.adapter + KERNEL * widths.adapter)
    block += padded * (4 * width**2 + sum(window) * width)
    block += padded * math.prod(window) * 2 * variant.heads * _wide_head(place)
    front = tokens * width * 3 * math.prod(t + 2 for t in place.config.token_size)
    return float(variant.depth * block + front)


def _wide_head(place: VolumeInput) -> int:
    """Features of a query or key with its relative positions, as the kernels want them."""
    features = place.variant.width // place.variant.heads + sum(place.window)
    return math.ceil(features / KERNEL_WIDTH) * KERNEL_WIDTH


def _block_values(place: VolumeInput, widths: VolumeWidths) -> float:
    """Adapter, inputs of both norms and of the MLP's activation; queries, and wide queries, keys, values,
    result.

    Layers that are trained keep their inputs too.
    """
    width, wide = place.variant.width, place.variant.heads * _wide_head(place)
    by_token, by_padded = 7 * width + 2 * widths.adapter, width + 4 * wide
    if place.config.encoder == "full":
        by_token, by_padded = by_token + 5 * width, by_padded + 4 * width
    return float(place.tokens * by_token + place.padded_tokens * by_padded)


def _necks_work(place: VolumeInput, widths: VolumeWidths) -> float:
    work = place.variant.width * widths.neck + KERNEL * widths.neck**2
    return float(num_levels(place.variant) * place.tokens * work)


def _neck_values(place: VolumeInput, widths: VolumeWidths) -> float:
    return float(num_levels(place.variant) * place.tokens * (place.variant.width + 3 * widths.neck))


def _prompted(place: VolumeInput) -> int:
    """Number of generators."""
    config = place.config
    if not config.generator:
        return 0
    return num_levels(place.variant) if config.apg_level == "all" and config.aggregation else 1


def _generator(place: VolumeInput, widths: VolumeWidths) -> tuple[int, float, float]:
    """Parameters, multiply-adds and kept values of all generators."""
    cells, size = [place.tokens], list(place.grid)
    for factors in pooling_plan(place.grid):
        size = [n // factor for n, factor in zip(size, factors)]
        cells.append(math.prod(size))
    channels = [widths.generator * factor for factor in WIDTH_FACTORS[: len(cells)]]
    pairs = list(zip(cells, [widths.neck, *channels[:-1]], channels))
    pairs += [(cells[i], channels[i + 1] + channels[i], channels[i]) for i in range(len(cells) - 1)]
    weights = [KERNEL * (inputs + outputs) * outputs for _, inputs, outputs in pairs]
    last = channels[0] * widths.neck
    work = sum(n * weight for (n, _, _), weight in zip(pairs, weights)) + cells[0] * last
    values = sum(n * (inputs + 4 * outputs) for n, inputs, outputs in pairs)
    count = _prompted(place)
    return count * (sum(weights) + last + widths.neck), float(count * work), float(count * values)


def _decoder(place: VolumeInput, widths: VolumeWidths) -> tuple[int, float, float]:
    """Parameters, multiply-adds and kept values of the decoder."""
    width, outputs, channels = widths.decoder, place.num_outputs, place.num_channels
    levels = num_levels(place.variant) if place.config.aggregation else 1
    level = KERNEL * (widths.neck * width + width**2)
    joined = levels * width + channels
    last = KERNEL * (joined * width + width * outputs)
    parameters, work = levels * level + last, levels * level * place.tokens + last * place.decoded_voxels
    values = levels * place.tokens * (widths.neck + 4 * width) + place.decoded_voxels * (joined + 2 * width)
    if place.config.refine:
        reduced = width * REFINED_WIDTH
        mixed = KERNEL * REFINED_WIDTH * (REFINED_WIDTH + channels + outputs)
        parameters += reduced + REFINED_WIDTH + mixed
        work += place.decoded_voxels * reduced + place.voxels * mixed
        values += place.voxels * (3 * REFINED_WIDTH + channels)
    return parameters, float(work), float(values)
