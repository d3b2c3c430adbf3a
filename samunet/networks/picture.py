"""From stored intensities to the picture that a SAM encoder sees, and its logits back to the slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from samunet.errors import SamunetError
from samunet.networks.full_precision import full_precision
from samunet.networks.sam.variants import PIXEL_MEAN, PIXEL_STD

_ROUNDING = 1 + 1e-9
"""Keeps a scale factor that should give n.0 pixels from giving n - 1."""


@dataclass(frozen=True, kw_only=True)
class SliceSettings:
    """What a 2D SAM network is built from besides its head.

    Attributes:
        variant: SAM encoder, a key of `VARIANTS`.
        input_size: side in pixels of the square that the encoder sees.
        patch_size: pixels (height, width) of the slices that the network is made for; others work too.
        num_channels: image channels of one slice; `num_outputs` channels of the logits.
        exclusive: the outputs are exclusive classes, the first of them the background.
        display_window: per channel, the stored intensities (low, high) that become 0 and 255.
        channel_map: `fixed`, or a trainable 1x1 `stem` that starts as the fixed map.
        slice_context: neighbours on each side that are given too. The network's input then has
            num_channels * (2 * slice_context + 1) channels: for each image channel its slices in ascending
            order, which is (C, slices, H, W) reshaped.
        frozen: the encoder is not trained.
        paper_compat: as the public AutoSAM code: slices stretched to the square, each scaled to 0..1 by its
            own minimum and maximum, without SAM's mean and deviation.
        checkpointing: recompute the encoder's activations in the backward pass.
    """

    variant: str
    input_size: int
    patch_size: tuple[int, int]
    num_channels: int
    num_outputs: int
    exclusive: bool = True
    display_window: tuple[tuple[float, float], ...]
    channel_map: Literal["fixed", "stem"] = "fixed"
    slice_context: int = 0
    frozen: bool = True
    paper_compat: bool = False
    checkpointing: bool = False


def channel_matrix(num_channels: int, slice_context: int = 0) -> Tensor:
    """Weights (3, N) that mix N = num_channels * (2 * slice_context + 1) channels into red, green, blue.

    One channel is repeated; two give (a, b, their mean); three stay; more are averaged in three groups of
    neighbours. With context, red is the mean of the slices before, green the slice itself and blue the mean
    of those after, each averaged over the image channels.
    """
    if slice_context:
        slices = torch.zeros(3, 2 * slice_context + 1)
        slices[0, :slice_context] = 1 / slice_context
        slices[1, slice_context] = 1
        slices[2, slice_context + 1 :] = 1 / slice_context
        return slices.repeat(1, num_channels) / num_channels
    if num_channels == 1:
        return torch.ones(3, 1)
    if num_channels == 2:
        return torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    groups = torch.arange(num_channels) * 3 // num_channels
    matrix = functional.one_hot(groups, 3).T.float()
    return matrix / matrix.sum(1, keepdim=True)


def unit_range(images: Tensor, window: Tensor) -> Tensor:
    """Intensities (B, N, *S) with the display window (N, 2) of each channel at 0 and 1, clamped."""
    low, high = window.reshape(*window.shape, *(1,) * (images.ndim - 2)).unbind(1)
    return ((images - low) / (high - low)).clamp(0, 1)


def check_windows(windows: Sequence[Sequence[float]], num_channels: int) -> None:
    """Refuse display windows that do not fit the channels or are empty.

    Raises:
        SamunetError: says which.
    """
    if len(windows) != num_channels:
        raise SamunetError(
            f"display_window has {len(windows)} entries for {num_channels} channels. Plan again."
        )
    if not all(low < high for low, high in windows):
        raise SamunetError(f"display_window {windows}: each needs low < high. Plan again.")


def covered_pixels(slice_size: Sequence[int], input_size: int) -> tuple[int, int]:
    """Pixels (height, width) that a slice fills of a square of side `input_size`; the rest is padding."""
    scale = input_size / max(slice_size)
    height, width = (min(input_size, max(1, int(n * scale + 0.5))) for n in slice_size)
    return height, width


class SamPicture(nn.Module):
    """Display window, channel map, resizing, SAM's pixel normalisation and padding.

    forward: slices (B, N, H, W) of stored (normalised) intensities -> (B, 3, S, S) float32. The longest side
    becomes S, the aspect is kept, right and bottom are padded with zeros.

    Raises:
        SamunetError: the display window does not fit the channels or is empty.
    """

    window: Tensor
    mean: Tensor
    std: Tensor
    matrix: Tensor

    def __init__(self, settings: SliceSettings) -> None:
        super().__init__()
        windows = settings.display_window
        check_windows(windows, settings.num_channels)
        self.size = settings.input_size
        self.stretched = settings.paper_compat
        self.slices = 2 * settings.slice_context + 1
        self.register_buffer("window", torch.tensor(windows, dtype=torch.float32))
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)
        matrix = channel_matrix(settings.num_channels, settings.slice_context)
        self.stem: nn.Conv2d | None = None
        if settings.channel_map == "stem":
            self.stem = nn.Conv2d(matrix.shape[1], 3, 1)
            with torch.no_grad():
                self.stem.weight.copy_(matrix[:, :, None, None])
                assert self.stem.bias is not None
                self.stem.bias.zero_()
        else:
            self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, slices: Tensor) -> Tensor:
        with full_precision(slices.device.type):
            shown = self._to_unit_range(slices.float())
            # Plain integers also where the network is traced for export: tiles have one size.
            size = self.covered((int(slices.shape[-2]), int(slices.shape[-1])))
            if self.stem is None:
                colours = torch.einsum("rc,bchw->brhw", self.matrix, shown)
            else:
                colours = self.stem(shown)
            shrinks = not self.stretched and max(slices.shape[-2:]) > self.size
            picture = self.resized(colours, size, shrinks)
            if self.stretched:
                return picture
            picture = (255 * picture - self.mean) / self.std
            return functional.pad(picture, (0, self.size - size[1], 0, self.size - size[0]))

    # The two are methods so that an export may set others in their place: formats resize in their own ways.

    def resized(self, colours: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
        """Bilinear resizing to a size."""
        return functional.interpolate(
            colours, size, mode="bilinear", align_corners=False, antialias=antialias
        )

    def scaled(self, logits: Tensor, factors: list[float]) -> Tensor:
        """Bilinear resizing by a factor for each axis."""
        return functional.interpolate(logits, scale_factor=factors, mode="bilinear", align_corners=False)

    def _to_unit_range(self, slices: Tensor) -> Tensor:
        if self.stretched:
            low, high = slices.amin((1, 2, 3), keepdim=True), slices.amax((1, 2, 3), keepdim=True)
            return (slices - low) / (high - low).clamp_min(1e-8)
        return unit_range(slices, self.window.repeat_interleave(self.slices, 0))

    def covered(self, slice_size: tuple[int, ...]) -> tuple[int, int]:
        """Pixels (height, width) of the square that a slice of this size fills."""
        return (self.size, self.size) if self.stretched else covered_pixels(slice_size, self.size)

    def to_slice(self, logits: Tensor, slice_size: tuple[int, ...]) -> Tensor:
        """Logits (B, K, h, w) of the whole square -> those of the slice (B, K, H, W), bilinearly, float32."""
        stride = self.size / int(logits.shape[-1])
        slice_size = tuple(int(n) for n in slice_size)
        covered = self.covered(slice_size)
        rows, columns = (math.ceil(n / stride) for n in covered)
        factors = [n * stride / c * _ROUNDING for n, c in zip(slice_size, covered)]
        resized = self.scaled(logits[..., :rows, :columns].float(), factors)
        return resized[..., : slice_size[0], : slice_size[1]]
