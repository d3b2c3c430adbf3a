from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import CLASSES, REGIONS

from samunet.data.geometry import Geometry
from samunet.data.groups import Origins
from samunet.data.labels import LabelSet
from samunet.data.readers import write_segmentation
from samunet.evaluation.case_scores import score_pair
from samunet.inference.postprocessing import Postprocessing, Rule
from samunet.pipeline.selection.component_counts import score_rules
from samunet.pipeline.selection.postprocessing import Learned, learn_postprocessing
from samunet.pipeline.selection.verdicts import Units

GEOMETRY = Geometry(shape=(5, 14, 16), spacing_mm=(3.0, 1.0, 1.0))
Change = Callable[[np.ndarray, np.random.Generator], None]


def truth(rng: np.random.Generator) -> np.ndarray:
    array = np.zeros(GEOMETRY.shape, np.uint8)
    y = rng.integers(1, 4)
    array[1:4, y : y + 7, 1:6] = 1
    array[1:4, y : y + 3, 6:9] = 2
    return array


def write_pairs(
    folder: Path,
    change: Change,
    number: int = 12,
    label: Callable[..., np.ndarray] = truth,
    ending: str = ".nii.gz",
) -> list[tuple[Path, Path]]:
    pairs = []
    for i in range(number):
        rng = np.random.default_rng([17, i])
        reference = label(rng)
        prediction = reference.copy()
        change(prediction, rng)
        files = folder / "labels" / f"c{i}{ending}", folder / "predictions" / f"c{i}{ending}"
        for file, array in zip(files, (reference, prediction)):
            write_segmentation(array, GEOMETRY, file)
        pairs.append(files)
    return pairs


def learn(pairs: list[tuple[Path, Path]], labels: LabelSet = CLASSES) -> Learned:
    names = [pair[0].name for pair in pairs]
    return learn_postprocessing(pairs, labels, Units.of(names, Origins()), seed=1)


@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
def test_the_counted_dice_is_that_of_applied_rules(tmp_path: Path, labels: LabelSet) -> None:
    """Every rule is applied for real, written, and scored by the evaluator."""

    def noise(array: np.ndarray, rng: np.random.Generator) -> None:
        array[rng.random(array.shape) < 0.08] = 0
        array[rng.random(array.shape) < 0.04] = 1
        array[rng.random(array.shape) < 0.04] = 2

    def label(rng: np.random.Generator) -> np.ndarray:
        array = truth(rng)
        if labels.ignore is not None:
            array[:, :3] = labels.ignore
        return array

    (pair,) = write_pairs(tmp_path, noise, number=1, label=label)
    tried = [
        rule
        for target in (None, *labels.foreground)
        for rule in (
            Rule(kind="minimum_size", target=target, minimum_mm3=4),
            Rule(kind="minimum_size", target=target, minimum_mm3=40),
            Rule(kind="largest_component", target=target),
            *([Rule(kind="fill_holes", target=target)] if target else []),
        )
    ]
    settled = [Rule(kind="minimum_size", target=None, minimum_mm3=7)]
    counted = score_rules(pair, labels, settled, tried)
    changed = 0
    for number, rule in enumerate(tried):
        from samunet.data.readers import read_label

        prediction, geometry = read_label(pair[1])
        applied = Postprocessing(labels=labels, rules=(*settled, rule)).apply(prediction, geometry)
        write_segmentation(applied, geometry, tmp_path / "applied.nii.gz")
        scores = score_pair((pair[0], tmp_path / "applied.nii.gz"), labels, 2.0).metrics
        expected = [scores[name]["Dice"] for name in labels.foreground]
        assert counted.after[number] == pytest.approx(expected, abs=1e-12), rule
        changed += not np.allclose(counted.after[number], counted.before)
    assert changed > len(tried) // 2
    assert counted.present.all()


def test_what_helps_is_learned(tmp_path: Path) -> None:
    """Stray voxels of the organ far away, in every case; the lesion is right."""

    def stray(array: np.ndarray, rng: np.random.Generator) -> None:
        array[0, 12:14, 12 : 12 + int(rng.integers(2, 5))] = 1

    learned = learn(write_pairs(tmp_path, stray))
    assert len(learned.rules) == 1
    step = next(step for step in learned.steps if step.accepted)
    assert step.rule == learned.rules[0]
    assert step.rule.kind == "minimum_size"  # the gentlest that removes them
    assert step.rule.minimum_mm3 is not None
    assert step.rule.minimum_mm3 > 4 * 2 * 3
    assert step.gain.low is not None
    assert step.gain.low > 0
    applied = Postprocessing(labels=CLASSES, rules=learned.rules)
    assert applied.faults() == []


