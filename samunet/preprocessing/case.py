"""One case from the arrays as read to what the networks see: transpose, crop, normalise, resample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samunet.data.geometry import Box, Geometry, bounding_box, in_all_channels, nonzero_mask, resampled_shape
from samunet.data.labels import OUTSIDE
from samunet.errors import SamunetError
from samunet.planning.plan import DataConfiguration, Plan
from samunet.preprocessing.normalization import normalize_channel
from samunet.preprocessing.resampling import resample_image, resample_label


@dataclass(frozen=True, kw_only=True)
class SpatialRecord:
    """What was done to a case's grid, so that a segmentation can be taken back.

    Axes are those after the plan's transpose, except in `geometry`, which is the file's.

    Attributes:
        geometry: of the file.
        shape_before_crop: voxels of the transposed array.
        crop_box: the part of it around the nonzero voxels.
        shape: voxels after resampling, what the networks see.
        spacing_before_mm / spacing_mm: before and after resampling.
    """

    geometry: Geometry
    shape_before_crop: tuple[int, int, int]
    crop_box: Box
    shape: tuple[int, int, int]
    spacing_before_mm: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]

    @property
    def shape_after_crop(self) -> tuple[int, ...]:
        """Voxels after the crop, before resampling."""
        return self.crop_box.shape


@dataclass(frozen=True, kw_only=True)
class PreprocessedCase:
    """A case as the networks see it.

    Attributes:
        image: float32 (C, Z, Y, X).
        label: int16 (Z, Y, X): class indices, `ignore_index`, -1 outside the nonzero mask; None without one.
        record: how to get back to the file's grid.
    """

    image: np.ndarray
    label: np.ndarray | None
    record: SpatialRecord


def preprocess_case(
    image: np.ndarray,
    label: np.ndarray | None,
    geometry: Geometry,
    plan: Plan,
    data: DataConfiguration,
    where: str = "the case",
) -> PreprocessedCase:
    """Preprocess a case as the data configuration says (nnU-Net's order and rules).

    Args:
        image: (C, Z, Y, X) as read; left untouched.
        label: (Z, Y, X) with the file's integers, or None.
        geometry: of the file.
        plan: gives transpose, labels and intensity statistics.
        data: gives spacing and normalisation. With two spacings the slice axis is not resampled.
        where: names the case in messages.

    Raises:
        SamunetError: NaN or infinite intensities, label values that dataset.json does not declare, shapes or
            channel counts that do not fit.
    """
    _check(image, label, plan, where)
    order = plan.transpose_forward
    image = image.transpose(0, *(axis + 1 for axis in order))
    spacing = _three(tuple(geometry.spacing_mm[axis] for axis in order))
    before = image.shape[1:]

    box, mask = crop_to_nonzero(image)
    image = image[in_all_channels(box.slices)]
    indices = None
    if label is not None:
        indices = plan.labels.encode(label.transpose(order)[box.slices], where=f"The label of {where}")
        indices[(indices == 0) & ~mask] = OUTSIDE

    target = data.spacing_mm if data.dimension == 3 else (spacing[0], *data.spacing_mm)
    if geometry.is_2d:  # its spacing across is nominal, and a 3D network sees a single slice
        target = tuple(spacing[i] if axis == 0 else target[i] for i, axis in enumerate(order))
    shape = resampled_shape(box.shape, spacing, target)
    resampled = np.empty((image.shape[0], *shape), np.float32)
    for index, channel in enumerate(image):
        normalized = _normalize(channel, index, plan, data, mask)
        resampled[index] = resample_image(normalized[None], shape, spacing, target)[0]
    if indices is not None:
        indices = resample_label(indices, shape, spacing, target)
    record = SpatialRecord(
        geometry=geometry,
        shape_before_crop=before,
        crop_box=box,
        shape=_three(shape),
        spacing_before_mm=spacing,
        spacing_mm=_three(target),
    )
    return PreprocessedCase(image=resampled, label=indices, record=record)


def crop_to_nonzero(image: np.ndarray) -> tuple[Box, np.ndarray]:
    """Box around the nonzero voxels of a (C, Z, Y, X) image, and the filled nonzero mask inside that box.

    An image without nonzero voxels keeps its full box.
    """
    nonzero = np.any(image != 0, axis=0)
    box = bounding_box(nonzero)
    if nonzero.all():
        return box, nonzero
    # A hole cannot reach the rim of the box, so filling inside the box finds the same holes.
    return box, nonzero_mask(nonzero[box.slices][None])


def _normalize(
    channel: np.ndarray, index: int, plan: Plan, data: DataConfiguration, mask: np.ndarray
) -> np.ndarray:
    intensity = plan.intensity[index] if index < len(plan.intensity) else None
    inside = mask if data.use_mask_for_norm[index] else None
    copy = np.array(channel, np.float32, order="C")
    return normalize_channel(copy, data.normalization[index], intensity, inside)


def _check(image: np.ndarray, label: np.ndarray | None, plan: Plan, where: str) -> None:
    assert image.ndim == 4
    if image.shape[0] != len(plan.channel_names):
        raise SamunetError(
            f"{where} has {image.shape[0]} channels; the plan expects {len(plan.channel_names)} "
            f"({', '.join(plan.channel_names)})."
        )
    if label is not None and label.shape != image.shape[1:]:
        raise SamunetError(
            f"{where}: the label has shape {label.shape}, the image {image.shape[1:]} (z, y, x). "
            "Both must lie on one grid."
        )
    # min and max pass NaN on, and need no mask of the size of the image as np.isfinite would.
    if not (np.isfinite(image.min()) and np.isfinite(image.max())):
        raise SamunetError(f"{where} holds NaN or infinite intensities. Correct the image file.")


def _three(values: tuple) -> tuple:
    assert len(values) == 3
    return values[0], values[1], values[2]
