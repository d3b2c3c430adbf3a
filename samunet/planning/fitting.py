"""The end of every planner row: how long a training can be, what it costs, what of the budget it exceeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.memory import (
    Load,
    Schedule,
    affordable_schedule,
    forecast_of,
    memory_gb,
    step_seconds,
)
from samunet.planning.methods import MethodConfig
from samunet.planning.plan import Configuration, Forecast
from samunet.planning.standing import length_reason, short_schedule_penalty, shortage

LENGTH_SETTINGS = frozenset({"epochs", "iterations"})


@dataclass(frozen=True, kw_only=True)
class CacheCost:
    """What is built before the first step.

    Attributes:
        load: of a step of building it.
        hours: that it takes.
        size_gb: on disk.
    """

    load: Load
    hours: float
    size_gb: float


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A training fitted into the budget.

    Attributes:
        settings: what a plan stores, with the epochs where the schedule is shortened.
        lacks: what of the budget it exceeds, in sentences; empty when everything fits.
        fixed_length: the user set the length of the schedule.
        length_reason: how long the training is, and why.
    """

    settings: dict[str, Any]
    schedule: Schedule
    forecast: Forecast
    lacks: tuple[str, ...]
    fixed_length: bool
    length_reason: str

    def candidate(self, configuration: Configuration, potential: float) -> Candidate:
        """The row; `potential` is the score that it would have with time enough."""
        return Candidate(
            method=configuration.method,
            configuration=configuration,
            fits=not self.lacks,
            score=potential - short_schedule_penalty(self.schedule),
            potential=potential,
            reasons=configuration.reasons,
        )


def fit(
    context: PlanningContext,
    config: MethodConfig,
    settings: Mapping[str, Any],
    load: Load,
    cache: CacheCost | None = None,
) -> Fitted:
    """Fit a recipe into the hours, memory and disk of the budget.

    Args:
        context: what is planned for.
        config: the recipe.
        settings: those of its settings that differ from the defaults.
        load: of one training step.
        cache: what is built before the first one.
    """
    budget = context.budget
    fixed = bool(LENGTH_SETTINGS & context.settings.keys())
    extra_hours, cache_gb = (cache.hours, cache.size_gb) if cache is not None else (0.0, 0.0)
    seconds = step_seconds(load, budget)
    schedule = affordable_schedule(config, seconds, budget, fixed=fixed, extra_hours=extra_hours)
    forecast = forecast_of(load, schedule, budget, cache_gb)
    if cache is not None:
        peak = max(forecast.memory_gb, round(memory_gb(cache.load, budget), 2))
        forecast = replace(forecast, memory_gb=peak)
    return Fitted(
        settings={**settings, **({"epochs": schedule.epochs} if schedule.shortened else {})},
        schedule=schedule,
        forecast=forecast,
        lacks=shortage(forecast, schedule, context),
        fixed_length=fixed,
        length_reason=length_reason(schedule, budget.hours, fixed=fixed),
    )
