"""Falls and differences of a shift suite: paired, by patient, simultaneous."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samunet.data.cases import Case
from samunet.evaluation.shifts import Condition
from samunet.pipeline.shift_suite.files import describe, draw_curves
from samunet.pipeline.shift_suite.result import Outcome, SuiteResult

CONDITIONS = (
    Condition(kind="clean", severity=0, seed=0),
    Condition(kind="noise", severity=1, seed=0),
    Condition(kind="noise", severity=5, seed=0),
)


def outcome(condition: Condition, dice: np.ndarray) -> Outcome:
    return Outcome(
        condition=condition,
        foreground_mean={name: float(np.nanmean(dice)) for name in ("Dice", "IoU", "HD95")},
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


def test_scans_of_a_patient_are_drawn_together() -> None:
    three = suite({"2d_desam": 0.02, "2d_unet": 0.04}, [number // 4 for number in range(12)])
    assert "too narrow: there are 3" in describe(three, "Dice")
    one = suite({"2d_desam": 0.02, "2d_unet": 0.04}, [0] * 12)
    assert math.isnan(one.fall("2d_unet", "noise", 1).low)
    assert math.isnan(one.between[0].changed.low)
    assert "nan" not in describe(one, "Dice")


def test_curves_have_bands(tmp_path: Path) -> None:
    """Lines and bands are drawn with a single patient too."""
    for name, units in (("many", None), ("one", [0] * 12)):
        draw_curves(suite({"2d_desam": 0.02, "2d_unet": 0.04}, units), "Dice", tmp_path / f"{name}.png")
    pictures = [Image.open(tmp_path / f"{name}.png") for name in ("many", "one")]
    assert len({picture.tobytes() for picture in pictures}) == 2
