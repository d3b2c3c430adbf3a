"""Overlap, surface and volume metrics of two binary masks (Z, Y, X); lengths in mm, volumes in ml.

A metric that is not defined is NaN: overlap when both masks are empty, distances when one of them is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEFAULT_TOLERANCE_MM = 2.0
ROUNDING = 1e-6
"""A spacing of 0.4 mm is 0.4000000059 mm in a file of single precision; five voxels are 2 mm all the same."""


@dataclass(frozen=True)
class OverlapCounts:
    """Voxels by agreement of prediction and reference."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def num_reference(self) -> int:
        return self.tp + self.fn

    @property
    def num_prediction(self) -> int:
        return self.tp + self.fp

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else math.nan

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN)."""
        total = self.tp + self.fp + self.fn
        return self.tp / total if total else math.nan


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance in mm of every surface voxel of one mask to the nearest surface voxel of the other."""

    from_reference: np.ndarray
    from_prediction: np.ndarray


def count_overlap(reference: np.ndarray, prediction: np.ndarray) -> OverlapCounts:
    """Count agreeing and disagreeing voxels of two masks."""
    tp = int(np.count_nonzero(reference & prediction))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(reference)) - tp
    return OverlapCounts(tp, fp, fn, reference.size - tp - fp - fn)


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Dice similarity; NaN when both masks are empty."""
    return count_overlap(reference, prediction).dice


def iou(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Intersection over union; NaN when both masks are empty."""
    return count_overlap(reference, prediction).iou


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """Voxels of the mask with a face neighbour outside it; the border of the array is outside.

    Axes of length one are no neighbours' direction: the surface of a 2D image is its outline.
    """
    from scipy.ndimage import binary_erosion

    flat = np.atleast_1d(mask.squeeze())
    return np.asarray(flat & ~binary_erosion(flat)).reshape(mask.shape)


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> SurfaceDistances | None:
    """Distances between the surfaces of two masks.

    Args:
        reference: bool (Z, Y, X).
        prediction: bool (Z, Y, X).
        spacing_mm: voxel size along z, y, x.

    Returns:
        None when a mask is empty.
    """
    from scipy.spatial import cKDTree

    if not reference.any() or not prediction.any():
        return None
    # A tree over the surface voxels is exact like a distance transform, but neither its time nor its memory
    # grows with the box around both masks.
    points = [np.argwhere(surface_voxels(mask)) * np.asarray(spacing_mm) for mask in (reference, prediction)]
    trees = [cKDTree(p, balanced_tree=False, compact_nodes=False) for p in points]
    return SurfaceDistances(trees[1].query(points[0])[0], trees[0].query(points[1])[0])


def hd95(distances: SurfaceDistances) -> float:
    """95th percentile Hausdorff distance in mm: the larger of the two directed 95th percentiles."""
    directed = (distances.from_reference, distances.from_prediction)
    return float(max(np.percentile(d, 95) for d in directed))


def assd(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance in mm: mean over the surface voxels of both masks together."""
    directed = (distances.from_reference, distances.from_prediction)
    return float(sum(d.sum() for d in directed) / sum(d.size for d in directed))


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Share of all surface voxels that lie within the tolerance of the other surface (in 0..1).

    A distance of the tolerance is within it, also where it is larger by one part in a million by rounding.
    """
    limit = tolerance_mm * (1 + ROUNDING) + 1e-9
    directed = (distances.from_reference, distances.from_prediction)
    near = sum(int(np.count_nonzero(d <= limit)) for d in directed)
    return near / sum(d.size for d in directed)


def volume_error_ml(counts: OverlapCounts, spacing_mm: Sequence[float]) -> float:
    """Predicted minus reference volume in ml; NaN when both are empty."""
    if not counts.num_prediction and not counts.num_reference:
        return math.nan
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return (counts.num_prediction - counts.num_reference) * voxel_ml


def volume_error_percent(counts: OverlapCounts) -> float:
    """Predicted minus reference volume in percent of the reference; NaN without reference."""
    difference = counts.num_prediction - counts.num_reference
    return 100 * difference / counts.num_reference if counts.num_reference else math.nan


def surface_metrics(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    """SurfaceDice, HD95 and ASSD of two masks.

    With exactly one empty mask the surface Dice is 0 and the distances are NaN; with two, all are NaN.
    """
    distances = surface_distances(reference, prediction, spacing_mm)
    if distances is None:
        one_is_there = bool(reference.any() or prediction.any())
        return {"SurfaceDice": 0.0 if one_is_there else math.nan, "HD95": math.nan, "ASSD": math.nan}
    return {
        "SurfaceDice": surface_dice(distances, tolerance_mm),
        "HD95": hd95(distances),
        "ASSD": assd(distances),
    }
