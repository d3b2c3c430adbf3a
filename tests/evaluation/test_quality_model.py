"""Predicted Dice and its bound: coverage on exchangeable patients, patients as units, too few of them."""

from __future__ import annotations

import numpy as np
import pytest

from samunet.evaluation.quality_model import QualityRow, conformal_quantile, fit_quality
from samunet.records import from_data, to_data


def draw(rng: np.random.Generator, patients: int, cases: int = 1, noisy: float = 1.0) -> list[QualityRow]:
    """Cases whose Dice follows three of five features, with a patient's part and skewed noise."""
    rows = []
    for patient in range(patients):
        shift = rng.normal(0, 0.05)
        for case in range(cases):
            x = rng.normal(size=5)
            noise = rng.normal(0, 0.05) * (1 + abs(x[0])) - (rng.random() < 0.1) * rng.exponential(0.2)
            dice = float(
                np.clip(0.8 + 0.05 * x[0] - 0.04 * abs(x[1]) - 0.03 * x[2] + noisy * (shift + noise), 0, 1)
            )
            values: dict[str, float | None] = {f"x{i}": float(v) for i, v in enumerate(x)}
            rows.append(QualityRow(case=f"{patient}_{case}", patient=str(patient), dice=dice, values=values))
    return rows


def covered(patients: int, cases: int, repeats: int) -> tuple[float, float]:
    """Share of new cases above their bound, and of new patients with all of their cases above it."""
    rng = np.random.default_rng(6)
    kept = []
    for _ in range(repeats):
        model = fit_quality(draw(rng, patients, cases), ("x1",))
        assert model is not None
        new = draw(rng, 20, cases)
        kept.append([row.dice >= model.lower_bound(row.values) for row in new])
    table = np.array(kept).reshape(-1, cases)
    return float(table.mean()), float(table.all(1).mean())


def test_the_bound_covers_nine_in_ten_new_patients() -> None:
    by_case, by_patient = covered(patients=19, cases=1, repeats=40)
    # 18 of 20 by exchangeability. The mean of 40 calibrations scatters by sqrt(0.9 * 0.1 / 20 / 40) from the
    # calibration sets and as much again from 20 new patients each: sd 0.016 in all; three of these.
    assert by_case == by_patient
    assert abs(by_patient - 0.9) < 0.048


def test_cases_of_one_patient_are_covered_together() -> None:
    by_case, by_patient = covered(patients=19, cases=3, repeats=25)
    assert by_patient > 0.9 - 0.06  # three sd of 25 calibrations
    assert by_case > by_patient + 0.02


def test_many_cases_of_a_patient_weigh_no_more_than_one() -> None:
    """Copies of one patient's case change neither the regression nor the margin."""
    rows = draw(np.random.default_rng(0), 12)
    once = fit_quality(rows)
    copied = fit_quality([*rows, *[rows[3]] * 50])
    assert once is not None
    assert copied is not None
    values = rows[0].values
    assert copied.predict(values) == pytest.approx(once.predict(values), abs=1e-9)
    assert copied.margin == pytest.approx(once.margin, abs=1e-9)


def test_under_ten_patients_there_is_no_bound() -> None:
    rng = np.random.default_rng(0)
    assert fit_quality(draw(rng, 9, cases=5)) is None
    assert fit_quality(draw(rng, 10)) is not None
    assert fit_quality(draw(rng, 18), coverage=0.95) is None  # the 19th of 18 scores
    assert fit_quality(draw(rng, 19), coverage=0.95) is not None


@pytest.mark.parametrize(
    ("number", "coverage", "expected"),
    [(8, 0.9, None), (9, 0.9, 9), (10, 0.9, 10), (19, 0.9, 18), (9, 0.5, 5)],
)
def test_quantile_golden(number: int, coverage: float, expected: float | None) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, number + 1)).tolist()
    assert conformal_quantile(scores, coverage) == expected


def test_the_prediction_follows_the_features_and_stays_in_its_range() -> None:
    model = fit_quality(draw(np.random.default_rng(1), 100, noisy=0.1), ("x1",))
    assert model is not None
    weights = {column.name: column.weight for column in model.columns}
    assert weights["x0"] > 0.02
    assert weights["x1"] < -0.01
    assert weights["x2"] < -0.01
    assert abs(weights["x4"]) < 0.01
    calm: dict[str, float | None] = dict.fromkeys(weights, 0.0)
    assert model.predict({**calm, "x1": 2.0}) == pytest.approx(model.predict({**calm, "x1": -2.0}), abs=0.02)
    # Far outside it says no more than at the edge of what it has seen.
    assert model.predict({**calm, "x0": 1e9}) == model.predict({**calm, "x0": 1e3})
    assert 0 <= model.lower_bound(calm) <= model.predict(calm) <= 1
    assert 0 <= model.predict({}) <= 1


def test_constant_and_undefined_features_are_left_out() -> None:
    rows = [
        QualityRow(
            case=str(i), patient=str(i), dice=0.5 + i / 100, values={"same": 1.0, "none": None, "x": i}
        )
        for i in range(12)
    ]
    model = fit_quality(rows, ("same",))
    assert model is not None
    assert [column.name for column in model.columns] == ["x"]
    alike = fit_quality([QualityRow(case=r.case, patient=r.patient, dice=0.7, values={}) for r in rows])
    assert alike is not None
    assert alike.predict({}) == pytest.approx(0.7)
    assert alike.margin == pytest.approx(0, abs=1e-12)
    assert alike.cross_fit_correlation is None


def test_the_model_is_a_record() -> None:
    model = fit_quality(draw(np.random.default_rng(0), 12), ("x1",))
    assert from_data(type(model), to_data(model)) == model
