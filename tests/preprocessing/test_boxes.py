from __future__ import annotations

import numpy as np
import pytest

from samunet.preprocessing.boxes import read_box, read_slice, tile_grid


@pytest.mark.parametrize(
    ("lower", "shape"),
    [((0, 0), (4, 5)), ((-2, 1), (3, 3)), ((2, 3), (5, 9)), ((-3, -3), (12, 12)), ((9, 9), (2, 2))],
)
def test_box_equals_padding_everything(lower: tuple[int, int], shape: tuple[int, int]) -> None:
    array = np.arange(40).reshape(2, 4, 5)
    padded = np.full((2, 40, 40), -1)
    padded[:, 15:19, 15:20] = array
    wanted = padded[:, 15 + lower[0] : 15 + lower[0] + shape[0], 15 + lower[1] : 15 + lower[1] + shape[1]]
    assert np.array_equal(read_box(array, lower, shape, -1), wanted)


def test_box_is_a_copy() -> None:
    array = np.zeros((3, 3))
    read_box(array, (0, 0), (3, 3), 0)[:] = 1
    assert array.sum() == 0


def test_slice_with_context_repeats_the_outermost_slices() -> None:
    image = np.arange(2 * 4).reshape(2, 4, 1, 1) * np.ones((1, 1, 3, 3))
    assert read_slice(image, (2, 0, 0), (3, 3), 0)[:, 0, 0].tolist() == [2, 6]
    assert read_slice(image, (2, 0, 0), (3, 3), 1)[:, 0, 0].tolist() == [1, 2, 3, 5, 6, 7]
    assert read_slice(image, (0, 0, 0), (3, 3), 2)[:, 0, 0].tolist() == [0, 0, 0, 1, 2, 4, 4, 4, 5, 6]
    assert read_slice(image, (3, -1, 1), (4, 2), 1).shape == (6, 4, 2)


def test_tiles_cover_and_small_axes_are_centred() -> None:
    assert tile_grid((30, 20), (30, 20)) == [(0, 0)]
    assert tile_grid((10, 7), (16, 8)) == [(-3, 0)]
    assert tile_grid((10, 20), (16, 8)) == [(-3, 0), (-3, 6), (-3, 12)]
