"""Falls and differences of a shift suite: paired, by patient, simultaneous."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samunet.data.cases import Case
from samunet.evaluation.shifts import Condition
from samunet.pipeline.shift_suite.files import METRICS, describe, draw_curves, save_csv
from samunet.pipeline.shift_suite.result import Outcome, SuiteResult

CONDITIONS = (
    Condition(kind="clean", severity=0, seed=0),
    Condition(kind="noise", severity=1, seed=0),
    Condition(kind="noise", severity=5, seed=0),
)


def outcome(condition: Condition, dice: np.ndarray) -> Outcome:
    return Outcome(
        condition=condition,
        foreground_mean={name: float(np.nanmean(dice)) for name in METRICS},
        dice=dice[:, None],
        present=np.ones((len(dice), 1), bool),
    )


def suite(losses: dict[str, float], units: list[int] | None = None) -> SuiteResult:
    """Methods on the same 12 cases, which differ much; what each loses by severity differs little."""
    rng = np.random.default_rng(5)
    hardness = rng.uniform(0.4, 0.9, 12)
    outcomes = {
        name: tuple(outcome(c, hardness - c.severity * loss + rng.normal(0, 0.005, 12)) for c in CONDITIONS)
        for name, loss in losses.items()
    }
    return SuiteResult(
        dataset="Dataset901_Tiny3D",
        fold=0,
        seed=0,
        cases=tuple(Case(f"case_{number:02d}", (), None) for number in range(12)),
        outcomes=outcomes,
        units=np.array(list(range(12)) if units is None else units),
    )


def test_a_loss_is_paired_with_the_clean_image() -> None:
    """Between cases Dice varies by 0.15; of the loss that says nothing."""
    found = suite({"2d_unet": 0.02}).fall("2d_unet", "noise", 5)
    assert found.value == pytest.approx(-0.1, abs=0.005)
    assert 0 < found.high - found.low < 0.02
    clean = suite({"2d_unet": 0.02}).fall("2d_unet", "clean", 0)
    assert (clean.value, clean.low, clean.high) == (0, 0, 0)
    assert math.isnan(suite({"2d_unet": 0.02}).fall("2d_unet", "blur", 1).value)


def test_methods_are_told_apart_by_what_they_keep() -> None:
    result = suite({"2d_desam": 0.02, "2d_unet": 0.04})
    (pair,) = result.between
    assert (pair.first, pair.second) == ("2d_desam", "2d_unet")
    assert pair.changed.value == pytest.approx(0.06, abs=0.005)  # (1 + 5) / 2 severities of 0.02
    assert pair.kept.low > 0.05
    told = describe(result, "Dice")
    assert "2d_desam - 2d_unet: +" in told
    assert "too narrow" not in told
    assert suite({"2d_unet": 0.02}).between == ()


def test_objects_that_are_made_up_count_in_their_condition_alone() -> None:
    """A class that a reference lacks has a score where it is predicted, and there it is 0."""
    held = np.arange(20) < 10
    rng = np.random.default_rng(3)
    good = np.where(held, rng.uniform(0.75, 0.85, 20), np.nan)
    spoilt = np.where(held, good, 0.0)

    def outcomes(*dice: np.ndarray) -> tuple[Outcome, ...]:
        made = []
        for condition, values in zip(CONDITIONS, dice):
            one = outcome(condition, values)
            made.append(dataclasses.replace(one, present=held[:, None]))
        return tuple(made)

    result = dataclasses.replace(
        suite({"a": 0.0}),
        cases=tuple(Case(f"case_{number:02d}", (), None) for number in range(20)),
        outcomes={"once": outcomes(good, good, spoilt), "always": outcomes(good, spoilt, spoilt)},
        units=np.arange(20),
    )
    (pair,) = result.between
    ahead = result.mean_shifted("once", "Dice") - result.mean_shifted("always", "Dice")
    assert ahead == pytest.approx(0.2, abs=0.01)
    assert pair.changed.value == pytest.approx(ahead)
    assert pair.kept.value == pytest.approx(ahead)
    assert pair.changed.low < ahead < pair.changed.high


def test_missed_objects_stand_beside_distances(tmp_path: Path) -> None:
    """The last object found may be a near one: the mean distance falls while objects are lost."""
    result = suite({"2d_unet": 0.02})
    clean, mild, strong = result.outcomes["2d_unet"]
    outcomes = {"2d_unet": (clean, mild, dataclasses.replace(strong, missed=9))}
    lossy = dataclasses.replace(result, outcomes=outcomes)
    told = "2d_unet misses 0 objects on clean images and up to 9 (noise 5): they have no HD95"
    assert told in describe(lossy, "HD95")
    assert "misses" not in describe(lossy, "Dice")
    save_csv(lossy, tmp_path / "shifts.csv")
    rows = list(csv.DictReader((tmp_path / "shifts.csv").open()))
    assert [row["missed"] for row in rows] == ["0", "0", "9"]
    draw_curves(lossy, "HD95", tmp_path / "lossy.png")
    draw_curves(result, "HD95", tmp_path / "whole.png")
    assert (tmp_path / "lossy.png").read_bytes() != (tmp_path / "whole.png").read_bytes()


def test_scans_of_a_patient_are_drawn_together() -> None:
    three = suite({"2d_desam": 0.02, "2d_unet": 0.04}, [number // 4 for number in range(12)])
    assert "too narrow: a class is held by 3" in describe(three, "Dice")
    one = suite({"2d_desam": 0.02, "2d_unet": 0.04}, [0] * 12)
    assert math.isnan(one.fall("2d_unet", "noise", 1).low)
    assert math.isnan(one.between[0].changed.low)
    assert "nan" not in describe(one, "Dice")


def test_patients_without_the_class_make_no_interval_wider() -> None:
    """Twelve cases, three of which hold it."""
    result = suite({"2d_desam": 0.02, "2d_unet": 0.04})
    held = np.arange(12) < 3
    few = dataclasses.replace(
        result,
        outcomes={
            name: tuple(
                dataclasses.replace(o, dice=np.where(held[:, None], o.dice, np.nan), present=held[:, None])
                for o in outcomes
            )
            for name, outcomes in result.outcomes.items()
        },
    )
    assert few.fewest_units == 3
    assert "draw patients (too narrow: a class is held by 3):" in describe(few, "Dice")


def test_curves_have_bands(tmp_path: Path) -> None:
    """Lines and bands are drawn with a single patient too."""
    for name, units in (("many", None), ("one", [0] * 12)):
        draw_curves(suite({"2d_desam": 0.02, "2d_unet": 0.04}, units), "Dice", tmp_path / f"{name}.png")
    pictures = [Image.open(tmp_path / f"{name}.png") for name in ("many", "one")]
    assert len({picture.tobytes() for picture in pictures}) == 2
