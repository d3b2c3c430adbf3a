from __future__ import annotations

import math

import numpy as np
import pytest

from samunet.evaluation.bootstrap import (
    FEWEST_UNITS,
    Bootstrap,
    Interval,
    ScoreTable,
    best_against_best,
    mean_interval,
)

NAN = math.nan
GOLDEN_MEAN = (0.725885, 0.670908, 0.784812)
GOLDEN_GAIN = (0.039253, 0.005337, 0.073169)


def table(values: np.ndarray, units: list[int] | None = None) -> ScoreTable:
    """Candidates x cases of one class that every reference holds, or with classes as a third axis."""
    array = np.asarray(values, float)
    array = array[..., None] if array.ndim == 2 else array
    cases = array.shape[1]
    return ScoreTable(
        values=array,
        present=np.ones(array.shape[1:], bool),
        units=np.arange(cases) if units is None else np.asarray(units),
    )


def draw_scores(rng: np.random.Generator, cases: int, means: tuple[float, ...]) -> np.ndarray:
    """Scores of candidates that share how hard a case is."""
    hardness = rng.normal(0, 0.1, cases)
    return 0.7 + hardness + np.array(means)[:, None] + rng.normal(0, 0.05, (len(means), cases))


def test_means_are_the_evaluators() -> None:
    values = np.array([[[0.8, NAN], [0.6, 0.5], [0.0, 0.9]], [[0.7, 0.0], [0.7, 0.4], [0.4, 0.8]]])
    present = np.array([[True, False], [True, True], [True, True]])
    scores = ScoreTable(values=values, present=present, units=np.arange(3))
    # The second candidate predicts class 2 where it is not: that counts as 0, as in summary.json.
    assert scores.means()[0] == pytest.approx([(1.4 / 3 + 0.7) / 2, (0.6 + 0.4) / 2])
    # A draw without a reference of class 2 says nothing about it, not even by a spurious prediction.
    assert scores.means(np.array([[2.0, 0.0, 0.0]]))[0] == pytest.approx([0.8, 0.7])
    nowhere = ScoreTable(values=values[:, :1, 1:], present=present[:1, 1:], units=np.zeros(1, int))
    assert np.isnan(nowhere.means()).all()


def test_a_present_class_without_a_score_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        table(np.array([[0.5, NAN]]))


def test_golden_intervals() -> None:
    """Computed once; a change of draws or of formulas shows here. The draws are NumPy's PCG64."""
    rng = np.random.default_rng(4)
    bootstrap = Bootstrap.draw(table(draw_scores(rng, 20, (0.0, 0.03, 0.03))), seed=1, resamples=2000)
    mean = bootstrap.mean(1)
    assert (mean.value, mean.low, mean.high) == pytest.approx(GOLDEN_MEAN, abs=1e-6)
    gain = bootstrap.differences([(1, 0), (2, 0), (1, 2)])[0]
    assert (gain.value, gain.low, gain.high) == pytest.approx(GOLDEN_GAIN, abs=1e-6)


def test_one_comparison_equals_the_t_interval() -> None:
    """For normal differences the widened bootstrap is the textbook's paired t interval."""
    scores = draw_scores(np.random.default_rng(5), 30, (0.02, 0.0))
    (found,) = Bootstrap.draw(table(scores), seed=0).differences([(0, 1)])
    difference = scores[0] - scores[1]
    reach = 2.045230 * difference.std(ddof=1) / math.sqrt(30)
    assert found.value == pytest.approx(difference.mean())
    # 10,000 draws: the 95th percentile of |d*| has a standard error of about 1 %, skewness adds as much.
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=0.04)


@pytest.mark.parametrize(("cases", "candidates"), [(FEWEST_UNITS, 2), (20, 4)])
def test_intervals_cover_at_least_as_often_as_they_say(cases: int, candidates: int) -> None:
    """Equal candidates: 95 of 100 families of intervals hold zero in all of them."""
    pairs = [(i, j) for i in range(candidates) for j in range(i + 1, candidates)]
    trials, held = 200, 0
    for seed in range(trials):
        scores = draw_scores(np.random.default_rng(seed), cases, (0.0,) * candidates)
        found = Bootstrap.draw(table(scores), seed=seed, resamples=400).differences(pairs)
        held += all(d.low <= 0 <= d.high for d in found)
    # 95 % of 200 with three standard errors (1.5 %) of room.
    assert held / trials >= 0.95 - 0.046


def test_cases_of_a_patient_are_drawn_together() -> None:
    """Ten copies of a case are no ten cases: the interval is that of the single cases."""
    scores = draw_scores(np.random.default_rng(6), 12, (0.02, 0.0))
    single = Bootstrap.draw(table(scores), seed=3, resamples=2000)
    copied = Bootstrap.draw(
        table(np.repeat(scores, 10, axis=1), np.repeat(np.arange(12), 10).tolist()), seed=3, resamples=2000
    )
    apart = Bootstrap.draw(table(np.repeat(scores, 10, axis=1)), seed=3, resamples=2000)
    assert copied.num_units == 12
    assert copied.differences([(0, 1)])[0].low == pytest.approx(single.differences([(0, 1)])[0].low)
    assert copied.mean(0).low == pytest.approx(single.mean(0).low)
    assert apart.differences([(0, 1)])[0].low > copied.differences([(0, 1)])[0].low


