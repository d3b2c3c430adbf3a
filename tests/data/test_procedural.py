"""The generator: the same picture for the same numbers, and masks that fit what is painted."""

from __future__ import annotations

import numpy as np
import pytest

from samunet.data.procedural import ProceduralSettings, generate
from samunet.data.procedural_fields import blur, smooth_field
from samunet.data.scene import Scene

SMALL = ProceduralSettings(size=96)


def test_a_picture_depends_on_seed_and_index_only() -> None:
    first, scene = generate(3, 11, SMALL)
    generate(3, 12, SMALL)
    np.random.seed(1)
    again, same = generate(3, 11, SMALL)
    assert np.array_equal(first, again)
    assert np.array_equal(scene.labels, same.labels)
    assert not np.array_equal(first, generate(3, 12, SMALL)[0])
    assert not np.array_equal(first, generate(4, 11, SMALL)[0])


def test_pictures_and_objects_fit_together() -> None:
    for index in range(40):
        picture, scene = generate(0, index, SMALL)
        assert picture.dtype == np.uint8
        assert picture.shape == (3, 96, 96)
        assert picture.std() > 2
        assert scene.count >= 1
        for part in np.flatnonzero(scene.usable):
            visible, whole = scene.mask(part, whole=False), scene.mask(part)
            assert visible.sum() >= 12
            assert whole[visible].all()


def test_borders_of_objects_are_seen_in_the_picture() -> None:
    """Over many pictures grey jumps more across borders of the masks than within parts."""
    ratios = []
    for index in range(40):
        picture, scene = generate(1, index, SMALL)
        grey = blur(picture.mean(0).astype(np.float32), 1.0, 1.0)
        step = np.abs(grey[:, 2:] - grey[:, :-2])
        border = scene.labels[:, 2:] != scene.labels[:, :-2]
        ratios.append(step[border].mean() / step[~border].mean())
    assert np.median(ratios) > 1.7


def test_kinds_of_pictures_vary() -> None:
    pictures = [generate(2, index, SMALL) for index in range(60)]
    coloured = np.mean([np.ptp(picture.astype(int), axis=0).max() > 0 for picture, _ in pictures])
    assert 0.1 < coloured < 0.6
    counts = [scene.count for _, scene in pictures]
    assert min(counts) <= 3
    assert max(counts) >= 30
    means = [picture.mean() for picture, _ in pictures]
    assert np.std(means) > 20


def test_whole_objects_hold_what_lies_in_them() -> None:
    labels = np.array([[0, 1, 1], [1, 2, 1], [1, 3, 1]], np.int16)
    scene = Scene(labels, np.array([0, 0, 1, 2], np.int16), np.array([True, True, True, True]))
    assert scene.count == 3
    assert not scene.usable[0]
    assert scene.mask(1).sum() == 8
    assert scene.mask(1, whole=False).sum() == 6
    assert scene.mask(2).sum() == 2


@pytest.mark.parametrize("cells", [1, 5, 40])
def test_smooth_fields_are_smooth_and_of_unit_size(cells: int) -> None:
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field(rng, 80, cells) for _ in range(50)])
    assert 0.6 < fields.std() < 1.6
    assert np.abs(np.diff(fields, axis=1)).max() < 0.12 * cells + 0.1


def test_blur_keeps_constants() -> None:
    assert np.allclose(blur(np.full((40, 40), 3.0, np.float32), 2.0, 1.3), 3.0, atol=1e-5)
