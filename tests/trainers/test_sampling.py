from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import PHASE

from samunet.trainers.sampling import (
    TRAIN,
    VAL,
    Batching,
    BoxSampler,
    Position,
    SampleKey,
    batch_keys,
    sample_generator,
)

# Bounds per axis and forced boxes around the voxels (0, 0, 0), the last one and (z//2, y//3, x//2), computed
# once with nnunetv2 2.8.1's data loader: load, patch, shape, bounds, boxes.
NNUNET = [
    (
        (1, 65, 65),
        (1, 56, 40),
        (35, 50, 35),
        [(0, 34), (-8, -7), (-15, -15)],
        [[0, -8, -15], [34, 17, 2], [17, -8, -15]],
    ),
    (
        (73, 80, 64),
        (40, 56, 40),
        (36, 50, 35),
        [(-19, -18), (-15, -15), (-15, -14)],
        [[-19, -15, -15], [-1, 9, 2], [-18, -15, -15]],
    ),
    (
        (14, 301, 301),
        (14, 224, 256),
        (9, 232, 251),
        [(-3, -2), (-39, -30), (-25, -25)],
        [[-3, -39, -25], [1, 81, 100], [-3, -39, -25]],
    ),
    (
        (1, 339, 188),
        (1, 256, 160),
        (10, 300, 90),
        [(0, 9), (-42, 3), (-49, -49)],
        [[0, -42, -49], [9, 130, -5], [5, -42, -49]],
    ),
]


@pytest.mark.parametrize(("load", "patch", "shape", "bounds", "boxes"), NNUNET)
def test_boxes_are_nnunets(
    load: tuple[int, ...],
    patch: tuple[int, ...],
    shape: tuple[int, ...],
    bounds: list[tuple[int, int]],
    boxes: list[list[int]],
) -> None:
    sampler = BoxSampler(load_size=load, patch_size=patch)
    lowest, highest = sampler.bounds(shape)
    assert list(zip(lowest, highest)) == bounds
    voxels = [(0, 0, 0), tuple(n - 1 for n in shape), (shape[0] // 2, shape[1] // 3, shape[2] // 2)]
    rng = np.random.default_rng(0)
    for voxel, box in zip(voxels, boxes):
        assert list(sampler.draw(rng, shape, {"a": np.array([voxel])}, None, True)) == box
    drawn = np.array([sampler.draw(rng, shape, {}, None, False) for _ in range(2000)])
    assert drawn.min(0).tolist() == lowest
    assert drawn.max(0).tolist() == highest


def test_forced_class_is_uniform_over_those_present() -> None:
    sampler = BoxSampler(load_size=(1, 1, 1), patch_size=(1, 1, 1))
    locations = {
        "big": np.full((5000, 3), 1),
        "small": np.full((2, 3), 2),
        "absent": np.zeros((0, 3), int),
    }
    rng = np.random.default_rng(0)
    counts = Counter(sampler.draw(rng, (5, 5, 5), locations, None, True)[0] for _ in range(1000))
    assert set(counts) == {1, 2}
    assert 400 < counts[1] < 600


def test_ignore_label_centres_on_annotated_voxels() -> None:
    sampler = BoxSampler(load_size=(1, 3, 3), patch_size=(1, 3, 3), has_ignore=True)
    annotated = np.array([[4, 6, 6]])
    rng = np.random.default_rng(0)
    assert sampler.draw(rng, (9, 20, 20), {"a": np.array([[1, 2, 2]])}, annotated, False) == (4, 5, 5)
    assert sampler.draw(rng, (9, 20, 20), {"a": np.array([[1, 2, 2]])}, annotated, True) == (1, 1, 1)
    assert sampler.draw(rng, (9, 20, 20), {}, annotated, True) == (4, 5, 5)


def test_last_third_of_a_step_is_forced() -> None:
    forced = {b: [Batching(size=b, oversample=0.33).is_forced(n) for n in range(b)] for b in (2, 3, 12)}
    assert forced[2] == [False, True]
    assert forced[3] == [False, False, True]
    assert sum(forced[12]) == 4
    assert forced[12][-4:] == [True] * 4
    accumulated = [Batching(size=1, oversample=0.33).is_forced(n, 2) for n in range(4)]
    assert accumulated == [False, True, False, True]
    single = [Batching(size=1, oversample=0.33).is_forced(n) for n in range(6)]
    assert single == [False, False, True, False, False, True]
    assert not any(Batching(size=4, oversample=0.0).is_forced(n) for n in range(4))


def test_draws_depend_on_seed_fold_epoch_index_and_stream_alone() -> None:
    key = SampleKey(TRAIN, 3, 7, False)

    def draw(seed: int, fold: int | str, other: SampleKey) -> float:
        return float(sample_generator(seed, fold, other).random())

    same = draw(1, 0, key)
    assert draw(1, 0, key._replace(forced=True)) == same
    others = [
        draw(2, 0, key),
        draw(1, 1, key),
        draw(1, "all", key),
        draw(1, 0, key._replace(epoch=4)),
        draw(1, 0, key._replace(number=8)),
        draw(1, 0, key._replace(stream=VAL)),
    ]
    assert len({same, *others}) == 7


def test_keys_continue_anywhere() -> None:
    phases = [
        replace(PHASE, epochs=2, iterations=3, val_iterations=2, accumulate=2),
        replace(PHASE, epochs=1, iterations=4, val_iterations=1),
    ]
    batching = Batching(size=5, oversample=0.33)
    everything = list(batch_keys(phases, batching, Position()))
    assert len(everything) == 2 * (3 * 2 + 2) + 4 + 1
    assert [key.forced for key in everything[0]] == [False] * 5
    assert [key.forced for key in everything[1]] == [False] * 2 + [True] * 3
    assert [key.forced for key in everything[6]] == [False] * 3 + [True] * 2
    assert len({(k.stream, k.epoch, k.number) for batch in everything for k in batch}) == 5 * len(everything)
    rest = list(batch_keys(phases, batching, Position(epoch=1, iteration=2)))
    assert rest == everything[8 + 4 :]
    at_validation = list(batch_keys(phases, batching, Position(epoch=1, iteration=3)))
    assert at_validation == everything[8 + 6 :]
