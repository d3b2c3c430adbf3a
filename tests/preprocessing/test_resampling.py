from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from samunet.data.geometry import resampled_shape
from samunet.preprocessing.resampling import resample_image, resample_label, separate_axis


@pytest.mark.parametrize(
    ("old", "new", "axis"),
    [
        ((3, 0.76, 0.76), (1.6, 0.76, 0.76), 0),
        ((1.6, 0.76, 0.76), (3, 0.76, 0.76), 0),
        ((2.2, 0.76, 0.76), (1.6, 0.76, 0.76), None),
        ((0.24, 1.25, 1.25), (1, 1, 1), None),
        ((0.24, 1.25, 1.25), (0.24, 1.25, 1.25), None),
        ((2.28, 0.76, 0.76), (1, 1, 1), None),
        ((1, 4, 1), (1, 1, 1), 1),
    ],
)
def test_separate_axis_golden(old: tuple, new: tuple, axis: int | None) -> None:
    assert separate_axis(old, new) == axis


def test_new_shape_golden() -> None:
    assert resampled_shape((147, 512, 512), (3, 0.76, 0.76), (1.6, 0.76, 0.76)) == (276, 512, 512)
    assert resampled_shape((5, 7), (1, 1), (2, 2)) == (2, 4)


def reference(volume: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """What skimage's resize does, by SciPy alone."""
    factors = [n / m for n, m in zip(shape, volume.shape)]
    zoomed = ndimage.zoom(volume.astype(float), factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(zoomed, volume.min(), volume.max())


SHAPES = [
    ((8, 30, 26), (13, 41, 20)),
    ((30, 12, 9), (11, 25, 9)),
    ((5, 7, 3), (2, 9, 90)),
    ((10, 10, 10), (10, 15, 10)),
    ((1, 20, 150), (1, 31, 170)),
]


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
def test_image_equals_spline_zoom(shape: tuple, new_shape: tuple, order: int) -> None:
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = resample_image(volume[None], new_shape, (1, 1, 1), (1, 1, 1), order)[0]
    np.testing.assert_allclose(ours, reference(volume, new_shape, order), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_coarse_axis_is_nearest_and_planes_are_splines(axis: int) -> None:
    rng = np.random.default_rng(1)
    shape, new_shape, spacing = [20, 24, 28], [26, 20, 30], [1.0, 1.0, 1.0]
    shape[axis], new_shape[axis], spacing[axis] = 6, 11, 5.0
    volume = rng.normal(size=shape).astype(np.float32)
    ours = resample_image(volume[None], new_shape, spacing, (1, 1, 1))[0]
    source = np.floor(6 / 11 * (np.arange(11) + 0.5)).astype(int)
    plane_shape = tuple(n for a, n in enumerate(new_shape) if a != axis)
    for row, plane in enumerate(source):
        expected = reference(volume.take(plane, axis), plane_shape, 3)
        np.testing.assert_allclose(ours.take(row, axis), expected, atol=1e-5)


def test_constant_stays_constant_and_equal_shape_is_untouched() -> None:
    image = np.full((2, 6, 7, 8), 3.25, np.float32)
    resampled = resample_image(image, (9, 5, 8), (2, 1, 1), (1, 1, 1))
    np.testing.assert_allclose(resampled, 3.25, atol=1e-6)
    assert resample_image(image, (6, 7, 8), (2, 1, 1), (1, 1, 1)) is image


def vote_of_one_hots(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Largest linearly interpolated one-hot; near ties (1e-5) are left out as -99."""
    values = np.unique(label)
    scores = np.stack([reference((label == v).astype(float), shape, 1) for v in values])
    top = np.sort(scores, axis=0)
    winner = values[scores.argmax(axis=0)]
    winner[top[-1] - top[-2] < 1e-4] = -99
    return winner


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES[:3])
def test_label_is_the_vote_of_its_one_hots(shape: tuple, new_shape: tuple) -> None:
    label = np.random.default_rng(2).integers(-1, 4, shape).astype(np.int16)
    ours = resample_label(label, new_shape, (1, 1, 1), (1, 1, 1))
    expected = vote_of_one_hots(label, new_shape)
    decided = expected != -99
    assert decided.mean() > 0.8
    assert ours.dtype == label.dtype
    np.testing.assert_array_equal(ours[decided], expected[decided])


def test_label_ties_go_to_the_nearest_neighbour() -> None:
    label = np.array([[[3, 1]]], np.int16)
    # Three samples over two voxels: the middle one lies halfway; halves round up, to voxel 1.
    np.testing.assert_array_equal(resample_label(label, (1, 1, 3), (1, 1, 1), (1, 1, 1)), [[[3, 1, 1]]])


def test_label_across_a_coarse_axis_is_nearest() -> None:
    label = np.random.default_rng(3).integers(0, 3, (4, 9, 9)).astype(np.int16)
    ours = resample_label(label, (8, 9, 9), (6, 1, 1), (3, 1, 1))
    np.testing.assert_array_equal(ours, label.repeat(2, axis=0))
