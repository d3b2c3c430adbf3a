"""Tiles over a preprocessed image, blended by Gaussian weights; slices for 2D networks, boxes for 3D ones.

The logits are accumulated in a band of the first axis that is as deep as a tile, and leave it when no
further tile can reach them. So only one copy of the whole volume's logits exists, wherever and in whatever
type they are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from math import ceil, isfinite
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from samunet.data.geometry import in_all_channels
from samunet.inference.logit_storage import Logits
from samunet.networks.features import EncodingNetwork
from samunet.networks.sam_slices import shared_features
from samunet.progress import Progress
from samunet.trainers.devices import FP32, Precision

Room = Callable[[tuple[int, ...]], Logits]
"""Gives room for logits of a shape."""
TileNetwork = Callable[[Tensor], Tensor]
"""Tiles (B, C, *patch) -> logits (B, K, *patch)."""
PassObserver = Callable[[Tensor, Tensor, int, tuple[int, ...]], None]
"""Called after each pass of a network, before anything is averaged, with the tiles (B, C, *patch) and their
float32 logits (B, K, *patch), both as they lie in the image, the network's number and the flipped axes; the
unflipped pass comes first. It must change neither."""
CPU = torch.device("cpu")
GAUSSIAN_PEAK = 10.0
GAUSSIAN_SIGMA = 1 / 8
"""Standard deviation over tile size."""


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """How tiles are laid, batched and averaged.

    Attributes:
        patch_size: (y, x) for slices or (z, y, x) for boxes.
        step_size: tile step over tile size, above 0 and at most 1.
        mirror_axes: axes of the patch that are flipped; the logits of all combinations are averaged.
        batch_size: tiles in one pass of the network.
        slice_context: neighbouring slices on each side that a 2D network gets as further channels.
        shared_encoder: the networks differ in their heads only; one `encode` serves the `decode` of all.
        group_sizes: numbers of networks that are averaged together, in order; the logits of the groups stand
            one after the other along the class axis. Empty averages all.
        device: where the networks are.
        precision: number format of the forward pass.
        band_device: where logits are accumulated, in float32; None is where the networks are.
    """

    patch_size: tuple[int, ...]
    step_size: float = 0.5
    mirror_axes: tuple[int, ...] = ()
    batch_size: int = 1
    slice_context: int = 0
    shared_encoder: bool = False
    group_sizes: tuple[int, ...] = ()
    device: torch.device = CPU
    precision: Precision = FP32
    band_device: torch.device | None = None


def tile_starts(size: Sequence[int], patch: Sequence[int], step_size: float = 0.5) -> list[list[int]]:
    """First indices of the tiles along each axis: evenly spaced, at most `step_size` of a tile apart.

    Args:
        size: of the image; no axis shorter than the patch's.
    """
    starts = []
    for length, window in zip(size, patch):
        assert length >= window
        count = ceil((length - window) / (window * step_size)) + 1
        gap = (length - window) / max(1, count - 1)
        starts.append([round(gap * i) for i in range(count)])
    return starts


@lru_cache(maxsize=8)
def gaussian_weights(patch: tuple[int, ...]) -> Tensor:
    """Weights of a tile's voxels, float32: a Gaussian with its peak of 10 at size // 2."""
    from scipy.ndimage import gaussian_filter

    impulse = np.zeros(patch)
    impulse[tuple(n // 2 for n in patch)] = 1
    smooth = gaussian_filter(impulse, [n * GAUSSIAN_SIGMA for n in patch], mode="constant")
    weights = torch.from_numpy(smooth / smooth.max() * GAUSSIAN_PEAK).float()
    return weights.clamp_(min=float(weights[weights > 0].min()))


def predict_logits(
    networks: Sequence[TileNetwork],
    image: Tensor,
    settings: WindowSettings,
    progress: Progress | None = None,
    storage: Room | None = None,
    observer: PassObserver | None = None,
) -> Logits:
    """Mean logits of several networks over a whole image.

    Args:
        networks: callables (B, C, *patch) -> (B, K, *patch), in evaluation mode; the folds of one
            configuration. With `shared_encoder` they offer `encode` and `decode`.
        image: float32 (C, Z, Y, X) on any device. Axes shorter than the patch are padded with zeros on both
            sides.
        progress: called after every pass of the networks.
        storage: gives room for the result, a tensor or what stands for one; None takes a float32 tensor on
            the CPU.
        observer: sees every single pass; the logits are the same with and without it.

    Returns:
        (K, Z, Y, X) in that room; the mean over networks and flips, blended over tiles. With several groups
        of networks (groups K, Z, Y, X).

    Raises:
        FloatingPointError: a logit is NaN or infinite.
    """
    assert image.ndim == 4
    assert networks
    flat = len(settings.patch_size) == 2
    patch = (1, *settings.patch_size) if flat else settings.patch_size
    padded, inner = _pad_to(image, patch)
    bands = _slice_bands if flat else _volume_bands
    tiles = _Tiles(networks, settings, progress, observer)
    result: Logits | None = None
    with torch.inference_mode():
        for first, band in bands(padded, tiles):
            if result is None:
                shape = (band.shape[0], *image.shape[1:])
                result = storage(shape) if storage is not None else torch.empty(shape)
            # The part of the band that lies in the image and not in its padding.
            low, high = max(first, inner[0].start), min(first + band.shape[1], inner[0].stop)
            if low < high:
                planes = slice(low - inner[0].start, high - inner[0].start)
                part = band[:, low - first : high - first, inner[1], inner[2]]
                if not all(map(isfinite, part.aminmax())):  # NaN is handed on by both
                    raise FloatingPointError("a network gives NaN or infinity")
                result[:, planes] = part
    assert result is not None
    return result


def _pad_to(image: Tensor, patch: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad the spatial axes to the patch's size at least; also says where the image lies inside."""
    inner = inside_padding(image.shape[1:], patch)
    above = [max(0, window - part.stop) for window, part in zip(patch, inner)]
    widths = [width for part, rest in reversed(list(zip(inner, above))) for width in (part.start, rest)]
    return (pad(image, widths) if any(widths) else image), inner


def inside_padding(size: Sequence[int], patch: Sequence[int]) -> tuple[slice, ...]:
    """Where an image of that size lies once it is padded to the patch; axes at least as long stay."""
    below = [max(0, window - length) // 2 for window, length in zip(patch, size)]
    return tuple(slice(b, b + n) for b, n in zip(below, size))


class _Tiles:
    """Runs tiles through the networks and counts them."""

    def __init__(
        self,
        networks: Sequence[TileNetwork],
        settings: WindowSettings,
        progress: Progress | None,
        observer: PassObserver | None,
    ) -> None:
        self.networks = networks
        self.settings = settings
        self.progress = progress
        self.observer = observer
        self.done = 0
        axes = settings.mirror_axes
        self.flips = [
            tuple(2 + axis for axis in chosen)
            for count in range(len(axes) + 1)
            for chosen in combinations(axes, count)
        ]
        sizes = settings.group_sizes or (len(networks),)
        assert sum(sizes) == len(networks)
        self.groups = [group for group, size in enumerate(sizes) for _ in range(size)]
        self.passes = [size * len(self.flips) for size in sizes]

    def run(self, batch: list[Tensor], total: int) -> Tensor:
        """Mean float32 logits (B, K, *patch) of tiles (C, *patch) over flips and each group's networks."""
        inputs = torch.stack(batch).to(self.settings.device, non_blocking=True)
        sums: list[Tensor | None] = [None] * len(self.passes)
        for axes in self.flips:
            every = self._logits(inputs.flip(axes) if axes else inputs)
            for number, (group, logits) in enumerate(zip(self.groups, every)):
                turned = (logits.flip(axes) if axes else logits).float()
                if self.observer is not None:
                    self.observer(inputs, turned, number, axes)
                so_far = sums[group]
                if so_far is None:
                    # A copy, because a network may return a tensor that it still needs.
                    sums[group] = turned.clone() if self.passes[group] > 1 else turned
                else:
                    so_far.add_(turned)
        means = [s.div_(n) if n > 1 else s for s, n in zip(sums, self.passes) if s is not None]
        assert len(means) == len(self.passes)
        self.done += len(batch)
        if self.progress is not None:
            self.progress(self.done, total)
        return means[0] if len(means) == 1 else torch.cat(means, dim=1)

    def _logits(self, inputs: Tensor) -> Iterator[Tensor]:
        if not self.settings.shared_encoder:
            for network in self.networks:
                yield network(inputs)
            return
        every = cast(Sequence[nn.Module], self.networks)
        for network, features in zip(every, shared_features(every, inputs)):
            yield cast(EncodingNetwork, network).decode(features)


def _slice_bands(image: Tensor, tiles: _Tiles) -> Iterator[tuple[int, Tensor]]:
    """Blended logits (K, n, Y, X) of n slices after n slices; yields the first slice with each."""
    settings, depth = tiles.settings, image.shape[1]
    starts = list(product(*tile_starts(image.shape[2:], settings.patch_size, settings.step_size)))
    at_once = max(1, settings.batch_size // len(starts))
    for first in range(0, depth, at_once):
        count = min(at_once, depth - first)
        corners = [(z, y, x) for z in range(count) for y, x in starts]
        band = _Band(count, image.shape[2:], settings)
        for part in _batches(corners, settings.batch_size):
            cuts = [_cut_slice(image, (first + z, y, x), settings) for z, y, x in part]
            for corner, tile in zip(part, tiles.run(cuts, depth * len(starts))):
                band.add(tile[:, None], corner)
        yield first, band.blended(count)


def _cut_slice(image: Tensor, corner: tuple[int, ...], settings: WindowSettings) -> Tensor:
    """One tile (C * (2 context + 1), y, x) of a slice, neighbours running within each image channel."""
    (z, y, x), (height, width) = corner, settings.patch_size
    window = image[:, :, y : y + height, x : x + width]
    if not settings.slice_context:
        return window[:, z]
    steps = torch.arange(-settings.slice_context, settings.slice_context + 1)
    # Beyond the volume the last slice is repeated, as in training.
    return window[:, (z + steps).clamp_(0, image.shape[1] - 1)].flatten(0, 1)


def _volume_bands(image: Tensor, tiles: _Tiles) -> Iterator[tuple[int, Tensor]]:
    """Blended logits (K, n, Y, X), n being what the tiles of one depth complete; with the first plane."""
    settings, patch = tiles.settings, tiles.settings.patch_size
    depths, *plane = tile_starts(image.shape[1:], patch, settings.step_size)
    corners = list(product(*plane))
    band = _Band(patch[0], image.shape[2:], settings)
    for first, following in zip(depths, [*depths[1:], image.shape[1]]):
        for part in _batches(corners, settings.batch_size):
            cuts = [image[:, first : first + patch[0], y : y + patch[1], x : x + patch[2]] for y, x in part]
            for (y, x), tile in zip(part, tiles.run(cuts, len(depths) * len(corners))):
                band.add(tile, (0, y, x))
        yield first, band.blended(following - first)
        if following < image.shape[1]:
            band.advance(following - first)


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


class _Band:
    """Weighted sums of logits over some planes of the image."""

    def __init__(self, depth: int, plane: Sequence[int], settings: WindowSettings) -> None:
        self.shape = (depth, *plane)
        self.device = settings.band_device or settings.device
        self.sums: Tensor | None = None
        patch = settings.patch_size
        self.tile_weights = gaussian_weights(patch if len(patch) == 3 else (1, *patch)).to(self.device)
        # A slice that is one tile needs no blending: the weight would only be divided out again.
        self.single = tuple(patch[-2:]) == tuple(plane) and len(patch) == 2
        self.weights = torch.zeros(self.shape, device=self.device)

    def add(self, logits: Tensor, corner: tuple[int, ...]) -> None:
        """Add a tile (K, *patch) whose first voxel lies at `corner` of the band."""
        if self.sums is None:
            self.sums = torch.zeros((logits.shape[0], *self.shape), device=self.device)
        place = tuple(slice(c, c + n) for c, n in zip(corner, logits.shape[1:]))
        logits = logits.to(self.device)
        if self.single:
            self.sums[in_all_channels(place)] = logits
            return
        self.sums[in_all_channels(place)].addcmul_(logits, self.tile_weights)
        self.weights[place] += self.tile_weights

    def blended(self, planes: int) -> Tensor:
        """Weighted mean (K, n, Y, X) of the first planes; overwrites their sums."""
        assert self.sums is not None
        if self.single:
            return self.sums
        planes = min(planes, self.shape[0])
        return self.sums[:, :planes].div_(self.weights[:planes])

    def advance(self, planes: int) -> None:
        """Move the band forward along the first axis."""
        assert self.sums is not None
        kept = max(0, self.shape[0] - planes)
        for values in (self.sums, self.weights[None]):
            values[:, :kept] = values[:, self.shape[0] - kept :].clone()
            values[:, kept:] = 0
