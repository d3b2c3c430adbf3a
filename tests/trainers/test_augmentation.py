from __future__ import annotations

import pickle
import typing
from dataclasses import replace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform

from samunet.planning.methods import AugmentationPreset
from samunet.trainers import augmentation, generalizing
from samunet.trainers.augmentation import Augmentation, AugmentationSettings, fixed_random

VOLUME = AugmentationSettings(patch_size=(40, 56, 40), mirror_axes=(0, 1, 2))
FLAT = AugmentationSettings(patch_size=(14, 48, 48), mirror_axes=(0, 1, 2), masked_channels=(0,))
SLICES = AugmentationSettings(patch_size=(56, 40), mirror_axes=(0, 1), regions=((1, 2), (2,)), ignore_index=3)
CASES = ((VOLUME, 1), (FLAT, 2), (SLICES, 2))

# Mean, deviation and one voxel of the image and the sum of the target that nnunetv2 2.8.1's own pipeline
# gives on
# the same input with the same seeds (its choice between convolution and FFT switched off): case, seed,
# values.
NNUNET = [
    (0, 3, 0.005436, 1.004735, -0.727436, 104704),
    (0, 7, 0.001736, 0.541687, -0.502729, 103283),
    (0, 11, -0.001195, 0.542552, -0.491628, 111618),
    (1, 3, 6.9e-05, 0.928308, 0.0, 34144),
    (1, 7, -0.001537, 0.542136, 0.373941, 38544),
    (1, 11, -0.006203, 0.647078, -0.227205, 32316),
    (2, 3, -0.016602, 0.971247, 0.715717, 1344),
    (2, 7, -0.000162, 0.583558, 0.174533, 1819),
    (2, 11, 0.008715, 0.659368, -0.525293, 1659),
    (2, 19, -0.008108, 0.719233, -0.402753, 2426),
]


