"""Scores of one case: a reference label file against a predicted one, all classes or regions in one pass."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samunet.data.geometry import Box, Geometry, grid_differences
from samunet.data.labels import LabelSet
from samunet.data.readers import file_kind, read_label
from samunet.data.tiff import sidecar, warn_no_spacing
from samunet.errors import SamunetError
from samunet.evaluation.metrics import (
    OverlapCounts,
    surface_metrics,
    volume_error_ml,
    volume_error_percent,
)
from samunet.evaluation.scores import Scores

Pair = tuple[Path, Path]
"""A reference label file and a predicted one."""


@dataclass(frozen=True)
class Indices:
    """A label map as small class indices; `other` stands for values that are not declared."""

    array: np.ndarray
    other: int

    @property
    def digest(self) -> str:
        """Of the shape and the classes, voxel by voxel: the same for every file format and integer type."""
        known = hashlib.sha256(repr(self.array.shape).encode())
        known.update(np.ascontiguousarray(self.array, "<u2").data)
        return known.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Scores of a pair.

    Attributes:
        metrics: class or region name -> metric -> value.
        reference_digest: of the reference.
        remarks: in words, what looks wrong.
    """

    metrics: dict[str, Scores]
    reference_digest: str
    remarks: tuple[str, ...]


def score_pair(pair: Pair, labels: LabelSet, tolerance_mm: float) -> PairScores:
    """Scores of all classes or regions of a pair of files.

    Raises:
        SamunetError: unreadable, or the shapes differ.
    """
    reference, geometry = read_label(pair[0])
    prediction, predicted_geometry = read_label(pair[1])
    fault = shape_fault(pair, (reference.shape, prediction.shape))
    if fault is not None:
        raise SamunetError(fault)
    geometry = pair_geometry(pair, geometry, predicted_geometry)
    if not geometry.is_2d and not any(map(_has_spacing, pair)):
        warn_no_spacing(pair[0].parent)
    differences = grid_differences(geometry, predicted_geometry, compare_spacing=_has_spacing(pair[1]))
    remarks = [f"{pair[1]} does not lie on the grid of {pair[0]}: {d}." for d in differences]
    found, sought = to_indices(prediction, labels), to_indices(reference, labels)
    for path, indices in ((pair[1], found), (pair[0], sought)):
        if np.any(indices.array == indices.other):
            remarks.append(
                f"{path} holds label values that dataset.json does not declare; they count as none."
            )
    return PairScores(
        metrics=score_indices(sought, found, geometry, labels, tolerance_mm),
        reference_digest=sought.digest,
        remarks=tuple(remarks),
    )


def pair_geometry(pair: Pair, reference: Geometry, prediction: Geometry) -> Geometry:
    """The grid that a pair is measured on: the reference's, or the prediction's where that states no spacing.

    Args:
        pair: the files.
        reference / prediction: as read of them.
    """
    return reference if _has_spacing(pair[0]) else prediction


