"""One axis of a separable resize: which input samples an output sample reads, and with what weights.

Coordinates are half-pixel (`scale * (i + 0.5) - 0.5`) and the edge sample continues outside, which is what
`skimage.transform.resize(mode="edge", anti_aliasing=False)` and nnU-Net do. Every function is cached: the
cases of one dataset share most axis lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BLOCK = 32
"""Output samples handled by one small matrix: small enough that BLAS neither packs it nor splits it over
threads, which cost several times the product itself."""
SPLINE_PAD = 12
"""Edge samples that SciPy repeats before it filters a cubic spline."""
SPLINE_REACH = 26
"""Samples after which the spline filter's answer (0.268 per sample) is below double rounding."""
NEGLIGIBLE = 1e-9
"""Weights below this are dropped at the rim of a block."""


@dataclass(frozen=True, eq=False)
class Taps:
    """Two input samples per output sample: `(1 - weight) * x[low] + weight * x[high]`.

    Attributes:
        low / high: int64 (n_out,); weight: float32 (n_out,), 0 <= weight < 1.
        nearest: int64 (n_out,), the nearest input sample, halves rounded up as SciPy's order 0 does.
    """

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray
    nearest: np.ndarray


@dataclass(frozen=True, eq=False)
class Block:
    """Outputs [first, last) are `weights` (float32, rows x columns) times inputs [start, stop)."""

    first: int
    last: int
    start: int
    stop: int
    weights: np.ndarray


def _coordinates(size: int, new_size: int) -> np.ndarray:
    return (size / new_size) * (np.arange(new_size) + 0.5) - 0.5


@lru_cache(maxsize=256)
def nearest_taps(size: int, new_size: int) -> Taps:
    """Order 0 along an axis of `size` samples resized to `new_size`."""
    nearest = np.clip(np.floor(_coordinates(size, new_size) + 0.5).astype(np.int64), 0, size - 1)
    return Taps(low=nearest, high=nearest, weight=np.zeros(new_size, np.float32), nearest=nearest)


@lru_cache(maxsize=256)
def linear_taps(size: int, new_size: int) -> Taps:
    """Order 1 along an axis of `size` samples resized to `new_size`."""
    position = np.clip(_coordinates(size, new_size), 0, size - 1)
    low = np.floor(position).astype(np.int64)
    return Taps(
        low=low,
        high=np.minimum(low + 1, size - 1),
        weight=(position - low).astype(np.float32),
        nearest=nearest_taps(size, new_size).nearest,
    )


@lru_cache(maxsize=64)
def blocks(size: int, new_size: int, order: int) -> tuple[Block, ...]:
    """The axis as a band of small dense matrices; order 1 or 3.

    A cubic spline axis is the spline filter followed by four taps. Both are linear, and the filter's reach is
    short, so their product is a narrow band: small matrix products replace the recursive filter and need
    no float64 copy of the image.
    """
    assert order in (1, 3)
    build = _linear_block if order == 1 else _spline_block
    return tuple(
        build(size, new_size, first, min(first + BLOCK, new_size)) for first in range(0, new_size, BLOCK)
    )


def _linear_block(size: int, new_size: int, first: int, last: int) -> Block:
    taps = linear_taps(size, new_size)
    low, high, weight = taps.low[first:last], taps.high[first:last], taps.weight[first:last]
    start, stop = int(low.min()), int(high.max()) + 1
    weights = np.zeros((last - first, stop - start), np.float32)
    rows = np.arange(last - first)
    np.add.at(weights, (rows, low - start), 1 - weight)
    np.add.at(weights, (rows, high - start), weight)
    return Block(first, last, start, stop, weights)


def _spline_block(size: int, new_size: int, first: int, last: int) -> Block:
    from scipy.ndimage import spline_filter1d

    position = _coordinates(size, new_size)[first:last]
    base = np.floor(position).astype(np.int64)
    start = max(0, int(base[0]) - SPLINE_REACH)
    stop = min(size, int(base[-1]) + 1 + SPLINE_REACH)
    left = SPLINE_PAD if start == 0 else 0
    right = SPLINE_PAD if stop == size else 0
    samples = np.pad(np.eye(stop - start), ((left, right), (0, 0)), mode="edge")
    coefficients = spline_filter1d(samples, order=3, axis=0, mode="nearest")

    t = (position - base)[:, None]
    cubic = [
        (1 - t) ** 3 / 6,
        (4 - 6 * t**2 + 3 * t**3) / 6,
        (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6,
        t**3 / 6,
    ]
    rows = base - 1 - start + left
    weights = sum(part * coefficients[rows + k] for k, part in enumerate(cubic))
    used = np.flatnonzero(np.abs(weights).max(axis=0) > NEGLIGIBLE)
    kept = slice(int(used[0]), int(used[-1]) + 1)
    return Block(
        first, last, start + kept.start, start + kept.stop, np.ascontiguousarray(weights[:, kept], np.float32)
    )


def resize_axis(volume: np.ndarray, axis: int, new_size: int, order: int) -> np.ndarray:
    """Resize one axis of a C-contiguous float32 array of any rank; the array itself when nothing changes."""
    size = volume.shape[axis]
    if size == new_size:
        return volume
    shape = (*volume.shape[:axis], new_size, *volume.shape[axis + 1 :])
    resized = np.empty(shape, np.float32)
    before, after = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    source, target = volume.reshape(before, size, after), resized.reshape(before, new_size, after)
    for block in blocks(size, new_size, order):
        if after == 1:
            np.matmul(
                source[:, block.start : block.stop, 0],
                block.weights.T,
                out=target[:, block.first : block.last, 0],
            )
        else:
            np.matmul(
                block.weights,
                source[:, block.start : block.stop],
                out=target[:, block.first : block.last],
            )
    return resized
