from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from samunet.evaluation.metrics import (
    OverlapCounts,
    assd,
    count_overlap,
    dice,
    hd95,
    iou,
    surface_dice,
    surface_distances,
    surface_metrics,
    surface_voxels,
    volume_error_ml,
    volume_error_percent,
)

SPACING = (3.5, 0.75, 1.25)


def brute_surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Voxels with a face neighbour outside the mask or outside the array; flat axes have no neighbours."""
    surface = []
    for voxel in zip(*np.nonzero(mask)):
        for axis, step in product(range(mask.ndim), (-1, 1)):
            if mask.shape[axis] == 1:
                continue
            other = list(voxel)
            other[axis] += step
            if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                surface.append(voxel)
                break
    return surface


def brute_distances(one: np.ndarray, two: np.ndarray) -> tuple[list[float], list[float]]:
    points = [np.array(brute_surface(mask)) * SPACING for mask in (one, two)]
    table = np.sqrt(((points[0][:, None] - points[1][None]) ** 2).sum(-1))
    return table.min(1).tolist(), table.min(0).tolist()


def random_masks(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=shape)
    return noise > 0.3, noise + rng.normal(0, 0.7, shape) > 0.4


@pytest.mark.parametrize("shape", [(5, 7, 6), (1, 9, 8), (2, 3, 12)])
@pytest.mark.parametrize("seed", range(4))
def test_distances_equal_brute_force(seed: int, shape: tuple[int, ...]) -> None:
    reference, prediction = random_masks(seed, shape)
    assert sorted(zip(*np.nonzero(surface_voxels(reference)))) == sorted(brute_surface(reference))
    forth, back = brute_distances(reference, prediction)
    distances = surface_distances(reference, prediction, SPACING)
    assert distances is not None
    np.testing.assert_allclose(np.sort(distances.from_reference), np.sort(forth), rtol=1e-12)
    np.testing.assert_allclose(np.sort(distances.from_prediction), np.sort(back), rtol=1e-12)
    assert hd95(distances) == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)))
    assert assd(distances) == pytest.approx(np.mean(forth + back))
    for tolerance in (0.0, 1.0, 3.5):
        expected = np.mean([d <= tolerance for d in forth + back])
        assert surface_dice(distances, tolerance) == pytest.approx(expected)


def test_overlap_equals_brute_force() -> None:
    reference, prediction = random_masks(9, (4, 5, 6))
    pairs = list(zip(reference.ravel().tolist(), prediction.ravel().tolist()))
    expected = [pairs.count(pair) for pair in ((True, True), (False, True), (True, False), (False, False))]
    counts = count_overlap(reference, prediction)
    assert [counts.tp, counts.fp, counts.fn, counts.tn] == expected
    assert dice(reference, prediction) == 2 * counts.tp / (reference.sum() + prediction.sum())
    assert iou(reference, prediction) == counts.tp / (reference | prediction).sum()


def test_a_shifted_block() -> None:
    """A block of 4 x 4 x 4 voxels moved by two voxels of 0.75 mm along y."""
    reference = np.zeros((8, 12, 8), bool)
    reference[2:6, 2:6, 2:6] = True
    prediction = np.roll(reference, 2, axis=1)
    distances = surface_distances(reference, prediction, SPACING)
    assert distances is not None
    assert distances.from_reference.max() == pytest.approx(1.5)
    assert surface_dice(distances, 1.5) == 1.0
    assert dice(reference, prediction) == 0.5


def test_the_same_mask_has_no_distance() -> None:
    mask = random_masks(1, (4, 5, 6))[0]
    assert surface_metrics(mask, mask, SPACING, 0.0) == {"SurfaceDice": 1.0, "HD95": 0.0, "ASSD": 0.0}


def test_empty_masks() -> None:
    full, empty = np.ones((2, 3, 4), bool), np.zeros((2, 3, 4), bool)
    assert math.isnan(dice(empty, empty))
    assert math.isnan(iou(empty, empty))
    assert dice(full, empty) == 0
    both = surface_metrics(empty, empty, SPACING, 1.0)
    assert all(math.isnan(value) for value in both.values())
    for one in (surface_metrics(full, empty, SPACING, 1.0), surface_metrics(empty, full, SPACING, 1.0)):
        assert one["SurfaceDice"] == 0
        assert math.isnan(one["HD95"])
        assert math.isnan(one["ASSD"])


def test_volume_errors() -> None:
    counts = OverlapCounts(tp=800, fp=400, fn=200, tn=5)
    assert volume_error_ml(counts, (2.0, 1.0, 0.5)) == pytest.approx(0.2)
    assert volume_error_percent(counts) == pytest.approx(20.0)
    assert math.isnan(volume_error_percent(OverlapCounts(tp=0, fp=3, fn=0, tn=1)))
    assert math.isnan(volume_error_ml(OverlapCounts(tp=0, fp=0, fn=0, tn=1), SPACING))


@pytest.mark.parametrize("spacing", [0.4, float(np.float32(0.4)), 0.1, 0.2, float(np.float32(2 / 3))])
def test_at_exactly_the_tolerance_rounding_has_no_say(spacing: float) -> None:
    steps = round(2 / spacing)
    for start, distance, expected in [(s, d, float(d == 0)) for s in range(1, 8) for d in (0, 1)]:
        one, other = np.zeros((2, 1, 3, 40), bool)
        one[0, 1, start] = other[0, 1, start + steps + distance] = True
        assert surface_metrics(one, other, (1.0, spacing, spacing), 2.0)["SurfaceDice"] == expected
