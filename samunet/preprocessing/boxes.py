"""Reading boxes and slices of stored cases, padded outside; the tile grid of large slices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd


def read_box(array: Any, lower: Sequence[int], shape: Sequence[int], fill: float) -> np.ndarray:
    """Copy of a box of the last axes of `array`, `fill` where it lies outside.

    Args:
        array: anything that slices to numpy, (*leading, *spatial); only the part inside is read.
        lower: first index per spatial axis; may be negative.
        shape: size per spatial axis; the box may end beyond the array.
        fill: value outside.
    """
    leading = array.shape[: len(array.shape) - len(lower)]
    sizes = array.shape[len(leading) :]
    box = [[start, start + length] for start, length in zip(lower, shape)]
    if any(end <= 0 or start >= size for (start, end), size in zip(box, sizes)):  # acvl-utils gives zeros
        return np.full((*leading, *shape), fill, array.dtype)
    part = np.asarray(crop_and_pad_nd(array, box, pad_value=fill))
    return part if part.base is None else part.copy()


def read_slice(array: Any, lower: Sequence[int], shape: Sequence[int], context: int) -> np.ndarray:
    """A slice of a (C, Z, Y, X) image with `context` neighbours on each side, (C * (2 context + 1), h, w).

    Channels run neighbour by neighbour within each image channel; beyond the volume the last slice is
    repeated.

    Args:
        array: stored image.
        lower: first index (z, y, x) of the central slice's box.
        shape: (h, w).
        context: neighbours on each side; 0 gives (C, h, w).
    """
    depth = array.shape[1]
    levels = [min(max(lower[0] + step, 0), depth - 1) for step in range(-context, context + 1)]
    first, last = levels[0], levels[-1]
    block = read_box(array, (first, *lower[1:]), (last - first + 1, *shape), 0)
    stacked = block[:, [level - first for level in levels]]
    return stacked.reshape(-1, *shape)


def centred_start(size: int, length: int) -> int:
    """Start of a window of `length` in whose middle an axis of `size` voxels lies (negative: padding)."""
    return -((length - size) // 2)


def tile_grid(size: Sequence[int], patch: Sequence[int]) -> list[tuple[int, ...]]:
    """Starts of the fewest even patches that cover `size`; an axis smaller than its patch is centred."""
    axes = []
    for length, window in zip(size, patch):
        if length <= window:
            axes.append([centred_start(length, window)])
            continue
        count = ceil(length / window)
        axes.append([round(i * (length - window) / (count - 1)) for i in range(count)])
    return list(product(*axes))