def test_draws_without_any_class_are_left_out() -> None:
    values = np.full((2, 4, 1), NAN)
    values[:, 0, 0] = (0.9, 0.7)
    present = np.array([[True], [False], [False], [False]])
    bootstrap = Bootstrap.draw(ScoreTable(values=values, present=present, units=np.arange(4)), resamples=200)
    assert 0 < len(bootstrap.replicates) < 200
    # What one patient of four has is a single number, however often it is drawn.
    assert math.isnan(bootstrap.mean(0).low)
    assert math.isnan(bootstrap.differences([(0, 1)])[0].low)


def test_patients_without_the_class_do_not_narrow_its_interval() -> None:
    scores = np.full((12, 1), NAN)
    scores[:3, 0] = (0.6, 0.7, 0.8)
    found, alone = mean_interval(scores, np.arange(12)), mean_interval(scores[:3], np.arange(3))
    assert (found.units, found.is_narrow) == (3, True)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=0.02)
    # Of a mean over classes the rarest decides.
    both = np.hstack([np.linspace(0.88, 0.92, 12)[:, None], scores])
    assert mean_interval(both, np.arange(12)).units == 3
    both[1:3, 1] = NAN
    assert math.isnan(mean_interval(both, np.arange(12)).low)
    assert mean_interval(both[:, :1], np.arange(12)).is_narrow is False


def test_a_mean_lies_in_its_interval_where_a_class_is_only_predicted() -> None:
    scores = np.full((12, 2), NAN)
    scores[:, 0] = np.linspace(0.88, 0.92, 12)
    scores[3:5, 1] = 0  # where no reference holds it
    found = mean_interval(scores, np.arange(12))
    assert found.value == pytest.approx(0.45)
    assert found.low <= found.value <= found.high
    assert math.isnan(mean_interval(scores[:3, 1:], np.arange(3)).value)


def test_equal_candidates_and_a_single_patient() -> None:
    scores = draw_scores(np.random.default_rng(7), 8, (0.0, 0.0))
    scores[1] = scores[0]
    same = Bootstrap.draw(table(scores), resamples=100).differences([(0, 1)])[0]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    rounded = np.array([scores[0], scores[0] + 1e-15])  # the order of summation gives as much
    (found,) = Bootstrap.draw(table(rounded), resamples=100).differences([(1, 0)])
    assert (found.low, found.high) == (0, 0)
    alone = Bootstrap.draw(table(scores, [0] * 8), resamples=100)
    assert math.isnan(alone.mean(0).low)
    assert math.isnan(alone.differences([(0, 1)])[0].high)
    assert alone.differences([]) == []


def test_the_same_seed_gives_the_same() -> None:
    scores = table(draw_scores(np.random.default_rng(8), 9, (0.0, 0.01)))
    one, two, other = (Bootstrap.draw(scores, seed=seed, resamples=100) for seed in (1, 1, 2))
    assert np.array_equal(one.replicates, two.replicates)
    assert not np.array_equal(one.replicates, other.replicates)


def test_the_best_of_each_kind() -> None:
    pairs = [(0, 2), (0, 3), (1, 2), (1, 3)]
    given = [
        Interval(0.1, 0.05, 0.15),
        Interval(0.3, 0.2, 0.4),
        Interval(0.0, -0.1, 0.1),
        Interval(0.2, 0, 0.4),
    ]
    found = best_against_best(given, pairs, [0, 1])
    assert (found.value, found.low, found.high) == (0.1, 0.05, 0.15)
    assert math.isnan(best_against_best([Interval(0.1, NAN, NAN)], [(0, 1)], [0]).low)


def test_picking_the_best_of_many_does_not_make_it_better() -> None:
    """Six equal candidates against one: choosing anew in every draw would call the six better in a third."""
    pairs = [(i, 6) for i in range(6)]
    trials, called = 100, 0
    for seed in range(trials):
        scores = draw_scores(np.random.default_rng(seed), 20, (0.0,) * 7)
        found = Bootstrap.draw(table(scores), seed=seed, resamples=400).differences(pairs)
        called += best_against_best(found, pairs, range(6)).low > 0
    assert called / trials <= 0.05 + 0.065  # three standard errors of 100 trials


def test_a_class_that_few_patients_hold_widens_the_differences() -> None:
    """No difference at all: 20 patients, a class of three of them that scatters fifteen times as much. At a
    widening by 20 patients one interval in seven of such leaves out 0; by three, not one in twenty. More than
    12 of 120 draws would then come by chance once in 100."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(120):
        gains = np.stack([rng.normal(0, 0.01, 20), rng.normal(0, 0.15, 20)], axis=1)
        present = np.ones((20, 2), bool)
        present[3:, 1] = False
        values = np.where(present, np.stack([0.7 + gains, np.full((20, 2), 0.7)]), NAN)
        scores = ScoreTable(values=values, present=present, units=np.arange(20))
        (found,) = Bootstrap.draw(scores, resamples=500).differences([(0, 1)])
        false += found.low > 0 or found.high < 0
    assert false <= 12
