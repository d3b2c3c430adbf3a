from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_runs import PHASE

from samunet.trainers.base import Phase
from samunet.trainers.schedule import Timing, fit_to_budget, learning_rate_factor, phase_seconds

UNET = replace(
    PHASE, learning_rate=0.01, epochs=1000, iterations=250, val_iterations=50, schedule="poly_epoch"
)
HEAD = PHASE


def test_poly_rates_are_nnunets() -> None:
    rates = {e: 0.01 * learning_rate_factor(UNET, e, 123) for e in (1, 10, 100, 500, 999)}
    golden = {1: 0.009991, 10: 0.00990995, 100: 0.00909533, 500: 0.00535887, 999: 1.99526e-5}
    assert rates == pytest.approx(golden, rel=1e-5)


def test_warm_up_rises_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(HEAD, e, i) for e in range(100) for i in range(20)]
    assert factors[0] == pytest.approx(1 / 51)
    assert factors[:50] == sorted(factors[:50])
    assert factors[50] == 1
    assert factors[50:] == sorted(factors[50:], reverse=True)
    assert 0 < factors[-1] < 1e-2


def test_nnunets_schedule_warms_up_where_it_is_asked_to() -> None:
    """The rate rises to the one of its epoch; what comes later is as without."""
    warm = replace(UNET, epochs=100, iterations=10, warmup_steps=14)
    factors = [learning_rate_factor(warm, e, i) for e in range(100) for i in range(10)]
    usual = [learning_rate_factor(replace(warm, warmup_steps=0), e, 0) for e in range(100) for _ in range(10)]
    assert factors[0] == pytest.approx(1 / 15)
    assert factors[:14] == sorted(factors[:14])
    assert factors[14:] == usual[14:]
    short = replace(warm, epochs=10, warmup_steps=50)
    assert [learning_rate_factor(short, 0, i) < 1 for i in (9, 10, 11)] == [True, False, False]


def test_warm_up_takes_a_tenth_of_a_short_phase_at_most() -> None:
    short = replace(HEAD, epochs=2)
    factors = [learning_rate_factor(short, e, i) for e in range(2) for i in range(20)]
    assert factors.index(max(factors)) == 4


def test_a_schedule_that_fits_is_left_alone() -> None:
    timing = Timing(train_step=0.01, val_step=0.01)
    assert fit_to_budget([HEAD], timing, 3600) == (HEAD,)


@pytest.mark.parametrize("seconds", [60, 200, 900])
@pytest.mark.parametrize("phase", [UNET, HEAD])
def test_fitted_schedule_fills_the_budget(phase: Phase, seconds: float) -> None:
    timing = Timing(train_step=0.5, val_step=0.2, epoch_overhead=0.3)
    (fitted,) = fit_to_budget([phase], timing, seconds)
    assert 0.6 * seconds < phase_seconds(fitted, timing) <= seconds
    assert fitted.epochs >= 10
    assert fitted.iterations <= phase.iterations


def test_several_phases_keep_their_shares() -> None:
    timing = Timing(train_step=0.1, val_step=0.1)
    phases = [HEAD, replace(HEAD, name="second", epochs=300)]
    first, second = fit_to_budget(phases, timing, 300)
    assert second.epochs == pytest.approx(3 * first.epochs, rel=0.1)
