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
        by_name = {name: np.array([_number(value)]) for name, value in values.items()}
        return float(_predict(self.intercept, self.columns, by_name, 1)[0])

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
    if num_patients(rows) < FEWEST_PATIENTS:
        return None
    table = _Table.of(rows)
    guesses = _cross_fit(table, distances)
    excess = guesses - table.dice
    margin = conformal_quantile(
        [float(excess[table.patients == patient].max()) for patient in np.unique(table.patients)], coverage
    )
    if margin is None:
        return None
    intercept, columns = _fit(table, distances)
    varied = guesses.std() > 1e-9 and table.dice.std() > 1e-9
    return QualityModel(
        intercept=intercept,
        columns=columns,
        margin=max(0.0, margin),
        cross_fit_error=float(np.abs(excess).mean()),
        cross_fit_correlation=float(np.corrcoef(guesses, table.dice)[0, 1]) if varied else None,
    )


def conformal_quantile(scores: Sequence[float], coverage: float) -> float | None:
    """The ceil((n + 1) coverage)-th smallest of n scores; None when there are too few.

    A further score that is exchangeable with them lies at or below it with at least that probability (Lei et
    al., JASA 2018, section 2).
    """
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)  # 0.9 * 10 is 9, whatever floating point says
    return sorted(scores)[rank - 1] if rank <= len(scores) else None


@dataclass(frozen=True)
class _Table:
    """Rows as arrays: values (n, features) with NaN where not defined, Dice and patients (n,)."""

    names: tuple[str, ...]
    values: np.ndarray
    dice: np.ndarray
    patients: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[QualityRow]) -> _Table:
        names = tuple(sorted({name for row in rows for name in row.values}))
        values = [[_number(row.values.get(name)) for name in names] for row in rows]
        return cls(
            names,
            np.array(values, float).reshape(len(rows), len(names)),
            np.array([row.dice for row in rows]),
            np.array([row.patient for row in rows]),
        )

    def where(self, chosen: np.ndarray) -> _Table:
        return _Table(self.names, self.values[chosen], self.dice[chosen], self.patients[chosen])


def _cross_fit(table: _Table, distances: Sequence[str]) -> np.ndarray:
    """Predicted Dice per row from a fit without that row's patient."""
    guesses = np.empty(len(table.dice))
    for patient in np.unique(table.patients):
        own = table.patients == patient
        intercept, columns = _fit(table.where(~own), distances)
        by_name = dict(zip(table.names, table.values[own].T))
        guesses[own] = _predict(intercept, columns, by_name, int(own.sum()))
    return guesses


def _fit(table: _Table, distances: Sequence[str]) -> tuple[float, tuple[Column, ...]]:
    """Ridge in which every patient weighs alike; standardised columns, the intercept is not shrunk."""
    _, member, counts = np.unique(table.patients, return_inverse=True, return_counts=True)
    shares = 1 / counts[member]
    columns, entered = [], []
    for name, values in zip(table.names, table.values.T):
        column = _column(name, values, shares, name in distances)
        if column is not None:
            columns.append(column)
            entered.append(_standardised(column, values))
    matrix = np.array(entered).reshape(len(columns), len(shares))
    middle = float(np.average(table.dice, weights=shares))
    offset = matrix @ shares / shares.sum()  # not 0 where values are missing
    centred = matrix - offset[:, None]
    gram = (centred * shares) @ centred.T + PENALTY * np.eye(len(columns))
    weights = np.linalg.solve(gram, (centred * shares) @ (table.dice - middle))
    fitted = tuple(replace(column, weight=float(w)) for column, w in zip(columns, weights))
    return middle - float(offset @ weights), fitted


def _column(name: str, values: np.ndarray, shares: np.ndarray, is_distance: bool) -> Column | None:
    """The column without its weight; None where nothing is defined or nothing varies."""
    known = ~np.isnan(values)
    if known.sum() < 2:
        return None
    numbers, shares = values[known], shares[known]
    centre = spread = None
    if is_distance:
        centre, spread = _moments(numbers, shares)
        if spread <= 0:
            return None
        numbers = np.abs(numbers - centre) / spread
    mean, scale = _moments(numbers, shares)
    if scale <= 1e-9 * max(1.0, abs(mean)):
        return None
    low, high = float(numbers.min()), float(numbers.max())
    return Column(
        name=name, centre=centre, spread=spread, low=low, high=high, mean=mean, scale=scale, weight=0.0
    )


def _moments(numbers: np.ndarray, shares: np.ndarray) -> tuple[float, float]:
    mean = float(np.average(numbers, weights=shares))
    return mean, math.sqrt(float(np.average((numbers - mean) ** 2, weights=shares)))


def _standardised(column: Column, values: np.ndarray) -> np.ndarray:
    """What enters the regression, 0 where a value is not defined (NaN)."""
    if column.centre is not None and column.spread is not None:
        values = np.abs(values - column.centre) / column.spread
    entered = (values.clip(column.low, column.high) - column.mean) / column.scale
    return np.where(np.isnan(entered), 0.0, entered)


def _predict(
    intercept: float, columns: Sequence[Column], by_name: Mapping[str, np.ndarray], number: int
) -> np.ndarray:
    """Predicted Dice (number,) from values (number,) of each feature."""
    total = np.full(number, intercept)
    for column in columns:
        if column.name in by_name:
            total += column.weight * _standardised(column, by_name[column.name])
    return total.clip(0.0, 1.0)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
