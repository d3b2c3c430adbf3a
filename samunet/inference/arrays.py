"""Arrays in, arrays out: what a notebook gives to a predictor and gets back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samunet.data.geometry import FLAT_SPACING_MM, Geometry
from samunet.errors import SamunetError
from samunet.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A segmented array.

    Attributes:
        segmentation: label values of dataset.json on the input's grid, (Z, Y, X), or (Y, X) for a 2D image.
        probabilities: (K, Z, Y, X) float32 per class with background, or per region; None unless asked for.
        class_names: name per channel of `probabilities`.
    """

    segmentation: np.ndarray
    probabilities: np.ndarray | None
    class_names: tuple[str, ...]


def prediction_of(
    segmentation: np.ndarray, probabilities: np.ndarray | None, plan: Plan, *, flat: bool
) -> Prediction:
    """A prediction of arrays (Z, Y, X) and (K, Z, Y, X); the z of a 2D image is taken off."""
    return Prediction(
        segmentation=segmentation[0] if flat else segmentation,
        probabilities=probabilities[:, 0] if flat and probabilities is not None else probabilities,
        class_names=plan.labels.class_names,
    )


def as_image(
    array: np.ndarray, spacing_mm: Sequence[float] | None, channel_names: Sequence[str]
) -> tuple[np.ndarray, Geometry]:
    """Image float32 (C, Z, Y, X) and geometry of an array.

    Args:
        array: (C, Z, Y, X), or without C for one channel; (Y, X) or (C, Y, X) with two spacings for 2D.
        spacing_mm: z, y, x; or y, x for a 2D image (there 1 mm when not given).
        channel_names: that the array must have.

    Raises:
        SamunetError: shape, channels or spacing do not fit.
    """
    channels = len(channel_names)
    if spacing_mm is not None and np.ndim(spacing_mm) != 1:
        raise SamunetError(f"spacing_mm: give a value for each axis, such as (3, 1, 1), not {spacing_mm!r}.")
    flat = array.ndim == 2 or (array.ndim == 3 and spacing_mm is not None and len(spacing_mm) == 2)
    if flat:
        spacing_mm = (FLAT_SPACING_MM, *((1.0, 1.0) if spacing_mm is None else spacing_mm[-2:]))
        array = array[..., None, :, :]
    image = array if array.ndim == 4 else array[None]
    if image.ndim != 4 or image.shape[0] != channels:
        raise SamunetError(
            f"The array has shape {array.shape}; expected (Z, Y, X) or (C, Z, Y, X) with C = {channels} "
            f"({', '.join(channel_names)}), or for a 2D image (C, Y, X) with two spacings."
        )
    if spacing_mm is None or len(spacing_mm) != 3 or not all(0 < mm < math.inf for mm in spacing_mm):
        raise SamunetError("spacing_mm: give the voxel size along z, y and x in millimetres, all above 0.")
    shape = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
    z, y, x = map(float, spacing_mm)
    return image.astype(np.float32), Geometry(shape=shape, spacing_mm=(z, y, x), is_2d=flat)
