"""From logits on the network's grid back to the file's grid, slab by slab, never all classes at full size."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from samunet.data.geometry import in_all_channels
from samunet.data.labels import LabelSet
from samunet.planning.plan import Plan
from samunet.preprocessing.axis_maps import Taps, linear_taps, nearest_taps
from samunet.preprocessing.case import SpatialRecord
from samunet.preprocessing.resampling import separate_axis

if TYPE_CHECKING:
    from torch import Tensor

SLAB_BYTES = 128 * 2**20
"""Size of all classes of one slab at the file's spacing, in float32."""


class LogitArray(Protocol):
    """A tensor (K, Z, Y, X), or what stands for one on disk: an index gives a tensor."""

    @property
    def shape(self) -> Any: ...

    def __getitem__(self, where: Any, /) -> Tensor: ...


class Writable(Protocol):
    """An array, or what stands for one on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __setitem__(self, where: Any, values: Any, /) -> None: ...


def restore_segmentation(logits: LogitArray | np.ndarray, record: SpatialRecord, plan: Plan) -> np.ndarray:
    """Label map in the file's grid.

    Softmax data: the class with the largest interpolated logit. Region data: every region whose logit is
    above zero (probability above one half) paints its value, in the order of `regions_class_order`.

    Args:
        logits: (K, Z, Y, X) on the network's grid, any float type, on any device or on disk.
        record: of the preprocessed case.
        plan: gives labels and transpose.

    Returns:
        (Z, Y, X) with the integers of dataset.json, in the smallest unsigned type; 0 outside the crop.
    """
    return _restore(logits, record, plan, None)


def restore_probabilities(
    logits: LogitArray | np.ndarray, record: SpatialRecord, plan: Plan, out: Writable
) -> np.ndarray:
    """Fill `out` with probabilities in the file's grid; returns the label map as restore_segmentation does.

    Args:
        out: (K, Z, Y, X) in the file's grid, usually on disk; softmax over the classes, or one sigmoid per
            region. Outside the crop the background has probability 1 and regions 0.
    """
    assert tuple(out.shape) == (plan.labels.num_outputs, *record.geometry.shape), out.shape
    if record.shape_after_crop != record.shape_before_crop:
        fill_outside(out, plan.labels)
    return _restore(logits, record, plan, out)


def fill_outside(out: Writable, labels: LabelSet) -> None:
    """Set probabilities to those outside the crop: background 1, everything else 0."""
    for index in range(out.shape[0]):
        out[index] = 1 if index == 0 and not labels.has_regions else 0


def _restore(
    logits: LogitArray | np.ndarray, record: SpatialRecord, plan: Plan, probabilities: Writable | None
) -> np.ndarray:
    import torch

    labels = plan.labels
    segmentation = empty_segmentation(record.geometry.shape, labels)
    with torch.inference_mode():
        source = torch.from_numpy(logits) if isinstance(logits, np.ndarray) else logits
        for where, slab in restored_slabs(source, record, plan):
            segmentation[where] = decide_labels(slab, labels)
            if probabilities is not None:
                probabilities[in_all_channels(where)] = to_probabilities(slab, labels).cpu().numpy()
    return segmentation


def empty_segmentation(shape: tuple[int, ...], labels: LabelSet) -> np.ndarray:
    """Background everywhere, in the smallest unsigned type that holds all values of dataset.json."""
    return np.zeros(shape, labels.decode(np.zeros(1, np.int64)).dtype)


def to_probabilities(logits: Tensor, labels: LabelSet) -> Tensor:
    """Logits (K, ...) -> softmax over the classes, or a sigmoid per region."""
    return logits.sigmoid() if labels.has_regions else logits.softmax(0)


def decide_labels(scores: Tensor, labels: LabelSet, threshold: float = 0.0) -> np.ndarray:
    """Scores (K, Z, Y, X) -> values of dataset.json (Z, Y, X).

    Args:
        scores: logits, or probabilities with the threshold 0.5.
        labels: softmax data take the class with the largest score, of equal ones the first; regions above
            the threshold paint their values in order.
        threshold: of regions.
    """
    import torch

    if not labels.has_regions:
        # max with indices is several times faster on the CPU than argmax over a leading axis.
        return labels.decode(torch.max(scores, dim=0)[1].cpu().numpy())
    present = (scores > threshold).cpu().numpy()
    painted = empty_segmentation(present.shape[1:], labels)
    for mask, value in zip(present, labels.paint_values):
        painted[mask] = value
    return painted


def restored_slabs(
    logits: LogitArray, record: SpatialRecord, plan: Plan, slab_bytes: int = SLAB_BYTES
) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
    """Logits in the file's grid, piece by piece, cut along the file's z (a single plane along its rows).

    Cases of one image are cut alike whatever they were resampled or transposed to.

    Yields:
        The piece's place (slices of the file's z, y, x, inside the crop), its float32 logits (K, z, y, x).
    """
    forward = plan.transpose_forward
    assert tuple(logits.shape) == (plan.labels.num_outputs, *record.shape), (logits.shape, record.shape)
    backward = [forward.index(axis) for axis in range(3)]
    extent = [record.shape_after_crop[axis] for axis in backward]
    along = backward[0 if extent[0] > 1 else 1]
    lower = record.crop_box.lower
    for where, slab in logit_slabs(logits, record, slab_bytes, along):
        placed = [
            slice(low + (part.start or 0), low + (n if part.stop is None else part.stop))
            for part, low, n in zip(where, lower, record.shape_after_crop)
        ]
        yield tuple(placed[axis] for axis in backward), slab.permute(0, *(1 + axis for axis in backward))


def logit_slabs(
    logits: LogitArray, record: SpatialRecord, slab_bytes: int = SLAB_BYTES, along: int | None = None
) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
    """Resample logits to the cropped case's grid before resampling, piece by piece.

    Linear interpolation, nearest neighbour along a coarse axis that is treated apart (nnU-Net's rule).

    Args:
        logits: (K, Z, Y, X) on the network's grid.
        record: of the preprocessed case.
        slab_bytes: of all classes of a piece in float32.
        along: axis that is cut; None cuts the first, a single plane along its rows.

    Yields:
        The piece's place (slices along the record's axes, inside the crop), its float32 (K, z, y, x) logits.
    """
    import torch

    shape = record.shape_after_crop
    apart = separate_axis(record.spacing_mm, record.spacing_before_mm)
    taps = [
        nearest_taps(old, new) if axis == apart else linear_taps(old, new)
        for axis, (old, new) in enumerate(zip(logits.shape[1:], shape))
    ]
    if along is None:
        # A single plane is cut along its rows: one plane of a large picture may be large already.
        along = 0 if shape[0] > 1 else 1
    others = [axis for axis in range(3) if axis != along]
    row_bytes = 4 * logits.shape[0] * shape[others[0]] * shape[others[1]]
    step = max(1, slab_bytes // max(1, row_bytes))
    # A grid of the network that is finer has more rows and larger ones under each of the file's. The pieces
    # stay those of the file all the same: the members of an ensemble give them side by side.
    under = 4 * prod(logits.shape) / shape[along]
    at_once = max(1, int(slab_bytes // max(1, under)))
    for first in range(0, shape[along], step):
        rows = slice(first, min(first + step, shape[along]))
        parts = [
            _interpolate_planes(
                _interpolate_rows(logits, along, taps[along], slice(start, min(start + at_once, rows.stop))),
                [taps[axis] for axis in others],
            )
            for start in range(rows.start, rows.stop, at_once)
        ]
        slab = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        where = tuple(rows if axis == along else slice(None) for axis in range(3))
        yield where, slab.movedim(1, 1 + along)


def _interpolate_rows(logits: LogitArray, along: int, taps: Taps, rows: slice) -> Tensor:
    """Output rows `rows` of a spatial axis, float32, that axis first: (K, rows, p, q)."""
    import torch

    low, high = taps.low[rows], taps.high[rows]
    start = int(low[0])
    needed = slice(start, int(high[-1]) + 1)
    part = logits[in_all_channels(needed if axis == along else slice(None) for axis in range(3))]
    part = part.movedim(1 + along, 1).float()
    weight = taps.weight[rows]
    below = part[:, torch.from_numpy(low - start).to(part.device)]
    if not weight.any():
        return below
    above = part[:, torch.from_numpy(high - start).to(part.device)]
    return below.lerp_(above, torch.from_numpy(weight).to(part.device)[:, None, None])


def _interpolate_planes(slab: Tensor, taps: list[Taps]) -> Tensor:
    """Resample the last two axes of (K, n, p, q)."""
    import torch
    from torch.nn.functional import interpolate

    for axis, tap in zip((2, 3), taps):
        if not tap.weight.any() and len(tap.low) != slab.shape[axis]:
            slab = slab.index_select(axis, torch.from_numpy(tap.low).to(slab.device))
    size = (len(taps[0].low), len(taps[1].low))
    if slab.shape[2:] == size:
        return slab
    return interpolate(slab, size=size, mode="bilinear", align_corners=False)
