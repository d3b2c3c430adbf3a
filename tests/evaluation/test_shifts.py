"""Synthetic shifts: severity 0 is the identity, more severe is further away, shape and masks stay."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from samunet.errors import SamunetError
from samunet.evaluation.shifts import (
    SEVERITIES,
    SHIFTS,
    Condition,
    Place,
    check_condition,
    ghosting,
    masked_background,
    shifted,
    smooth_field,
)

SPACING = (5.0, 1.0, 1.0)


def picture(seed: int = 0) -> np.ndarray:
    """Two channels with structure at several scales and a masked-out rim."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:40, :36]
    base = 100 + 60 * np.sin(rows / 5) * np.cos(columns / 4) + 10 * rng.normal(size=(2, 6, 40, 36))
    base[:, :, :3] = 0
    return np.clip(base, 0, None).astype(np.float32)


def distance(kind: str, severity: int) -> float:
    image, condition = picture(), Condition(kind=kind, severity=severity)
    changed = shifted(image, SPACING, "a", condition)
    return float(np.sqrt(np.mean((changed - image) ** 2)))


@pytest.mark.parametrize("kind", SHIFTS)
def test_severities_are_ordered_and_start_at_the_image(kind: str) -> None:
    assert distance(kind, 0) == 0
    distances = [distance(kind, severity) for severity in SEVERITIES]
    assert distances[0] > 0
    assert distances == sorted(distances)
    assert distances[-1] > 1.3 * distances[0]


