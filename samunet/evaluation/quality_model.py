"""Predicted Dice with a lower bound: a small ridge regression and a conformal margin, by patient.

The regression is fitted to out-of-fold cases. Its errors for the margin come from regressions that never saw
the patient (leave one patient out), and each patient gives one score, that of the worst case: so the margin
answers for all cases of a new patient at once, and many cases of one patient count no more than one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

COVERAGE = 0.9
FEWEST_PATIENTS = 10
PENALTY = 10.0
"""Strength of the ridge, in patients: weights are halved where only ten patients speak for them."""


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """A case with a reference: its features (None or absent where not defined) and the Dice it came to."""

    case: str
    patient: str
    dice: float
    values: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Column:
    """How one feature enters the regression.

    Attributes:
        centre / spread: where not None, |value - centre| / spread enters instead of the value.
        low / high: what enters is clipped to what was seen: no extrapolation.
        mean / scale: what enters is standardised with these; a value that is not defined counts as the mean.
        weight: Dice per standard deviation.
    """

    name: str
    centre: float | None
    spread: float | None
    low: float
    high: float
    mean: float
    scale: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class QualityModel:
    """A fitted regression and its margin.

    Attributes:
        margin: lower bound = predicted Dice - margin, at least 0.
        cross_fit_error: mean absolute error on patients that the regression had not seen.
        cross_fit_correlation: of predicted and true Dice there; None where either is constant.
    """

    intercept: float
    columns: tuple[Column, ...]
    margin: float
    cross_fit_error: float
    cross_fit_correlation: float | None

    def predict(self, values: Mapping[str, float | None]) -> float:
        """Predicted Dice, 0 to 1."""
        return _predict(self.intercept, self.columns, values)

    def lower_bound(self, values: Mapping[str, float | None]) -> float:
        """Bound that the Dice is expected to keep."""
        return max(0.0, self.predict(values) - self.margin)


def num_patients(rows: Sequence[QualityRow]) -> int:
    """Different patients."""
    return len({row.patient for row in rows})


def fit_quality(
    rows: Sequence[QualityRow], distances: Sequence[str] = (), coverage: float = COVERAGE
) -> QualityModel | None:
    """Fit a class's quality model.

    Args:
        rows: out-of-fold cases that have the class in their prediction.
        distances: features of which the distance from the middle of the cases matters, not the value.
        coverage: share of new patients for whom the bound shall hold, above 0 and below 1.

    Returns:
        None when there are fewer than ten patients, or too few for that coverage.
    """
    assert 0 < coverage < 1
    patients = sorted({row.patient for row in rows})
    if len(patients) < FEWEST_PATIENTS:
        return None
    guesses = _cross_fit(rows, patients, distances)
    dice = np.array([row.dice for row in rows])
    worst = {patient: -math.inf for patient in patients}
    for row, excess in zip(rows, guesses - dice):
        worst[row.patient] = max(worst[row.patient], float(excess))
    margin = conformal_quantile(list(worst.values()), coverage)
    if margin is None:
        return None
    intercept, columns = _fit(rows, distances)
    varied = guesses.std() > 0 and dice.std() > 0
    return QualityModel(
        intercept=intercept,
        columns=columns,
        margin=max(0.0, margin),
        cross_fit_error=float(np.abs(guesses - dice).mean()),
        cross_fit_correlation=float(np.corrcoef(guesses, dice)[0, 1]) if varied else None,
    )


def conformal_quantile(scores: Sequence[float], coverage: float) -> float | None:
    """The ceil((n + 1) coverage)-th smallest of n scores; None when there are too few.

    A further score that is exchangeable with them lies at or below it with at least that probability (Lei et
    al., JASA 2018, section 2).
    """
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)  # 0.9 * 10 is 9, whatever floating point says
    return sorted(scores)[rank - 1] if rank <= len(scores) else None


def _cross_fit(rows: Sequence[QualityRow], patients: Sequence[str], distances: Sequence[str]) -> np.ndarray:
    """Predicted Dice per row from a fit without that row's patient."""
    guesses = np.empty(len(rows))
    for patient in patients:
        intercept, columns = _fit([row for row in rows if row.patient != patient], distances)
        for index, row in enumerate(rows):
            if row.patient == patient:
                guesses[index] = _predict(intercept, columns, row.values)
    return guesses


def _fit(rows: Sequence[QualityRow], distances: Sequence[str]) -> tuple[float, tuple[Column, ...]]:
    """Ridge in which every patient weighs alike; standardised columns, the intercept is not shrunk."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.patient] = counts.get(row.patient, 0) + 1
    shares = np.array([1 / counts[row.patient] for row in rows])
    columns = []
    for name in sorted({name for row in rows for name in row.values}):
        column = _column(name, [row.values.get(name) for row in rows], shares, name in distances)
        if column is not None:
            columns.append(column)
    table = np.array([[_standardised(c, row.values.get(c.name)) for c in columns] for row in rows])
    table = table.reshape(len(rows), len(columns))
    dice = np.array([row.dice for row in rows])
    middle = float(np.average(dice, weights=shares))
    offset = np.average(table, axis=0, weights=shares)  # not 0 where values are missing or weights uneven
    weighted = (table - offset).T * shares
    gram = weighted @ (table - offset) + PENALTY * np.eye(len(columns))
    weights = np.linalg.solve(gram, weighted @ (dice - middle))
    fitted = tuple(replace(c, weight=float(w)) for c, w in zip(columns, weights))
    return middle - float(offset @ weights), fitted


def _column(
    name: str, values: Sequence[float | None], shares: np.ndarray, is_distance: bool
) -> Column | None:
    """The column without its weight; None where nothing is defined or nothing varies."""
    known = np.array([value is not None for value in values])
    if known.sum() < 2:
        return None
    numbers = np.array([value for value in values if value is not None], float)
    centre = spread = None
    if is_distance:
        centre, spread = _moments(numbers, shares[known])
        if spread <= 0:
            return None
        numbers = np.abs(numbers - centre) / spread
    mean, scale = _moments(numbers, shares[known])
    if scale <= 1e-9 * max(1.0, abs(mean)):
        return None
    low, high = float(numbers.min()), float(numbers.max())
    return Column(
        name=name, centre=centre, spread=spread, low=low, high=high, mean=mean, scale=scale, weight=0.0
    )


def _moments(numbers: np.ndarray, shares: np.ndarray) -> tuple[float, float]:
    mean = float(np.average(numbers, weights=shares))
    return mean, math.sqrt(float(np.average((numbers - mean) ** 2, weights=shares)))


def _standardised(column: Column, value: float | None) -> float:
    if value is None:
        return 0.0
    if column.centre is not None and column.spread is not None:
        value = abs(value - column.centre) / column.spread
    return (min(max(value, column.low), column.high) - column.mean) / column.scale


def _predict(intercept: float, columns: Sequence[Column], values: Mapping[str, float | None]) -> float:
    total = intercept + sum(c.weight * _standardised(c, values.get(c.name)) for c in columns)
    return min(1.0, max(0.0, total))
