from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from samunet.data.geometry import (
    Box,
    Geometry,
    bounding_box,
    corners_mm,
    grid_differences,
    left_right_axis,
    nonzero_mask,
    resampled_shape,
)

SAGITTAL = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
GRID = Geometry(shape=(4, 5, 6), spacing_mm=(3.0, 1.0, 2.0), origin_mm=(10.0, 20.0, 30.0), direction=SAGITTAL)


def test_resampled_shape_rounds_half_to_even() -> None:
    assert resampled_shape((147, 512, 512), (3, 0.76, 0.76), (1.6, 0.76, 0.76)) == (276, 512, 512)
    assert resampled_shape((5, 7), (1, 1), (2, 2)) == (2, 4)


def test_a_thin_volume_keeps_a_slice() -> None:
    assert resampled_shape((2, 64, 64), (1.0, 1.0, 1.0), (5.0, 1.0, 1.0)) == (1, 64, 64)


def test_corners_follow_the_direction() -> None:
    corners = corners_mm(GRID)
    np.testing.assert_allclose(corners[0], GRID.origin_mm)
    np.testing.assert_allclose(corners[1], (10.0 - 9.0, 20.0, 30.0))  # three steps of 3 mm along z
    np.testing.assert_allclose(corners[4], (10.0, 20.0 + 10.0, 30.0))  # five steps of 2 mm along x


def test_equal_grids_and_rounded_headers_agree() -> None:
    noisy = tuple(d + 1e-7 for d in GRID.direction)
    assert grid_differences(GRID, dataclasses.replace(GRID, direction=noisy)) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"shape": (4, 5, 7)}, "shape"),
        ({"spacing_mm": (3.0, 1.1, 2.0)}, "spacing"),
        ({"origin_mm": (10.0, 20.0, 31.0)}, "origin"),
        ({"direction": (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)}, "direction"),
    ],
)
def test_differences_are_named(changes: dict[str, tuple[float, ...]], word: str) -> None:
    differences = grid_differences(GRID, dataclasses.replace(GRID, **changes))
    assert len(differences) == 1
    assert differences[0].startswith(word)


def test_the_left_right_axis_of_the_array() -> None:
    assert left_right_axis(Geometry(shape=(4, 5, 6), spacing_mm=(1.0, 1.0, 1.0))) == 2
    assert left_right_axis(GRID) == 0  # sagittal slices


def test_nonzero_box() -> None:
    image = np.zeros((2, 4, 6, 7))
    image[0, 1, 2:5, 2] = image[1, 2, 3, 3:6] = 1
    box = bounding_box(nonzero_mask(image))
    assert box == Box(lower=(1, 2, 2), upper=(3, 5, 6))
    assert image[(slice(None), *box.slices)].shape[1:] == box.shape
    assert bounding_box(np.zeros((3, 4), bool)) == Box(lower=(0, 0), upper=(3, 4))


def test_holes_belong_to_the_mask() -> None:
    image = np.ones((1, 5, 5, 5))
    image[0, 2, 2, 2] = 0
    image[0, 0] = 0
    mask = nonzero_mask(image)
    assert mask[2, 2, 2]
    assert not mask[0].any()