@pytest.mark.parametrize("kind", SHIFTS)
def test_memory_of_a_change(kind: str) -> None:
    """A CT of 600 slices has 157 million voxels; 24 bytes for each are 3.8 GB. Measured: 8 to 21.4."""
    image = np.random.default_rng(0).normal(size=(1, 32, 96, 96)).astype(np.float32)
    tracemalloc.start()
    shifted(image, SPACING, "a", Condition(kind=kind, severity=3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * image.size


@pytest.mark.parametrize("kind", SHIFTS)
def test_shape_type_and_masked_background_stay(kind: str) -> None:
    image = picture()
    before = image.copy()
    changed = shifted(image, SPACING, "a", Condition(kind=kind, severity=4))
    assert changed.shape == image.shape
    assert changed.dtype == np.float32
    assert np.isfinite(changed).all()
    assert not changed[:, :, :3].any()
    assert np.array_equal(image, before)
    slice_alone = shifted(image[:, :1], (999.0, 1.0, 1.0), "a", Condition(kind=kind, severity=4))
    assert slice_alone.shape == (2, 1, 40, 36)


def test_a_dark_voxel_inside_the_patient_is_no_background() -> None:
    """Air in the bowel is exactly 0 in many scans; after blurring it must not stand out as a black speck."""
    image = picture()
    image[:, :, 20, 18] = 0
    background = masked_background(image)
    assert background[:, :3].all()
    assert not background[:, 20, 18].any()
    blurred = shifted(image, SPACING, "a", Condition(kind="blur", severity=5))
    assert (blurred[:, :, 20, 18] > 0).all()
    assert not masked_background(image - 1).any()  # an image with negative values has no such background


@pytest.mark.parametrize("kind", SHIFTS)
def test_draws_follow_from_seed_and_case(kind: str) -> None:
    image, condition = picture(), Condition(kind=kind, severity=3, seed=5)
    first = shifted(image, SPACING, "a", condition)
    assert np.array_equal(first, shifted(image, SPACING, "a", condition))
    if kind in ("bias_field", "noise"):
        assert not np.array_equal(first, shifted(image, SPACING, "b", condition))
        assert not np.array_equal(
            first, shifted(image, SPACING, "a", Condition(kind=kind, severity=3, seed=6))
        )


def test_scaling_the_image_scales_the_change() -> None:
    """Severities are relative to the range, so units do not matter."""
    image = picture()
    for kind in SHIFTS:
        condition = Condition(kind=kind, severity=2)
        once, thousand = (shifted(factor * image, SPACING, "a", condition) for factor in (1, 1000))
        np.testing.assert_allclose(thousand, 1000 * once, rtol=1e-3, atol=1)


def test_thick_slices_keep_their_resolution() -> None:
    """A change along z alone is neither averaged nor interpolated where slices are five times as thick."""
    image = np.repeat(np.arange(1, 9, dtype=np.float32), 30 * 30).reshape(1, 8, 30, 30)
    condition = Condition(kind="resolution", severity=5)
    np.testing.assert_allclose(shifted(image, SPACING, "a", condition), image, rtol=1e-5)
    assert np.abs(shifted(image, (1, 1, 1), "a", condition) - image).max() > 0.3


@pytest.mark.parametrize("kind", ["blur", "resolution"])
def test_the_thickness_of_a_single_slice_is_no_matter(kind: str) -> None:
    """In the file of a slice it is often a placeholder, finer than the pixels."""
    image = picture()[:, :1]
    condition = Condition(kind=kind, severity=3)
    for thickness in (0.1, 1.0, 9.0):
        changed = shifted(image, (thickness, 2.5, 2.5), "a", condition)
        np.testing.assert_array_equal(changed, shifted(image, (2.5, 2.5, 2.5), "a", condition))
    assert np.abs(changed - image).max() > 0.1


def test_colours_stay_colours() -> None:
    """Normalisation refuses others, and a camera saturates."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 1, 20, 20)).astype(np.float32)
    for kind in SHIFTS:
        condition = Condition(kind=kind, severity=5)
        free = shifted(colours, (1, 1, 1), "a", condition)
        kept = shifted(colours, (1, 1, 1), "a", condition, colours=(0, 2))
        np.testing.assert_array_equal(kept[[0, 2]], free[[0, 2]].clip(0, 255))
        np.testing.assert_array_equal(kept[1], free[1])
    assert free.min() >= 0
    assert shifted(colours, (1, 1, 1), "a", Condition(kind="noise", severity=5)).max() > 255


def test_ghosts_are_a_modulation_of_k_space() -> None:
    image = picture()[:1, :, 3:37].astype(np.float64)
    image -= np.percentile(image, 0.5)
    strength = 0.4
    lines = np.fft.fft(image, axis=2)
    lines[:, :, 1::2] *= 1 - strength
    place = Place(spacing_mm=SPACING, strength=strength, rng=np.random.default_rng(0))
    np.testing.assert_allclose(ghosting(image, place), np.fft.ifft(lines, axis=2).real, atol=1e-3)


def turned(image: np.ndarray, axis: int) -> tuple[np.ndarray, tuple[float, ...]]:
    """A volume (C, slices, rows, columns) of thick slices and its spacing, with the slices along `axis`."""
    spacing = np.insert(SPACING[1:], axis, SPACING[0])
    return np.moveaxis(image, 1, axis + 1), tuple(spacing.tolist())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_ghosts_stay_in_their_slice(axis: int) -> None:
    """Phases are encoded within a slice, whichever axis of the file is the one across slices."""
    image = np.full((1, 6, 40, 36), 5.0, np.float32)
    image[:, 2] = picture()[:1, 2]
    volume, spacing = turned(image, axis)
    changed = np.moveaxis(shifted(volume, spacing, "a", Condition(kind="ghosting", severity=5)), axis + 1, 1)
    assert np.abs(changed - image)[:, 2].max() > 10
    np.testing.assert_allclose(np.delete(changed, 2, 1), 5, rtol=1e-6)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("kind", SHIFTS)
def test_the_order_of_the_axes_is_no_matter(kind: str, axis: int) -> None:
    """A file may list its slices along any of them; the change is that of the slices."""
    image, condition = picture(), Condition(kind=kind, severity=4)
    volume, spacing = turned(image, axis)
    changed = shifted(volume, spacing, "a", condition)
    expected, _ = turned(shifted(image, SPACING, "a", condition), axis)
    np.testing.assert_array_equal(changed, expected)
    assert not np.array_equal(changed, volume)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_background_is_masked_slice_by_slice(axis: int) -> None:
    """Air in the bowel of the outermost slice lies at the volume's border, not at the edge of its slice."""
    image = picture()
    image[:, 0, 20:22, 18:20] = 0
    volume, spacing = turned(image, axis)
    blurred = shifted(volume, spacing, "a", Condition(kind="blur", severity=5))
    changed = np.moveaxis(blurred, axis + 1, 1)
    assert (changed[:, 0, 20:22, 18:20] > 0).all()
    assert not changed[:, :, :3].any()


@pytest.mark.parametrize(("rows", "exact"), [(34, True), (33, False)])
def test_ghosts_of_an_odd_number_of_lines_are_near(rows: int, exact: bool) -> None:
    """Half of the field of view lies between two voxels then."""
    image = picture()[:1, :, 3 : 3 + rows].astype(np.float64)
    image -= np.percentile(image, 0.5)
    place = Place(spacing_mm=SPACING, strength=0.4, rng=np.random.default_rng(0))
    lines, numbers = np.fft.fft(image, axis=2), np.fft.fftfreq(rows, 1 / rows).round()
    lines[:, :, numbers % 2 != 0] *= 1 - place.strength
    error = (ghosting(image, place) - np.fft.ifft(lines, axis=2).real) / np.ptp(image)
    assert (np.abs(error).max() < 1e-6) == exact
    assert np.sqrt(np.mean(error**2)) < 0.02


def test_a_field_is_smooth_and_scaled() -> None:
    field = smooth_field((5, 40, 50), np.random.default_rng(1))
    assert np.abs(field).max() == pytest.approx(1)
    assert field.mean() == pytest.approx(0, abs=1e-9)
    assert np.abs(np.diff(field, axis=2)).max() < 0.3


def test_a_field_changes_the_middle_too() -> None:
    """A polynomial by itself is large in the corners of the volume alone: some 0.35 from end to end here."""
    spans = []
    for seed in range(10):
        middle = smooth_field((9, 40, 40), np.random.default_rng(seed))[4, 10:30, 10:30]
        spans.append(middle.max() - middle.min())
    assert np.mean(spans) > 0.8


def test_unknown_conditions_are_named() -> None:
    with pytest.raises(SamunetError, match="Did you mean ghosting"):
        check_condition("ghostng", 1)
    with pytest.raises(SamunetError, match="1 to 5"):
        check_condition("blur", 6)
