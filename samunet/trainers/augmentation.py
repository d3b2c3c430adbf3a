"""nnU-Net's augmentation composed of batchgeneratorsv2 transforms: its order, probabilities and ranges.

The transforms draw from the global generators of numpy and torch. Each sample therefore runs inside
`fixed_random(seed)`, which seeds both and restores them, so that a sample depends on nothing but its seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from torch import Tensor

from samunet.data.labels import OUTSIDE
from samunet.planning.methods import AugmentationPreset
from samunet.trainers import generalizing

ANISOTROPY = 3.0
"""Patches longer than this times their first axis are augmented slice by slice (nnU-Net)."""
MARGIN = 0.85
"""The loaded patch is enlarged by its inverse beyond what rotation needs (nnU-Net)."""
MIN_BLUR_SIZE = 4
"""Shorter axes are not blurred: the reflected border of the widest kernel (3) would not fit."""


@contextmanager
def fixed_random(seed: int) -> Iterator[None]:
    """Seed numpy's and torch's global CPU generators for the block and put their states back afterwards."""
    numpy_state, torch_state = np.random.get_state(), torch.random.get_rng_state()
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        torch.random.set_rng_state(torch_state)


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """What the transforms follow from.

    Attributes:
        patch_size: voxels that the network sees (2 or 3 axes).
        mirror_axes: spatial axes of the patch that may be mirrored.
        preset: `full` (nnU-Net), `light` (rotation, scaling, mirroring), `none`; `generalize` and its parts
            are `full` with the stronger transforms of generalizing.py.
        slice_context: neighbouring slices on each side that are channels too (2D): for each image channel
            its 2 slice_context + 1 slices in ascending order.
        masked_channels: channels that are set to 0 outside the nonzero mask again.
        regions: class indices of each region output, or None for exclusive classes.
        ignore_index: class index of ignored voxels, if any.
    """

    patch_size: tuple[int, ...]
    mirror_axes: tuple[int, ...] = ()
    preset: AugmentationPreset = "full"
    slice_context: int = 0
    masked_channels: tuple[int, ...] = ()
    regions: tuple[tuple[int, ...], ...] | None = None
    ignore_index: int | None = None

    @property
    def flat(self) -> bool:
        """Whether a 3D patch is so anisotropic that it is transformed slice by slice."""
        return len(self.patch_size) == 3 and max(self.patch_size) / self.patch_size[0] > ANISOTROPY

    @property
    def mirrored_axes(self) -> tuple[int, ...]:
        """Axes that are mirrored: none where patches are taken as they are."""
        return () if self.preset == "none" else self.mirror_axes

    @property
    def rotation(self) -> float:
        """Largest rotation angle, radians: 2D 180 degrees (15 for elongated patches), flat 180, 3D 30."""
        if len(self.patch_size) == 2:
            elongated = max(self.patch_size) / min(self.patch_size) > 1.5
            return np.deg2rad(15.0 if elongated else 180.0)
        return np.deg2rad(180.0 if self.flat else 30.0)

    @cached_property
    def initial_size(self) -> tuple[int, ...]:
        """Size to load so that rotation seldom reaches outside; the patch itself without augmentation."""
        return self.patch_size if self.preset == "none" else enlarged_patch(self)


def enlarged_patch(settings: AugmentationSettings) -> tuple[int, ...]:
    """Patch enlarged for rotations (angles counted up to 90 degrees) and divided by MARGIN, rounded down."""
    size = np.array(settings.patch_size, float)
    angle = min(settings.rotation, np.pi / 2)
    cos, sin = np.cos(angle), np.sin(angle)
    largest = size.copy()
    planes = [(0, 1)] if len(size) == 2 else [(1, 2), (0, 2), (0, 1)]
    for number, (a, b) in enumerate(planes):
        # The signs are those of a right-handed turn about the axis left out, which is how nnU-Net measures
        # it.
        sign = -1.0 if number == 1 else 1.0
        turned = size.copy()
        turned[a], turned[b] = size[a] * cos + sign * size[b] * sin, size[b] * cos - sign * size[a] * sin
        largest = np.maximum(largest, np.abs(turned))
    enlarged = (largest / MARGIN).astype(int)
    if settings.flat:
        enlarged[0] = settings.patch_size[0]
    return tuple(int(n) for n in enlarged)


class _BlurSigma:
    """Sigma of the blur in voxels, drawn per axis; next to nothing along axes too short for the kernel.

    Also along the first spatial axis where that one counts `neighbours`, which stay apart.
    """

    def __init__(self, neighbours: bool) -> None:
        self.first = 2 if neighbours else 1

    def __call__(self, shape: tuple[int, ...], dim: int) -> float:
        return np.random.uniform(0.5, 1.0) if shape[dim] >= MIN_BLUR_SIZE and dim >= self.first else 0.05


class _OneImage(BasicTransform):
    """Shows transforms the slices that are channels as one image (C, slices, H, W) for each image channel.

    What they draw a channel, and what they measure in it (mean, range), is then the same for neighbours.
    Their own synchronisation draws once for all image channels too, and measures slice by slice.
    """

    def __init__(self, slices: int, transforms: list[BasicTransform]) -> None:
        super().__init__()
        self.slices = slices
        self.transforms = transforms

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        flat = data_dict["image"].shape
        data_dict["image"] = data_dict["image"].reshape(-1, self.slices, *flat[1:])
        for transform in self.transforms:
            data_dict = transform(**data_dict)
        data_dict["image"] = data_dict["image"].reshape(flat)
        return data_dict


def _spatial(settings: AugmentationSettings) -> list[BasicTransform]:
    patch = settings.patch_size[1:] if settings.flat else settings.patch_size
    transform = SpatialTransform(
        patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=0.2,
        rotation=(-settings.rotation, settings.rotation),
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
        border_mode_seg="constant",
        padding_value_seg=OUTSIDE,
    )
    if settings.flat:
        return [Convert3DTo2DTransform(), transform, Convert2DTo3DTransform()]
    return [transform]


def _intensity(settings: AugmentationSettings) -> list[BasicTransform]:
    def sometimes(probability: float, transform: BasicTransform) -> BasicTransform:
        return RandomTransform(transform, apply_probability=probability)

    def gamma(inverted: int) -> BasicTransform:
        return GammaTransform(BGContrast((0.7, 1.5)), inverted, False, p_per_channel=1, p_retain_stats=1)

    each: dict[str, Any] = {"synchronize_channels": False, "p_per_channel": 1}
    brightness_and_contrast = [
        sometimes(0.15, MultiplicativeBrightnessTransform(BGContrast((0.75, 1.25)), **each)),
        sometimes(0.15, ContrastTransform(BGContrast((0.75, 1.25)), preserve_range=True, **each)),
    ]
    neighbours = settings.slice_context > 0
    ignored = (0,) if settings.flat or neighbours else None
    low_resolution = sometimes(
        0.25, SimulateLowResolutionTransform((0.5, 1), False, True, ignore_axes=ignored, p_per_channel=0.5)
    )
    gammas = [sometimes(0.1, gamma(inverted=1)), sometimes(0.3, gamma(inverted=0))]
    parts = generalizing.parts_of(settings.preset)
    if "intensity" in parts:
        brightness_and_contrast, gammas = generalizing.brightness_and_contrast(), generalizing.gammas()
    if "resolution" in parts:
        low_resolution = generalizing.low_resolution(ignored)
    transforms = [
        *([generalizing.bias_field(neighbours)] if "bias_field" in parts else []),
        sometimes(0.1, GaussianNoiseTransform((0, 0.1), p_per_channel=1, synchronize_channels=True)),
        # nnU-Net times convolution against FFT while it trains; the choice changes the last bits, so it is
        # fixed here.
        sometimes(
            0.2,
            GaussianBlurTransform(_BlurSigma(neighbours), False, False, p_per_channel=0.5, benchmark=False),
        ),
        *brightness_and_contrast,
        low_resolution,
        *gammas,
    ]
    return [_OneImage(2 * settings.slice_context + 1, transforms)] if neighbours else transforms


def _finishing(settings: AugmentationSettings) -> list[BasicTransform]:
    """What validation patches go through too: the label outside becomes background, then regions."""
    transforms: list[BasicTransform] = [RemoveLabelTansform(OUTSIDE, 0)]
    if settings.regions is not None:
        regions = [*settings.regions, *([] if settings.ignore_index is None else [(settings.ignore_index,)])]
        transforms.append(ConvertSegmentationToRegionsTransform(regions, channel_in_seg=0))
    return transforms


def _transforms(settings: AugmentationSettings) -> list[BasicTransform]:
    transforms: list[BasicTransform] = []
    if settings.preset != "none":
        transforms += _spatial(settings)
        if settings.preset != "light":
            transforms += _intensity(settings)
        if settings.mirror_axes:
            transforms.append(MirrorTransform(settings.mirror_axes))
        if settings.masked_channels:
            transforms.append(MaskImageTransform(list(settings.masked_channels), 0, 0))
    return transforms + _finishing(settings)


class Augmentation:
    """Callable (image, label, seed) -> (image, target); picklable, so that worker processes can hold it."""

    def __init__(self, settings: AugmentationSettings) -> None:
        self.settings = settings
        self.transforms = _transforms(settings)

    def __call__(self, image: np.ndarray, label: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
        """Transform one sample.

        Args:
            image: (C, *initial_size) float32, with `slice_context` (C * slices, *initial_size) as
                `preprocessing.boxes.read_slice` orders them; is not kept.
            label: (*initial_size) class indices, -1 outside.
            seed: all that the result depends on besides the arrays.

        Returns:
            Image (C, *patch_size) float32; target (1, *patch_size) int16 class indices, or (R[+1],
            *patch_size) bool.
        """
        data = self._transform(image, label, None, seed)
        return data["image"], data["segmentation"]

    def with_soft(
        self, image: np.ndarray, label: np.ndarray, soft: np.ndarray, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Transform one sample and the soft labels of the same box; image and target are those of a call.

        Args:
            soft: (K, *initial_size) float32, 0 where it is unknown. It is turned, scaled and mirrored with
                the image, interpolated linearly; no transform of intensities touches it.

        Returns:
            Image and target as from a call; soft labels (K, *patch_size) float32.
        """
        data = self._transform(image, label, soft, seed)
        return data["image"], data["segmentation"], data["regression_target"]

    def _transform(
        self, image: np.ndarray, label: np.ndarray, soft: np.ndarray | None, seed: int
    ) -> dict[str, Tensor]:
        with fixed_random(seed), torch.no_grad():
            data = {
                "image": torch.from_numpy(np.ascontiguousarray(image, np.float32)),
                "segmentation": torch.from_numpy(np.ascontiguousarray(label[None], np.int16)),
            }
            if soft is not None:
                # Batchgenerators' word for dense targets that are interpolated like the image.
                data["regression_target"] = torch.from_numpy(np.ascontiguousarray(soft, np.float32))
            for transform in self.transforms:
                data = transform(**data)
        return {name: value.contiguous() for name, value in data.items()}