def test_what_hurts_is_not_learned(tmp_path: Path) -> None:
    """The organ has two parts, as kidneys do: keeping the largest would cost one."""

    def pair_of_organs(rng: np.random.Generator) -> np.ndarray:
        array = np.zeros(GEOMETRY.shape, np.uint8)
        array[1:4, 1:6, 1:5] = array[1:4, 1:6, 10:14] = 1
        array[1:4, 9:12, 4 : 4 + int(rng.integers(3, 6))] = 2
        return array

    def lose(array: np.ndarray, rng: np.random.Generator) -> None:
        array[1, :, 1:3] = 0

    learned = learn(write_pairs(tmp_path, lose, label=pair_of_organs))
    assert learned.rules == ()
    assert len(learned.steps) == 5  # components of all, of two classes, and their holes
    assert not any(step.accepted for step in learned.steps)


def test_what_helps_one_case_is_luck(tmp_path: Path) -> None:
    calls = []

    def stray_once(array: np.ndarray, rng: np.random.Generator) -> None:
        calls.append(1)
        if len(calls) == 1:
            array[0, 12:14, 12:16] = 1

    learned = learn(write_pairs(tmp_path, stray_once))
    assert learned.rules == ()
    best = max(step.gain.value for step in learned.steps)
    assert best >= 0


def test_holes_are_learned_and_two_steps_follow_each_other(tmp_path: Path) -> None:
    def hollow_and_stray(array: np.ndarray, rng: np.random.Generator) -> None:
        inner = np.argwhere(array == 1)[:, 1].min() + 2
        array[2, inner : inner + 2, 3] = 0
        array[0, 12:14, 12:14] = 2

    learned = learn(write_pairs(tmp_path, hollow_and_stray))
    assert {(rule.kind, rule.target) for rule in learned.rules} >= {("fill_holes", "organ")}
    assert len(learned.rules) == 2


def test_regions_settle_one_step_after_the_other(tmp_path: Path) -> None:
    def stray(array: np.ndarray, rng: np.random.Generator) -> None:
        array[0, 12:14, 10 : 10 + int(rng.integers(3, 6))] = 2

    learned = learn(write_pairs(tmp_path, stray), REGIONS)
    # Removing it from the foreground mends both regions; nothing is left for the others.
    assert len(learned.rules) == 1


def test_a_rule_may_not_hurt_another_class(tmp_path: Path) -> None:
    """The lesion lies apart from the organ: the largest component of the foreground would remove it."""

    def apart(rng: np.random.Generator) -> np.ndarray:
        array = np.zeros(GEOMETRY.shape, np.uint8)
        array[1:4, 1:8, 1:8] = 1
        array[2, 12, 12] = 2
        return array

    def stray(array: np.ndarray, rng: np.random.Generator) -> None:
        array[0:2, 10:14, 0 : int(rng.integers(3, 7))] = 1

    learned = learn(write_pairs(tmp_path, stray, label=apart))
    assert [rule.target for rule in learned.rules] == ["organ"]


def test_too_few_patients_learn_nothing(tmp_path: Path) -> None:
    def stray(array: np.ndarray, rng: np.random.Generator) -> None:
        array[0, 12:14, 12:16] = 1

    assert learn(write_pairs(tmp_path, stray, number=5)) == Learned(rules=(), steps=())


def test_cases_without_any_class_are_no_patients_to_learn_on(tmp_path: Path) -> None:
    """Twelve cases, four of which hold a class: their models are not compared either."""
    numbers = itertools.count()

    def mostly_empty(rng: np.random.Generator) -> np.ndarray:
        return truth(rng) if next(numbers) < 4 else np.zeros(GEOMETRY.shape, np.uint8)

    def stray(array: np.ndarray, rng: np.random.Generator) -> None:
        array[0, 12:14, 12:16] = 1

    assert learn(write_pairs(tmp_path, stray, label=mostly_empty)) == Learned(rules=(), steps=())


def test_labels_without_spacing_files_are_measured_with_their_predictions(tmp_path: Path) -> None:
    """As they are scored, and as the rules are applied to new predictions: a voxel has 3 mm3, not 1."""

    def stray(array: np.ndarray, rng: np.random.Generator) -> None:
        array[0, 12:14, 12 : 12 + int(rng.integers(2, 5))] = 1

    pairs = write_pairs(tmp_path, stray, ending=".tif")
    for reference, _ in pairs:
        reference.with_suffix(".json").unlink()
    tried = [Rule(kind="minimum_size", target="organ", minimum_mm3=size) for size in (8.0, 25.0)]
    for pair in pairs[:3]:
        gained = score_rules(pair, CLASSES, [], tried)
        assert gained.after[0, 0] == gained.before[0]  # 4 voxels at least
        assert gained.after[1, 0] == 1  # 8 at most
    (rule,) = learn(pairs).rules
    assert rule.minimum_mm3 is not None
    assert rule.minimum_mm3 > 4 * 2 * 3
