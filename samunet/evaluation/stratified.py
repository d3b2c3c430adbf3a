"""Paired bootstrap over several groups: the patients of each group are drawn anew within it.

The groups themselves (sites, scanners) stay as they are: an interval from here says how the methods stand on
other patients of these groups, not on groups that nobody has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samunet.evaluation.bootstrap import RESAMPLES, SEED, Bootstrap, ScoreTable, drawn_times


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Scores of all candidates in one group, for one share of the mean.

    Attributes:
        group: whose cases these are; strata of one group are drawn alike.
        table: scores of the candidates.
        share: of the mean; those of all strata sum to 1.
    """

    group: str
    table: ScoreTable
    share: float


def draw_strata(strata: Sequence[Stratum], *, seed: int = SEED, resamples: int = RESAMPLES) -> Bootstrap:
    """Means of the candidates over all strata, in the data and in the draws.

    Args:
        strata: with the same candidates, and in one group with the same cases; two units or more each.

    Returns:
        Its `num_units` are those of the smallest group, its `fewest_units` those of the rarest class in any
        group: intervals are widened by them.
    """
    generator = np.random.default_rng(seed)
    sizes = {stratum.group: stratum.table.num_units for stratum in strata}
    times = {group: drawn_times(generator, resamples, size) for group, size in sizes.items()}
    shares = np.array([stratum.share for stratum in strata])
    observed = np.array([stratum.table.means()[0] for stratum in strata])
    drawn = np.array(
        [stratum.table.means(times[stratum.group][:, stratum.table.units]) for stratum in strata]
    )
    replicates = np.tensordot(shares, drawn, axes=1)
    of_class = np.concatenate([stratum.table.held.sum(axis=0) for stratum in strata])
    return Bootstrap(
        observed=shares @ observed,
        replicates=replicates[~np.isnan(replicates).any(axis=1)],
        num_units=min(sizes.values()),
        fewest_units=int(of_class[of_class > 0].min()),
    )
