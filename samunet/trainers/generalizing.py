"""Stronger augmentation for models that will meet other scanners: intensity, bias field, resolution.

Each part takes the place of, or joins, what nnU-Net's augmentation has of its kind. The draws come from the
global generators, as those of all transforms here; see `augmentation.fixed_random`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.local.local_transform import LocalTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

PARTS = ("intensity", "bias_field", "resolution")
COARSEST = 0.25
"""Least scale of the simulated low resolution."""
LEAST_LENGTH = 2
"""No axis is reduced to fewer voxels."""
FIELD_WIDTH = (0.5, 1.0)
"""Standard deviation of a bias field's bump over the length of the axis."""
FIELD_STRENGTH = 0.6
"""Largest absolute logarithm of a bias field: the factor goes from 0.55 to 1.8."""


def parts_of(preset: str) -> tuple[str, ...]:
    """Which parts a preset has: all of `generalize`, one of `generalize_PART`, none of the others."""
    if preset == "generalize":
        return PARTS
    part = preset.removeprefix("generalize_")
    return (part,) if part in PARTS else ()


class BiasFieldTransform(ImageOnlyTransform, LocalTransform):
    """Multiplies what lies above the patch's minimum by a smooth factor, as a receive coil does.

    The libraries have additive brightness gradients and local gamma; the field of an MR coil is a factor on
    intensities that start at the air's. Normalised images are shifted, so the minimum stands for the air.
    The logarithm of the factor is one wide Gaussian bump with its centre in or near the patch, less its
    mean, scaled to a drawn strength of either sign; each channel has its own.

    Args:
        neighbours: images are (C, slices, H, W), and the few slices of a channel share a field (H, W).
    """

    def __init__(self, neighbours: bool = False) -> None:
        ImageOnlyTransform.__init__(self)
        LocalTransform.__init__(self, scale=_field_width, loc=(-0.5, 1.5))
        self.first = 2 if neighbours else 1

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        shape = data_dict["image"].shape
        return {"fields": [self._field(tuple(shape[self.first :])) for _ in range(shape[0])]}

    def _field(self, shape: tuple[int, ...]) -> np.ndarray:
        bump = self._generate_kernel(shape)
        bump -= bump.mean()
        strength = np.random.uniform(-FIELD_STRENGTH, FIELD_STRENGTH)
        return (bump * (strength / max(float(np.abs(bump).max()), 1e-8))).astype(np.float32)

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        for channel, field in zip(img, params["fields"]):
            air = channel.min()
            channel.sub_(air).mul_(torch.from_numpy(field).exp()).add_(air)
        return img


def _field_width(shape: Sequence[int], axis: int) -> float:
    return float(np.random.uniform(*FIELD_WIDTH)) * shape[axis]


class _Scale:
    """Resolution of an axis over the present one, uniform down to COARSEST; short axes keep LEAST_LENGTH."""

    def __call__(self, image: torch.Tensor, channel: int | None = None, dim: int = 0) -> float:
        least = max(COARSEST, LEAST_LENGTH / image.shape[1 + dim])
        return float(np.random.uniform(min(least, 1.0), 1.0))


def brightness_and_contrast() -> list[BasicTransform]:
    """In place of nnU-Net's, which go from 0.75 to 1.25 with p 0.15 and keep the range."""
    each: dict[str, Any] = {"synchronize_channels": False, "p_per_channel": 1}
    brightness = MultiplicativeBrightnessTransform(BGContrast((0.6, 1.6)), **each)
    contrast = ContrastTransform(BGContrast((0.5, 1.8)), preserve_range=False, **each)
    return [RandomTransform(t, apply_probability=0.4) for t in (brightness, contrast)]


def gammas() -> list[BasicTransform]:
    """In place of nnU-Net's, which go from 0.7 to 1.5 with p 0.1 (inverted) and 0.3."""

    def gamma(inverted: int) -> BasicTransform:
        return GammaTransform(BGContrast((0.5, 2.0)), inverted, False, p_per_channel=1, p_retain_stats=0.5)

    return [
        RandomTransform(gamma(1), apply_probability=0.2),
        RandomTransform(gamma(0), apply_probability=0.4),
    ]


def bias_field(neighbours: bool) -> BasicTransform:
    """Joins nnU-Net's, which has none; p 0.5."""
    return RandomTransform(BiasFieldTransform(neighbours), apply_probability=0.5)


def low_resolution(ignore_axes: tuple[int, ...] | None) -> BasicTransform:
    """In place of nnU-Net's, which scales all axes alike down to 0.5 with p 0.25 and half of the channels."""
    transform = SimulateLowResolutionTransform(
        _Scale(), True, False, ignore_axes=ignore_axes, p_per_channel=1
    )
    return RandomTransform(transform, apply_probability=0.4)
