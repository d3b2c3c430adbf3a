"""Bootstrap within groups: means, the same draws for one group, intervals that grow with the spread."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from samunet.evaluation.bootstrap import ScoreTable, mean_interval
from samunet.evaluation.stratified import Stratum, draw_strata, mean_over_runs


def stratum(group: str, scores: np.ndarray, share: float) -> Stratum:
    """(candidates, cases) of one class that every reference holds."""
    table = ScoreTable(
        values=scores[..., None],
        present=np.ones((scores.shape[1], 1), bool),
        units=np.arange(scores.shape[1]),
    )
    return Stratum(group=group, table=table, share=share)


def test_the_mean_weighs_groups_by_share_and_not_by_cases() -> None:
    north = np.array([[0.5, 0.7], [0.5, 0.5]])
    south = np.array([[0.9] * 8, [0.8] * 8])
    found = draw_strata([stratum("north", north, 0.5), stratum("south", south, 0.5)], resamples=200)
    assert found.observed == pytest.approx([0.75, 0.65])
    assert found.replicates.mean(axis=0) == pytest.approx([0.75, 0.65], abs=0.01)
    assert found.fewest_units == 2


def test_strata_of_one_group_are_drawn_alike() -> None:
    """What one source gains on a case the other loses, so that no draw of cases changes the mean."""
    gains = np.array([[0.2, 0.6, 0.4, 0.8]])
    same = [stratum("north", gains, 0.5), stratum("north", 1 - gains, 0.5)]
    assert draw_strata(same, resamples=100).replicates == pytest.approx(np.full((100, 1), 0.5))
    apart = [stratum("north", gains, 0.5), stratum("south", 1 - gains, 0.5)]
    assert draw_strata(apart, resamples=100).replicates.std() > 0.05


def test_strata_that_lack_patients_of_their_group_are_drawn_by_name() -> None:
    """The first source knew patient a, so that its table begins with b."""
    gains = np.array([[0.2, 0.6, 0.4, 0.8]])
    fewer = stratum("north", gains[:, 1:], 0.5)
    every = stratum("north", 1 - gains, 0.5)
    for order in (slice(None), slice(None, None, -1)):
        parts = [replace(fewer, units=tuple("bcd")), replace(every, units=tuple("abcd"))]
        found = draw_strata(parts[order], resamples=2000)
        assert found.observed == pytest.approx([(0.6 + 0.5) / 2])
        # Where a is not drawn the two sources cancel out, whoever else is.
        is_cancelled = np.isclose(found.replicates[:, 0], 0.5)
        assert is_cancelled.mean() == pytest.approx(0.75**4, abs=0.04)  # four standard errors


def test_the_spread_is_that_of_independent_groups() -> None:
    """Variance of the mean: sum over the groups of share² · variance of a case / cases (draws: n in the place
    of n - 1). Tolerance: the standard deviation of 20,000 draws is known to 0.5 %, three times of it."""
    rng = np.random.default_rng(3)
    scores = {"north": rng.normal(0.7, 0.1, (1, 12)), "south": rng.normal(0.5, 0.2, (1, 5))}
    found = draw_strata([stratum(name, values, 0.5) for name, values in scores.items()], resamples=20_000)
    expected = sum(0.25 * values.var() / values.size for values in scores.values()) ** 0.5
    assert found.replicates.std() == pytest.approx(expected, rel=0.015)


def test_what_one_run_makes_up_counts_in_that_run_alone() -> None:
    """The mean over five runs lies in its interval; of means by case it would not."""
    rng = np.random.default_rng(1)
    runs = np.full((5, 12, 1), np.nan)
    runs[:, :6, 0] = rng.uniform(0.75, 0.85, (5, 6))
    runs[3, 6:, 0] = 0.0
    found = mean_over_runs(runs, np.arange(12))
    assert found.value == pytest.approx(np.mean([np.nanmean(run) for run in runs]))
    assert found.low < found.value < found.high
    assert found.low > 0.6  # by case: 0.4 in the mean
    assert np.isnan(mean_over_runs(runs * np.nan, np.arange(12)).value)


def test_one_run_is_a_mean() -> None:
    """The draws are others, so the bounds differ by the draws' own error."""
    scores, units = np.random.default_rng(2).uniform(0.4, 0.9, (15, 2)), np.arange(15) // 2
    one, plain = mean_over_runs(scores[None], units), mean_interval(scores, units)
    assert one.value == pytest.approx(plain.value)
    assert (one.low, one.high, one.units) == pytest.approx((plain.low, plain.high, plain.units), abs=0.01)


def test_a_candidate_is_the_mean_of_its_runs() -> None:
    scores = np.array([[0.5, 0.7], [0.6, 0.8], [0.9, 0.3]])
    runs = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    merged = Stratum(group="north", table=stratum("north", scores, 1.0).table, share=1.0, runs=runs)
    found = draw_strata([merged], resamples=100)
    apart = draw_strata([stratum("north", scores, 1.0)], resamples=100)
    assert found.observed == pytest.approx([0.65, 0.6])
    assert found.replicates == pytest.approx(apart.replicates @ runs.T)


def test_patients_without_the_class_are_no_witnesses() -> None:
    """Five of six cases have no score: the one draw that is left has no spread, which is no certainty."""
    values = np.full((2, 6, 1), np.nan)
    values[:, 0, 0] = 0.9, 0.8
    table = ScoreTable(values=values, present=~np.isnan(values[0]), units=np.arange(6))
    (found,) = draw_strata([Stratum(group="north", table=table, share=1.0)], resamples=100).differences(
        [(0, 1)]
    )
    assert found.value == pytest.approx(0.1)
    assert np.isnan(found.low)
