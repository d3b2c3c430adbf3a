"""Paired bootstrap of mean scores: patients are drawn anew, all candidates are judged on the same draw.

The statistic is the evaluator's: the mean over the classes of the means over the cases in which a class has a
score. A class counts only if a (drawn) case is `present` in it. Where candidates are compared, these are the
cases whose reference holds the class, so all are judged on the same classes; one that is only predicted is
left out. The mean of one candidate alone (`mean_interval`) is that of summary.json, where such a class counts
with 0. The cases of a patient (group) are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 12345
FEWEST_UNITS = 6
"""Below six pairs no paired test without assumptions reaches 5 %: all five signs agree with p = 2/2^5; the
interval of a mean is too narrow."""
ROUNDING = 1e-12
"""Means that differ by less are equal: what is left is the order of summation."""
_CHUNK = 500


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; `low` and `high` are NaN where there is none (a single patient).

    Attributes:
        units: of a mean, patients that it stands on: of its rarest class.
    """

    value: float
    low: float
    high: float
    units: int | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether so few patients are behind it that it is too narrow, or none at all."""
        return self.units is not None and self.units < FEWEST_UNITS

    def in_points(self) -> str:
        """A difference of shares for the screen: `+5.0 [-2.3, +12.3]` points."""
        value, low, high = (100 * bound for bound in (self.value, self.low, self.high))
        return f"{value:+.1f}" if math.isnan(low) else f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of several candidates on the same cases.

    Attributes:
        values: (M, N, K) candidate x case x class, NaN where the score is not defined.
        present: bool (N, K), whether the case makes the class count: its reference holds it, say. A score is
            defined there.
        units: (N,) number of the patient of each case, 0 to U - 1; every one occurs.
    """

    values: np.ndarray
    present: np.ndarray
    units: np.ndarray

    def __post_init__(self) -> None:
        assert self.values.shape[1:] == self.present.shape, (self.values.shape, self.present.shape)
        assert self.units.shape == self.present.shape[:1], (self.units.shape, self.present.shape)
        assert not np.isnan(self.values[:, self.present]).any(), "a class that is there has a score"

    @property
    def num_units(self) -> int:
        return int(self.units.max()) + 1

    @property
    def held(self) -> np.ndarray:
        """Bool (U, K), which patients make which classes count."""
        found = np.zeros((self.num_units, self.present.shape[1]), bool)
        np.logical_or.at(found, self.units, self.present)
        return found

    @property
    def num_holders(self) -> int:
        """Patients that make any class count."""
        return int(self.held.any(axis=1).sum())

    def means(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Mean over the classes of the means over the cases.

        Args:
            weights: (B, N) how often each case is drawn; None takes each once.

        Returns:
            (B, M); NaN where no drawn case holds any class.
        """
        return mean_defined(self.class_means(weights), axis=-1)

    def class_means(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(B, M, K) means over the cases; NaN for classes that no drawn reference holds."""
        if weights is None:
            weights = np.ones((1, len(self.units)))
        candidates, cases, classes = self.values.shape
        flat = self.values.transpose(1, 0, 2).reshape(cases, -1)
        defined = ~np.isnan(flat)
        shape = (len(weights), candidates, classes)
        sums = (weights @ np.where(defined, flat, 0.0)).reshape(shape)
        counts = (weights @ defined.astype(float)).reshape(shape)
        drawn = (weights @ self.present.astype(float))[:, None] > 0
        return np.where(drawn, sums / np.maximum(counts, 1), np.nan)


def score_array(
    cases: Iterable[Mapping[str, Mapping[str, float]]], names: Collection[str], metric: str
) -> np.ndarray:
    """(cases, classes) of a metric, of each case's class -> metric -> value; NaN where it is not defined."""
    rows = [[scores[name][metric] for name in names] for scores in cases]
    return np.array(rows, float).reshape(-1, len(names))


def mean_defined(scores: Sequence[np.ndarray] | np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean along an axis over the scores that are defined; NaN where none is."""
    scores = np.asarray(scores)
    defined = ~np.isnan(scores)
    number = defined.sum(axis=axis)
    total = np.where(defined, scores, 0.0).sum(axis=axis)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Means of the candidates in the data and in the draws.

    Attributes:
        observed: (M,).
        replicates: (B, M).
        num_units: patients that make any class count.
        fewest_units: those of the rarest class that counts.
    """

    observed: np.ndarray
    replicates: np.ndarray
    num_units: int
    fewest_units: int

    @classmethod
    def draw(cls, table: ScoreTable, *, seed: int = SEED, resamples: int = RESAMPLES) -> Bootstrap:
        """Draw the patients with replacement, `resamples` times; the same seed gives the same draws."""
        generator, units = np.random.default_rng(seed), table.num_units
        parts = []
        for start in range(0, resamples, _CHUNK):
            times = drawn_times(generator, min(_CHUNK, resamples - start), units)
            parts.append(table.means(times[:, table.units]))
        replicates = np.concatenate(parts)
        kept = replicates[~np.isnan(replicates).any(axis=1)]
        of_class = table.held.sum(axis=0)
        return cls(
            observed=table.means()[0],
            replicates=kept,
            num_units=table.num_holders,
            fewest_units=int(of_class[of_class > 0].min(initial=units)),
        )

    def combined(self, shares: np.ndarray) -> Bootstrap:
        """Sums of the candidates' means, as over conditions or seeds, in the data and in the draws.

        The mean of what a candidate is in each condition is not the mean of each case's over the conditions:
        where a case has a score in some of them only, that case would count in those as if in all.

        Args:
            shares: (R, M) of each candidate in each of the R sums.
        """
        observed, replicates = shares @ self.observed, self.replicates @ shares.T
        return replace(self, observed=observed, replicates=replicates)

    def mean(self, candidate: int) -> Interval:
        """Mean score of a candidate with its percentile interval, expanded for few patients.

        The plain percentile interval is too narrow by sqrt((n - 1) / n) and by the ratio of normal to t
        quantiles; its tails are moved out by as much (Hesterberg 2015, The American Statistician 69(4),
        section 5.1, "expanded percentile interval"). The patients of the rarest class count: drawing the one
        patient that holds a class again and again says nothing of the next.
        """
        from scipy.special import ndtr, ndtri

        value, units = float(self.observed[candidate]), self.fewest_units
        if units < 2:
            return Interval(value, math.nan, math.nan, units)
        tail = ndtr(-_widening(units) * ndtri((1 + CONFIDENCE) / 2))
        low, high = np.quantile(self.replicates[:, candidate], (tail, 1 - tail))
        return Interval(value, float(low), float(high), units)

    def differences(self, pairs: Sequence[tuple[int, int]]) -> list[Interval]:
        """Differences `first - second` with intervals that hold all at once.

        Every difference gets `d +- c s`: s is its standard deviation over the draws, c the 95th percentile of
        the largest |d* - d| / s over all pairs (max-T; White 2000, Romano and Wolf 2005), widened as a t
        quantile widens a normal one for as few patients as hold the rarest class (two at least): of its
        share in the mean they are all that is known. Whatever is picked from the list afterwards, the best
        candidate included, keeps its 95 %.
        """
        if not pairs:
            return []
        first, second = np.array(pairs).T
        found = self.observed[first] - self.observed[second]
        if self.num_units < 2:
            return [Interval(float(d), math.nan, math.nan) for d in found]
        errors = self.replicates[:, first] - self.replicates[:, second] - found
        spread = errors.std(axis=0)
        # Two candidates that agree in every case have no say in the maximum, nor a difference.
        varied = spread > ROUNDING
        spread = np.where(varied, spread, 0.0)
        found = np.where(np.abs(found) > ROUNDING, found, 0.0)
        largest = (np.abs(errors[:, varied]) / spread[varied]).max(axis=1) if varied.any() else np.zeros(1)
        reach = float(np.quantile(largest, CONFIDENCE)) * _widening(max(2, self.fewest_units)) * spread
        return [Interval(float(d), float(d - r), float(d + r)) for d, r in zip(found, reach)]


def drawn_times(generator: np.random.Generator, draws: int, units: int) -> np.ndarray:
    """(draws, units) how often each unit is in a draw of as many units, with replacement."""
    drawn = generator.integers(0, units, (draws, units))
    times = np.zeros((draws, units))
    np.add.at(times, (np.arange(draws)[:, None], drawn), 1)
    return times


def _widening(units: int) -> float:
    """How much wider a t interval is than a normal one with the bootstrap's standard deviation."""
    from scipy.special import ndtri, stdtrit

    tail = (1 + CONFIDENCE) / 2
    return float(math.sqrt(units / (units - 1)) * stdtrit(units - 1, tail) / ndtri(tail))


def mean_interval(scores: np.ndarray, units: np.ndarray) -> Interval:
    """Mean of one candidate as in summary.json, with its interval.

    Args:
        scores: (N, K) case x class, NaN where the score is not defined.
        units: (N,) number of the patient of each case.

    Returns:
        The interval of a mean; all NaN where no score is defined.
    """
    present = ~np.isnan(scores)
    if not present.any():
        return Interval(math.nan, math.nan, math.nan)
    return Bootstrap.draw(ScoreTable(values=scores[None], present=present, units=units)).mean(0)


def best_against_best(
    differences: Sequence[Interval], pairs: Sequence[tuple[int, int]], first: Sequence[int]
) -> Interval:
    """Best of some candidates against the best of the others, from intervals that hold all at once.

    max a - max b = max_a min_b (a - b), and this holds for simultaneous bounds too: the interval needs no
    correction for having picked the two best on the cases they are judged by (Hsu 1981).

    Args:
        differences: of `Bootstrap.differences`, for all pairs (a, b) of the two kinds.
        pairs: what they belong to, a of the first kind.
        first: the candidates of the first kind.
    """
    rows = [[d for d, (a, _) in zip(differences, pairs) if a == one] for one in first]
    columns = list(zip(*rows))
    if any(math.isnan(d.low) for d in differences):
        low = high = math.nan
    else:
        low = max(min(d.low for d in row) for row in rows)
        high = min(max(d.high for d in column) for column in columns)
    return Interval(max(min(d.value for d in row) for row in rows), low, high)
