"""Paired bootstrap over several groups: the patients of each group are drawn anew within it.

The groups themselves (sites, scanners) stay as they are: an interval from here says how the methods stand on
other patients of these groups, not on groups that nobody has seen.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from samunet.evaluation.bootstrap import RESAMPLES, SEED, Bootstrap, Interval, ScoreTable, drawn_times


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Scores of all candidates in one group, for one share of the mean.

    Attributes:
        group: whose cases these are; strata of one group are drawn alike.
        table: scores of the candidates, or of their runs.
        share: of the mean; those of all strata sum to 1.
        units: what each unit (patient) of the table is called, by which strata of one group that lack some
            of them are drawn alike; None where they have all the same.
        runs: (M, rows of the table), share of each row in a candidate, whose mean is that of its runs' means;
            None where a row is a candidate.
    """

    group: str
    table: ScoreTable
    share: float
    units: tuple[Hashable, ...] | None = None
    runs: np.ndarray | None = None

    @property
    def named_units(self) -> Sequence[Hashable]:
        return range(self.table.num_units) if self.units is None else self.units

    def means(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(B, M) means of the candidates, see `ScoreTable.means`."""
        found = self.table.means(weights)
        return found if self.runs is None else found @ self.runs.T


def draw_strata(strata: Sequence[Stratum], *, seed: int = SEED, resamples: int = RESAMPLES) -> Bootstrap:
    """Means of the candidates over all strata, in the data and in the draws.

    Args:
        strata: with the same candidates. Those of one group are of the same patients or of some of them: as
            many are drawn as any has, and each takes what it has of a draw.

    Returns:
        Its `num_units` are the fewest of any group that hold a class (below two there is no interval of a
        difference), its `fewest_units` those of the rarest class in any group: intervals are widened by them.
    """
    generator = np.random.default_rng(seed)
    numbers: dict[str, dict[Hashable, int]] = {}
    for stratum in strata:
        of_group = numbers.setdefault(stratum.group, {})
        for unit in stratum.named_units:
            of_group.setdefault(unit, len(of_group))
    times = {group: drawn_times(generator, resamples, len(units)) for group, units in numbers.items()}
    shares = np.array([stratum.share for stratum in strata])
    observed = np.array([stratum.means()[0] for stratum in strata])
    drawn = []
    for stratum in strata:
        at = np.array([numbers[stratum.group][unit] for unit in stratum.named_units])
        drawn.append(stratum.means(times[stratum.group][:, at[stratum.table.units]]))
    replicates = np.tensordot(shares, np.array(drawn), axes=1)
    of_class = np.concatenate([stratum.table.held.sum(axis=0) for stratum in strata])
    return Bootstrap(
        observed=shares @ observed,
        replicates=replicates[~np.isnan(replicates).any(axis=1)],
        num_units=min(stratum.table.num_holders for stratum in strata),
        fewest_units=int(of_class[of_class > 0].min()),
    )


def mean_over_runs(scores: np.ndarray, units: np.ndarray) -> Interval:
    """Mean over runs of each one's mean as in summary.json, with its interval: the same patients for all.

    It is not the mean of the cases' means over the runs: a structure that one run makes up counts as 0 in
    that run, and in no other.

    Args:
        scores: (R, N, K) run x case x class, NaN where the score is not defined.
        units: (N,) number of the patient of each case.

    Returns:
        The interval of a mean over the runs that have any score; all NaN where none has.
    """
    scored = [run for run in scores if not np.isnan(run).all()]
    if not scored:
        return Interval(math.nan, math.nan, math.nan)
    tables = [ScoreTable(values=run[None], present=~np.isnan(run), units=units) for run in scored]
    return draw_strata([Stratum(group="", table=table, share=1 / len(tables)) for table in tables]).mean(0)
