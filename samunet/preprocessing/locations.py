"""Voxels of every class, drawn once per case, so that training can centre patches on foreground."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from samunet.data.labels import LabelSet

SEED = 1234
MIN_SAMPLES = 10_000
MIN_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class Locations:
    """Sampled voxels of one case; arrays are int32 (n, 3) with z, y, x in the preprocessed grid.

    Attributes:
        classes: foreground class or region name -> voxels; empty where the case has none.
        annotated: voxels that do not carry the ignore label; None for data without one.
    """

    classes: Mapping[str, np.ndarray] = field(default_factory=dict)
    annotated: np.ndarray | None = None


def sample_locations(label: np.ndarray, labels: LabelSet) -> Locations:
    """Draw voxels of every class or region of a preprocessed label map.

    At least 10 000 (or all there are) and at least one percent of each, without replacement, always the same
    for the same label (nnU-Net's amounts).

    Args:
        label: int16 (Z, Y, X) class indices with -1 outside and `labels.ignore_index`.
    """
    from scipy.ndimage import find_objects

    rng = np.random.default_rng(SEED)
    everything = tuple(slice(0, n) for n in label.shape)
    boxes = [everything, *find_objects(np.maximum(label, 0), max_label=len(labels.values))]
    classes = {}
    for name, indices in labels.foreground.items():
        present = [boxes[i] for i in indices if boxes[i] is not None]
        classes[name] = _sample(label, _union(present), indices, rng) if present else _no_voxels()
    annotated = None
    if labels.ignore_index is not None:
        annotated = _sample(label, everything, (labels.ignore_index,), rng, others=True)
    return Locations(classes=classes, annotated=annotated)


def _no_voxels() -> np.ndarray:
    return np.zeros((0, 3), np.int32)


def _union(boxes: list[tuple[slice, ...]]) -> tuple[slice, ...]:
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes))


def _sample(
    label: np.ndarray,
    box: tuple[slice, ...],
    indices: tuple[int, ...],
    rng: np.random.Generator,
    others: bool = False,
) -> np.ndarray:
    """Voxels inside `box` whose index is among `indices` (or is not, with `others`)."""
    part = label[box]
    mask = np.isin(part, indices, invert=others) if len(indices) > 1 else (part == indices[0]) != others
    per_plane = np.count_nonzero(mask, axis=(1, 2))
    total = int(per_plane.sum())
    if total == 0:
        return _no_voxels()
    count = max(min(MIN_SAMPLES, total), int(np.ceil(total * MIN_SHARE)))
    offset = np.array([s.start for s in box], np.int32)
    if count == total:
        return np.argwhere(mask).astype(np.int32) + offset
    ranks = np.sort(rng.choice(total, count, replace=False))
    # Plane by plane: the coordinates of all voxels of a large class would take 24 bytes each.
    voxels = np.empty((count, 3), np.int32)
    planes = np.searchsorted(np.cumsum(per_plane), ranks, side="right")
    first_rank = np.cumsum(per_plane) - per_plane
    for plane in np.unique(planes):
        chosen = planes == plane
        flat = np.flatnonzero(mask[plane])[ranks[chosen] - first_rank[plane]]
        voxels[chosen, 0] = plane
        voxels[chosen, 1], voxels[chosen, 2] = np.divmod(flat, mask.shape[2])
    return voxels + offset
