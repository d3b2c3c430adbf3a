"""Resampling images and label maps between voxel grids, with nnU-Net's values and bounded memory.

Images: cubic splines, clipped to the range of what was interpolated (as skimage does). Labels: linear
interpolation of every label's indicator, the largest wins, ties go to the nearest neighbour's label (as
batchgenerators 0.25 does). Where the voxels are more than three times coarser along one axis, that axis
is resampled by nearest neighbour and the other two plane by plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samunet.preprocessing.axis_maps import Taps, blocks, linear_taps, nearest_taps, resize_axis

ANISOTROPY_THRESHOLD = 3.0
"""Ratio of largest to smallest spacing above which the coarse axis is resampled apart (nnU-Net's value)."""
CHUNK_BYTES = 32 * 2**20
"""Size of the pieces that a volume is worked through in."""
TIE = 1e-5
"""Scores closer than this count as equal; the interpolated indicators are in [0, 1] in float32."""


def separate_axis(spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]) -> int | None:
    """The axis that is resampled apart from the others, or None.

    The current spacing decides first, then the new one. Two equally coarse axes: none.
    """
    for spacing in (spacing_mm, new_spacing_mm):
        if max(spacing) / min(spacing) > ANISOTROPY_THRESHOLD:
            coarsest = [axis for axis, s in enumerate(spacing) if s == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample_image(
    image: np.ndarray,
    new_shape: Sequence[int],
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
    order: int = 3,
) -> np.ndarray:
    """Resample a (C, Z, Y, X) image to `new_shape` (Z, Y, X).

    The spacings only decide whether one axis is treated apart. Besides the result, about 100 MB are needed,
    and one smaller volume when all three axes change.

    Returns:
        float32 (C, *new_shape); the image itself when the shape already fits.
    """
    shape = tuple(int(n) for n in new_shape)
    assert image.ndim == 4
    assert len(shape) == 3
    if image.shape[1:] == shape:
        return image.astype(np.float32, copy=False)
    axis = separate_axis(spacing_mm, new_spacing_mm)
    resampled = np.empty((image.shape[0], *shape), np.float32)
    for source, target in zip(image, resampled):
        if axis is None:
            _resize_volume(source, target, order)
        else:
            _resize_planes_apart(np.moveaxis(source, axis, 0), np.moveaxis(target, axis, 0), order)
    return resampled


def _resize_planes_apart(source: np.ndarray, target: np.ndarray, order: int) -> None:
    nearest = nearest_taps(source.shape[0], target.shape[0]).nearest
    if source.shape[1:] == target.shape[1:]:
        for row, plane in enumerate(nearest):
            target[row] = source[plane]
        return
    step = _rows_per_chunk(max(source[0].size, target[0].size))
    wanted = np.unique(nearest)
    for first in range(0, len(wanted), step):
        planes = wanted[first : first + step]
        stack = np.ascontiguousarray(source[planes], np.float32)
        resized = _resize_in_plane(stack, target.shape[1:], order)
        if order > 1:
            low, high = stack.min(axis=(1, 2), keepdims=True), stack.max(axis=(1, 2), keepdims=True)
            np.clip(resized, low, high, out=resized)
        rows = np.flatnonzero((nearest >= planes[0]) & (nearest <= planes[-1]))
        for index, position in zip(rows, np.searchsorted(planes, nearest[rows])):
            target[index] = resized[position]


def _resize_volume(source: np.ndarray, target: np.ndarray, order: int) -> None:
    """All three axes: the first one before the planes when it shrinks, after them when it grows."""
    source = np.ascontiguousarray(source, np.float32)
    depth, new_depth = source.shape[0], target.shape[0]
    if new_depth < depth:
        flat = source.reshape(depth, -1)
        for block in blocks(depth, new_depth, order):
            rows = (block.weights @ flat[block.start : block.stop]).reshape(-1, *source.shape[1:])
            target[block.first : block.last] = _resize_in_plane(rows, target.shape[1:], order)
    else:
        middle = target if new_depth == depth else np.empty((depth, *target.shape[1:]), np.float32)
        step = _rows_per_chunk(max(source[0].size, target[0].size))
        for first in range(0, depth, step):
            part = slice(first, first + step)
            middle[part] = _resize_in_plane(source[part], target.shape[1:], order)
        if new_depth > depth:
            flat = middle.reshape(depth, -1)
            for block in blocks(depth, new_depth, order):
                rows = flat[block.start : block.stop]
                target[block.first : block.last] = (block.weights @ rows).reshape(-1, *target.shape[1:])
    if order > 1:
        np.clip(target, source.min(), source.max(), out=target)


def _resize_in_plane(stack: np.ndarray, plane: Sequence[int], order: int) -> np.ndarray:
    """Resize the last two axes of a contiguous (n, Y, X) stack, the one that shrinks most first."""
    axes = sorted((1, 2), key=lambda axis: plane[axis - 1] / stack.shape[axis])
    for axis in axes:
        stack = resize_axis(stack, axis, plane[axis - 1], order)
    return stack


def _rows_per_chunk(values_per_row: int) -> int:
    return max(1, CHUNK_BYTES // (4 * max(1, values_per_row)))


def resample_label(
    label: np.ndarray, new_shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> np.ndarray:
    """Resample an integer (Z, Y, X) label map to `new_shape`.

    Equal to interpolating the one-hot map linearly and taking the largest, without holding any one-hot: only
    voxels whose eight neighbours disagree are scored.

    Returns:
        Array of the label's type and `new_shape`; the label itself when the shape already fits.
    """
    shape = tuple(int(n) for n in new_shape)
    assert label.ndim == 3
    if label.shape == shape:
        return label
    apart = separate_axis(spacing_mm, new_spacing_mm)
    taps = [
        nearest_taps(old, new) if axis == apart else linear_taps(old, new)
        for axis, (old, new) in enumerate(zip(label.shape, shape))
    ]
    label = np.ascontiguousarray(label)
    resampled = np.empty(shape, label.dtype)
    step = max(1, CHUNK_BYTES // (16 * shape[1] * shape[2]))
    for first in range(0, shape[0], step):
        rows = slice(first, min(first + step, shape[0]))
        resampled[rows] = _label_rows(label, taps, rows)
    return resampled


def _label_rows(label: np.ndarray, taps: Sequence[Taps], rows: slice) -> np.ndarray:
    """Output planes `rows` of a label map: one value where all neighbours agree, else the vote."""
    first = taps[0].low[rows]
    smallest = largest = label[first]
    if taps[0].weight[rows].any():
        above = label[taps[0].high[rows]]
        smallest, largest = np.minimum(smallest, above), np.maximum(smallest, above)
    for axis in (1, 2):
        smallest, largest = _extremes(smallest, largest, taps[axis], axis)
    disputed = np.nonzero(smallest != largest)
    if disputed[0].size:
        z, y, x = disputed
        smallest[disputed] = _vote(label, taps, (z + rows.start, y, x))
    return smallest


def _extremes(
    smallest: np.ndarray, largest: np.ndarray, taps: Taps, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest label that each output sample of an axis reads."""
    if not taps.weight.any():
        if len(taps.low) == smallest.shape[axis]:
            return smallest, largest
        return smallest.take(taps.low, axis), largest.take(taps.low, axis)
    return (
        np.minimum(smallest.take(taps.low, axis), smallest.take(taps.high, axis)),
        np.maximum(largest.take(taps.low, axis), largest.take(taps.high, axis)),
    )


def _vote(label: np.ndarray, taps: Sequence[Taps], where: tuple[np.ndarray, ...]) -> np.ndarray:
    """Label with the largest interpolated indicator at the output voxels `where` (three index arrays)."""
    corners, weights = [], []
    for corner in np.ndindex(*(2 if tap.weight.any() else 1 for tap in taps)):
        index = [(t.high if high else t.low)[w] for t, w, high in zip(taps, where, corner)]
        parts = [(t.weight if high else 1 - t.weight)[w] for t, w, high in zip(taps, where, corner)]
        corners.append(label[tuple(index)])
        weights.append(parts[0] * parts[1] * parts[2])
    nearest = label[tuple(t.nearest[w] for t, w in zip(taps, where))]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    lead = _score(corners, weights, high) - _score(corners, weights, low)
    winner = np.where(lead > 0, high, low)
    # Two labels are the rule; only where three or more meet must every corner's label be scored.
    several = np.any([(c != low) & (c != high) for c in corners], axis=0)
    tied = (np.abs(lead) <= TIE) & ~several
    winner[tied] = nearest[tied]
    if several.any():
        chosen = [c[several] for c in corners], [w[several] for w in weights]
        winner[several] = _vote_of_several(*chosen, nearest[several])
    return winner


def _score(corners: list[np.ndarray], weights: list[np.ndarray], value: np.ndarray) -> np.ndarray:
    total = np.zeros(value.shape, np.float32)
    for corner, weight in zip(corners, weights):
        total += weight * (corner == value)
    return total


def _vote_of_several(corners: list[np.ndarray], weights: list[np.ndarray], nearest: np.ndarray) -> np.ndarray:
    scores = [_score(corners, weights, mine) for mine in corners]
    best = np.max(scores, axis=0) - TIE
    winner = np.full(nearest.shape, np.iinfo(nearest.dtype).max, nearest.dtype)
    nearest_wins = np.zeros(nearest.shape, bool)
    for value, score in zip(corners, scores):
        tied = score >= best
        np.minimum(winner, value, out=winner, where=tied)
        nearest_wins |= tied & (value == nearest)
    return np.where(nearest_wins, nearest, winner)