def sample(case: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    settings, channels = CASES[case]
    rng = np.random.default_rng(100 * case + seed)
    size = settings.initial_size
    image = rng.normal(size=(channels, *size)).astype(np.float32)
    label = rng.integers(-1, 4, size=tuple((n + 7) // 8 for n in size)).astype(np.int16)
    for axis in range(label.ndim):
        label = np.repeat(label, 8, axis)
    return image, label[tuple(slice(0, n) for n in size)]


@pytest.mark.parametrize(("case", "seed", "mean", "deviation", "voxel", "total"), NNUNET)
def test_equals_nnunet(case: int, seed: int, mean: float, deviation: float, voxel: float, total: int) -> None:
    image, target = Augmentation(CASES[case][0])(*sample(case, seed), seed)
    flat = image.flatten()
    assert flat.mean().item() == pytest.approx(mean, abs=2e-5)
    assert flat.std(unbiased=False).item() == pytest.approx(deviation, abs=2e-5)
    assert flat[1234 % len(flat)].item() == pytest.approx(voxel, abs=2e-5)
    assert int(target.int().sum()) == total


@pytest.mark.parametrize(
    ("patch", "size"),
    [
        ((128, 128, 128), (205, 205, 205)),
        ((512, 512), (602, 602)),
        ((256, 160), (339, 188)),
        ((40, 56, 40), (73, 80, 64)),
        ((80, 160, 128), (175, 238, 177)),
        ((14, 224, 256), (14, 301, 301)),
        ((33, 57, 71), (67, 99, 91)),
    ],
)
def test_loaded_size_is_nnunets(patch: tuple[int, ...], size: tuple[int, ...]) -> None:
    assert AugmentationSettings(patch_size=patch).initial_size == size


@pytest.mark.parametrize("preset", typing.get_args(AugmentationPreset))
@pytest.mark.parametrize("patch", [(32, 24), (4, 32, 32), (2, 16, 16), (16, 16, 12)])
def test_shapes_and_types(preset: str, patch: tuple[int, ...]) -> None:
    settings = AugmentationSettings(patch_size=patch, mirror_axes=(1,), preset=preset)  # type: ignore[arg-type]
    pipeline = pickle.loads(pickle.dumps(Augmentation(settings)))
    rng = np.random.default_rng(0)
    for seed in range(10):
        image = rng.normal(size=(3, *settings.initial_size)).astype(np.float32)
        label = rng.integers(-1, 3, settings.initial_size).astype(np.int16)
        out, target = pipeline(image, label, seed)
        assert out.shape == (3, *patch)
        assert target.shape == (1, *patch)
        assert out.dtype == torch.float32
        assert torch.isfinite(out).all()
        assert set(target.unique().tolist()) <= {0, 1, 2}


def test_without_augmentation_nothing_changes() -> None:
    settings = AugmentationSettings(patch_size=(6, 5), mirror_axes=(0, 1), preset="none")
    image = np.random.default_rng(0).normal(size=(1, 6, 5)).astype(np.float32)
    label = np.arange(30).reshape(6, 5).astype(np.int16) - 1
    out, target = Augmentation(settings)(image, label, 1)
    assert np.array_equal(out.numpy(), image)
    assert np.array_equal(target.numpy()[0], np.maximum(label, 0))


def test_a_sample_follows_from_its_seed_and_leaves_global_generators_alone() -> None:
    pipeline = Augmentation(SLICES)
    before = (np.random.get_state()[1].copy(), torch.random.get_rng_state())  # type: ignore[index,union-attr]
    first = pipeline(*sample(2, 5), 5)
    np.random.rand(3)
    torch.rand(3)
    with fixed_random(1):
        second = pipeline(*sample(2, 5), 5)
    other = pipeline(*sample(2, 5), 6)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not torch.equal(first[0], other[0])
    with fixed_random(9):
        np.random.rand()
    assert before[0].shape == np.random.get_state()[1].shape  # type: ignore[index,union-attr]


def test_fixed_random_restores() -> None:
    np.random.seed(3)
    torch.manual_seed(3)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(3)
    torch.manual_seed(3)
    with fixed_random(17):
        np.random.rand(5)
        torch.rand(5)
    assert (np.random.rand(), torch.rand(1)) == expected


def test_only_allowed_axes_are_mirrored() -> None:
    settings = AugmentationSettings(patch_size=(8, 8), mirror_axes=(1,), preset="light")
    pipeline = Augmentation(settings)
    image = np.zeros((1, *settings.initial_size), np.float32)
    image[:, : image.shape[1] // 2] = 1  # tells up from down, not left from right
    upright = 0
    for seed in range(60):
        out, _ = pipeline(image, np.zeros(settings.initial_size, np.int16), seed)
        upright += bool(out[0, :3].mean() > out[0, -3:].mean())
    assert upright > 45  # rotations by up to 180 degrees occur in one of five


@pytest.mark.parametrize("preset", ["light", "generalize", *(f"generalize_{p}" for p in generalizing.PARTS)])
@pytest.mark.parametrize("patch", [(16, 16), (4, 16, 16), (12, 12, 12)], ids=["2D", "flat", "3D"])
def test_presets_differ_from_full_in_intensity_alone(preset: str, patch: tuple[int, ...]) -> None:
    """Turning and scaling are drawn first, so the same seed gives the same target. Mirroring is drawn last,
    after what the preset draws: then the targets are the same but for the axes mirrored."""
    axes = tuple(range(len(patch)))
    plain = AugmentationSettings(patch_size=patch)
    rng, changed, mirrored = np.random.default_rng(0), 0, 0
    image = rng.normal(size=(2, *plain.initial_size)).astype(np.float32)
    for seed in range(8):
        label = rng.integers(0, 3, plain.initial_size).astype(np.int16)
        usual, other, again = (
            Augmentation(replace(plain, preset=name))(image.copy(), label, seed)  # type: ignore[arg-type]
            for name in ("full", preset, preset)
        )
        assert torch.equal(other[0], again[0])
        assert torch.equal(other[1], usual[1])
        changed += not torch.equal(usual[0], other[0])
        both = replace(plain, preset=preset, mirror_axes=axes)  # type: ignore[arg-type]
        _, target = Augmentation(both)(image.copy(), label, seed)
        views = [usual[1].flip([a + 1 for a in axes if chosen >> a & 1]) for chosen in range(2 ** len(axes))]
        assert any(torch.equal(target, view) for view in views)
        mirrored += not torch.equal(target, usual[1])
    assert changed >= 2
    assert mirrored >= 2


@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize("preset", typing.get_args(AugmentationPreset))
def test_neighbouring_slices_are_changed_alike(
    preset: str, context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are one image: what was alike stays so, whatever lies between; two image channels do not."""
    # Noise is each voxel's own, in neighbouring slices too.
    monkeypatch.setattr(
        augmentation, "GaussianNoiseTransform", lambda _, **each: GaussianNoiseTransform((0, 0), **each)
    )
    settings = AugmentationSettings(
        patch_size=(24, 20),
        mirror_axes=(0, 1),
        preset=preset,  # type: ignore[arg-type]
        slice_context=context,
    )
    pipeline, rng, own = Augmentation(settings), np.random.default_rng(0), 0
    for seed in range(30):
        slices = rng.normal(size=(2, 2 * context + 1, *settings.initial_size)).astype(np.float32)
        slices[:] = slices[:1, :1]
        slices[:, context] = rng.normal(size=settings.initial_size)
        label = rng.integers(0, 3, settings.initial_size).astype(np.int16)
        out, _ = pipeline(slices.reshape(-1, *settings.initial_size), label, seed)
        one, other = out.unflatten(0, (2, -1))
        for channel in (one, other):
            beside = [i for i in range(2 * context + 1) if i != context]
            torch.testing.assert_close(channel[beside], channel[:1].expand(2 * context, -1, -1))
            assert not torch.allclose(channel[context], channel[0])
        own += not torch.equal(one, other)
    assert (own > 5) == (preset not in ("none", "light"))


def test_a_bias_field_is_a_smooth_factor_above_the_air() -> None:
    image = torch.full((2, 20, 30), 3.0)
    image[:, 5:15, 5:25] = 4.0
    image[:, 0, 0] = -1.0
    with fixed_random(3):
        changed = generalizing.BiasFieldTransform()(image=image.clone())["image"]
    factor = ((changed + 1) / (image + 1))[:, 1:]
    assert changed[:, 0, 0].tolist() == [-1.0, -1.0]
    assert factor.min() >= np.exp(-generalizing.FIELD_STRENGTH) - 1e-5
    assert factor.max() <= np.exp(generalizing.FIELD_STRENGTH) + 1e-5
    assert factor.std() > 0.01
    assert factor.diff(dim=1).abs().max() < 0.1  # neighbours: the bump is half the axis wide or more
    assert not torch.equal(changed[0], changed[1])


def test_short_axes_keep_two_voxels() -> None:
    transform = generalizing.low_resolution(None)
    for seed in range(30):
        with fixed_random(seed):
            image = transform(image=torch.randn(1, 2, 3, 40))["image"]
        assert image.shape == (1, 2, 3, 40)
        assert torch.isfinite(image).all()
