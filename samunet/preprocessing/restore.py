"""From logits on the network's grid back to the file's grid, slab by slab, never all classes at full size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from samunet.data.labels import LabelSet
from samunet.planning.plan import Plan
from samunet.preprocessing.axis_maps import Taps, linear_taps, nearest_taps
from samunet.preprocessing.case import SpatialRecord
from samunet.preprocessing.resampling import separate_axis

if TYPE_CHECKING:
    from torch import Tensor

SLAB_BYTES = 128 * 2**20
"""Size of all classes of one slab at the file's spacing, in float32."""


def restore_segmentation(logits: Tensor | np.ndarray, record: SpatialRecord, plan: Plan) -> np.ndarray:
    """Label map in the file's grid.

    Softmax data: the class with the largest interpolated logit. Region data: every region whose logit is
    above zero (probability above one half) paints its value, in the order of `regions_class_order`.

    Args:
        logits: (K, Z, Y, X) on the network's grid, any float type, on any device.
        record: of the preprocessed case.
        plan: gives labels and transpose.

    Returns:
        (Z, Y, X) with the integers of dataset.json, in the smallest unsigned type; 0 outside the crop.
    """
    return _restore(logits, record, plan, None)


def restore_probabilities(
    logits: Tensor | np.ndarray, record: SpatialRecord, plan: Plan, out: np.ndarray
) -> np.ndarray:
    """Fill `out` with probabilities in the file's grid; returns the label map as restore_segmentation does.

    Args:
        out: (K, Z, Y, X) float array in the file's grid, usually a memory map; softmax over the classes, or
            one sigmoid per region. Outside the crop the background has probability 1 and regions 0.
    """
    assert out.shape == (plan.labels.num_outputs, *record.geometry.shape), out.shape
    if record.shape_after_crop != record.shape_before_crop:
        for index, channel in enumerate(out):
            channel[...] = 1 if index == 0 and not plan.labels.has_regions else 0
    return _restore(logits, record, plan, out)


def _restore(
    logits: Tensor | np.ndarray, record: SpatialRecord, plan: Plan, probabilities: np.ndarray | None
) -> np.ndarray:
    import torch

    logits = torch.as_tensor(logits)
    labels, forward = plan.labels, plan.transpose_forward
    assert logits.shape == (labels.num_outputs, *record.shape), (logits.shape, record.shape)
    segmentation = np.zeros(record.geometry.shape, labels.decode(np.zeros(1, np.int64)).dtype)
    # Views: what is written into them lands in the file's grid at the right place.
    crop = segmentation.transpose(forward)[record.crop_box.slices]
    chances = None
    if probabilities is not None:
        turned = probabilities.transpose(0, *(axis + 1 for axis in forward))
        chances = turned[(slice(None), *record.crop_box.slices)]
    with torch.inference_mode():
        for where, slab in logit_slabs(logits, record):
            crop[where] = _decide(slab, labels)
            if chances is not None:
                shares = slab.sigmoid() if labels.has_regions else slab.softmax(0)
                chances[(slice(None), *where)] = shares.cpu().numpy()
    return segmentation


def _decide(slab: Tensor, labels: LabelSet) -> np.ndarray:
    """(K, Z, Y, X) logits -> (Z, Y, X) values of dataset.json."""
    import torch

    if not labels.has_regions:
        # max with indices is several times faster on the CPU than argmax over a leading axis.
        return labels.decode(torch.max(slab, dim=0)[1].cpu().numpy())
    present = (slab > 0).cpu().numpy()
    painted = np.zeros(present.shape[1:], labels.decode(np.zeros(1, np.int64)).dtype)
    for mask, value in zip(present, labels.paint_values):
        painted[mask] = value
    return painted


def logit_slabs(
    logits: Tensor, record: SpatialRecord, slab_bytes: int = SLAB_BYTES
) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
    """Resample logits to the cropped case's grid before resampling, piece by piece.

    Linear interpolation, nearest neighbour along a coarse axis that is treated apart (nnU-Net's rule).

    Yields:
        The piece's place (slices along the record's axes, inside the crop), its float32 (K, z, y, x) logits.
    """
    shape = record.shape_after_crop
    apart = separate_axis(record.spacing_mm, record.spacing_before_mm)
    taps = [
        nearest_taps(old, new) if axis == apart else linear_taps(old, new)
        for axis, (old, new) in enumerate(zip(logits.shape[1:], shape))
    ]
    # A single plane is cut along its rows: one plane of a large picture may be large already.
    along = 0 if shape[0] > 1 else 1
    others = [axis for axis in range(3) if axis != along]
    turned = logits.movedim(1 + along, 1)
    row_bytes = 4 * logits.shape[0] * shape[others[0]] * shape[others[1]]
    step = max(1, slab_bytes // max(1, row_bytes))
    for first in range(0, shape[along], step):
        rows = slice(first, min(first + step, shape[along]))
        slab = _interpolate_rows(turned, taps[along], rows)
        slab = _interpolate_planes(slab, [taps[axis] for axis in others])
        where = tuple(rows if axis == along else slice(None) for axis in range(3))
        yield where, slab.movedim(1, 1 + along)


def _interpolate_rows(logits: Tensor, taps: Taps, rows: slice) -> Tensor:
    """Output rows `rows` of the first spatial axis, float32."""
    import torch

    low, high = taps.low[rows], taps.high[rows]
    start = int(low[0])
    part = logits[:, start : int(high[-1]) + 1].float()
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