def shape_fault(pair: Pair, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> str | None:
    """In words, that the two of a pair cannot be compared."""
    if shapes[0] == shapes[1]:
        return None
    return (
        f"{pair[1]} has the shape {shapes[1]} (z, y, x), but its reference {pair[0]} has {shapes[0]}. "
        "Predictions and references must lie on the same grid."
    )


def score_indices(
    reference: Indices, prediction: Indices, geometry: Geometry, labels: LabelSet, tolerance_mm: float
) -> dict[str, Scores]:
    """Score all classes of one case; one pass over the voxels counts all of them."""
    # A plane has a nominal spacing across it; its area counts as the volume of a slice of 1 mm.
    spacing = (1.0, *geometry.spacing_mm[1:]) if geometry.is_2d else geometry.spacing_mm
    counts = class_counts(joint_histogram(reference, prediction), labels)
    boxes = _boxes(reference, prediction)
    result = {}
    for name, indices in labels.foreground.items():
        box = _common_box([boxes.get(i) for i in indices], geometry.shape, whole=0 in indices)
        is_class = np.zeros(reference.other + 1, bool)
        is_class[list(indices)] = True
        sought = is_class[reference.array[box.slices]]
        found = is_class[prediction.array[box.slices]]
        if labels.ignore_index is not None:
            found &= reference.array[box.slices] != labels.ignore_index
        surface = surface_metrics(sought, found, spacing, tolerance_mm)
        result[name] = {**_overlap_scores(counts[name], spacing), **surface}
    return result


def _overlap_scores(counts: OverlapCounts, spacing_mm: tuple[float, ...]) -> Scores:
    return {
        "Dice": counts.dice,
        "IoU": counts.iou,
        "FP": counts.fp,
        "TP": counts.tp,
        "FN": counts.fn,
        "TN": counts.tn,
        "n_pred": counts.num_prediction,
        "n_ref": counts.num_reference,
        "VolumeError_ml": volume_error_ml(counts, spacing_mm),
        "VolumeError_percent": volume_error_percent(counts),
    }


def _has_spacing(path: Path) -> bool:
    """Whether the file states a spacing; a TIFF stack does so only by a file beside it."""
    return file_kind(path) != "tiff" or sidecar(path) is not None


def to_indices(label_map: np.ndarray, labels: LabelSet) -> Indices:
    """Class indices of a label map (Z, Y, X) in the file's integers."""
    known = [*labels.values, *([] if labels.ignore is None else [labels.ignore])]
    other = len(known)
    lookup = np.full(max(known) + 2, other, np.uint16)
    lookup[known] = np.arange(other)
    values = label_map
    if label_map.size and (label_map.min() < 0 or label_map.max() > max(known)):
        values = np.where((label_map < 0) | (label_map > max(known)), max(known) + 1, label_map)
    return Indices(lookup[values], other)


def joint_histogram(reference: Indices, prediction: Indices) -> np.ndarray:
    """Voxels by (reference index, predicted index), slice by slice to stay small."""
    size = reference.other + 1
    joint = np.zeros(size * size, np.int64)
    for one, two in zip(reference.array, prediction.array):
        joint += np.bincount((one.astype(np.int64) * size + two).ravel(), minlength=size * size)
    return joint.reshape(size, size)


def class_counts(joint: np.ndarray, labels: LabelSet) -> dict[str, OverlapCounts]:
    """Agreement of every foreground class or region; ignored voxels count nowhere."""
    if labels.ignore_index is not None:
        joint = joint.copy()
        joint[labels.ignore_index] = 0
    return {name: overlap_counts(joint, indices) for name, indices in labels.foreground.items()}


def overlap_counts(joint: np.ndarray, indices: tuple[int, ...]) -> OverlapCounts:
    """Agreement of a class or region, given by its class indices, from `joint_histogram`."""
    chosen = list(indices)
    tp = int(joint[np.ix_(chosen, chosen)].sum())
    fn = int(joint[chosen].sum()) - tp
    fp = int(joint[:, chosen].sum()) - tp
    return OverlapCounts(tp, fp, fn, int(joint.sum()) - tp - fn - fp)


def _boxes(reference: Indices, prediction: Indices) -> dict[int, tuple[slice, ...]]:
    """Class index -> box around its voxels in either map."""
    from scipy.ndimage import find_objects

    found = [find_objects(part.array, reference.other) for part in (reference, prediction)]
    boxes = {}
    for index, both in enumerate(zip(*found), start=1):
        present = [box for box in both if box is not None]
        if present:
            boxes[index] = tuple(
                slice(min(b[axis].start for b in present), max(b[axis].stop for b in present))
                for axis in range(3)
            )
    return boxes


def _common_box(boxes: list[tuple[slice, ...] | None], shape: tuple[int, int, int], whole: bool) -> Box:
    """Box around several boxes and one voxel more, so that only a 2D image is one voxel thick."""
    present = [box for box in boxes if box is not None]
    if whole or not present:
        return Box(lower=(0, 0, 0), upper=shape if whole else (0, 0, 0))
    return Box(
        lower=tuple(max(min(b[a].start for b in present) - 1, 0) for a in range(3)),
        upper=tuple(min(max(b[a].stop for b in present) + 1, shape[a]) for a in range(3)),
    )
