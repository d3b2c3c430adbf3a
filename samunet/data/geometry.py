"""Where an array lies in space. Arrays are Z, Y, X; origin and direction are SimpleITK's (x, y, z)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

FLAT_SPACING_MM = 999.0
"""Through-plane spacing given to 2D images, so that the slice axis is always the coarse one."""
SPACING_TOLERANCE = 1e-3
"""Relative; what the rounding of headers makes of a spacing."""


def voxel_volume_mm3(spacing_mm: Sequence[float], is_2d: bool) -> float:
    """Volume of a voxel of spacing z, y, x; a plane is 1 mm thick, whatever nominal spacing it was given."""
    return float(np.prod(spacing_mm[1:] if is_2d else spacing_mm))


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Geometry of a (Z, Y, X) array; a 2D image is (1, Y, X) with `is_2d`.

    Attributes:
        shape: voxels along z, y, x.
        spacing_mm: voxel size along z, y, x.
        origin_mm: position of the first voxel, x, y, z.
        direction: row-major 3 x 3 direction cosines in SimpleITK's order.
        is_2d: whether the file holds a plane and must be written back as one.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    is_2d: bool = False


@dataclass(frozen=True, kw_only=True)
class Header:
    """What can be known of an image file without reading its voxels.

    Attributes:
        geometry: of the array that reading gives.
        num_channels: channels in this one file (3 for an RGB picture).
        spacing_known: False where the kind of file carries no spacing and a nominal one stands in.
    """

    geometry: Geometry
    num_channels: int
    spacing_known: bool = True


@dataclass(frozen=True, kw_only=True)
class Box:
    """Half-open index box: voxel i of an axis is inside when lower <= i < upper."""

    lower: tuple[int, ...]
    upper: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, b) for a, b in zip(self.lower, self.upper))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.lower, self.upper))


def slice_axis(spacing_mm: Sequence[float], shape: Sequence[float]) -> int:
    """The axis across which an image is cut into slices.

    That of the largest spacing; but where an axis has one voxel, other slices would be lines, so it is that.
    """
    spacing, is_single = np.asarray(spacing_mm, np.float64), np.asarray(shape) == 1
    return int(np.argmax(np.where(is_single, spacing, -1.0) if is_single.any() else spacing))


def slices_first(axis: int) -> tuple[int, int, int]:
    """Order of the three axes that puts the one across the slices first and keeps that of the others."""
    first, second = (other for other in range(3) if other != axis)
    return axis, first, second


def in_all_channels(slices: Iterable[slice]) -> tuple[slice, ...]:
    """Index of a spatial box (Z, Y, X) in an array with channels or classes first."""
    return (slice(None), *slices)


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> tuple[int, ...]:
    """Shape after resampling, rounded half to even per axis as nnU-Net does; at least one voxel of each."""
    return tuple(max(1, round(float(s / t * n))) for s, t, n in zip(spacing_mm, target_mm, shape))


def same_voxels(one: Geometry, other: Geometry) -> bool:
    """Whether two grids have the same shape and spacing, wherever they lie."""
    close = np.allclose(one.spacing_mm, other.spacing_mm, rtol=SPACING_TOLERANCE, atol=0)
    return one.shape == other.shape and bool(close)


def grid_differences(one: Geometry, other: Geometry, compare_spacing: bool = True) -> list[str]:
    """What differs between two voxel grids, in words; empty when they are the same.

    Positions count as different when a corner of the volume lies more than a tenth of the smallest voxel
    size elsewhere, so that the rounding of file headers does not matter.
    """
    if one.shape != other.shape:
        return [f"shape {one.shape} against {other.shape} (z, y, x)"]
    if not compare_spacing:
        return []
    if not same_voxels(one, other):
        return [f"spacing {_shown(one.spacing_mm)} against {_shown(other.spacing_mm)} mm (z, y, x)"]
    shift = np.abs(corners_mm(one) - corners_mm(other)).max()
    if shift <= 0.1 * min(one.spacing_mm):
        return []
    differences = []
    if not np.allclose(one.origin_mm, other.origin_mm, atol=0.1 * min(one.spacing_mm)):
        differences.append(f"origin {_shown(one.origin_mm)} against {_shown(other.origin_mm)} mm (x, y, z)")
    if not np.allclose(one.direction, other.direction, atol=1e-4) or not differences:
        differences.append(f"direction {_shown(one.direction)} against {_shown(other.direction)}")
    return differences


def corners_mm(geometry: Geometry) -> np.ndarray:
    """Positions (8, 3) in mm, x, y, z, of the outermost voxels' centres."""
    size_xyz = np.array(geometry.shape[::-1]) - 1
    indices = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * size_xyz
    matrix = np.array(geometry.direction).reshape(3, 3) * np.array(geometry.spacing_mm[::-1])
    return np.asarray(indices @ matrix.T + np.array(geometry.origin_mm))


def left_right_axis(geometry: Geometry) -> int:
    """Array axis (0, 1 or 2 of z, y, x) that runs closest to the patient's left-right direction."""
    left_components = np.abs(np.array(geometry.direction).reshape(3, 3)[0])
    return 2 - int(np.argmax(left_components))


def _shown(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.5g}" for v in values) + ")"


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Union over channels of the nonzero voxels of a (C, Z, Y, X) image, holes filled; (Z, Y, X) bool."""
    from scipy.ndimage import binary_fill_holes

    mask = np.any(image != 0, axis=0)
    return mask if mask.all() else np.asarray(binary_fill_holes(mask))


def bounding_box(mask: np.ndarray) -> Box:
    """Smallest box around the true voxels; the full box when there are none."""
    lower, upper = [], []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        present = np.flatnonzero(mask.any(axis=others))
        lower.append(int(present[0]) if present.size else 0)
        upper.append(int(present[-1]) + 1 if present.size else mask.shape[axis])
    return Box(lower=tuple(lower), upper=tuple(upper))
