"""Where an array lies in space. Arrays are Z, Y, X; origin and direction are SimpleITK's (x, y, z)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FLAT_SPACING_MM = 999.0
"""Through-plane spacing given to 2D images, so that the slice axis is always the coarse one."""


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


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> tuple[int, ...]:
    """Shape after resampling, rounded half to even per axis as nnU-Net does."""
    return tuple(int(round(s / t * n)) for s, t, n in zip(spacing_mm, target_mm, shape))


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
