"""95 % intervals of the report's means: patients, else groups, else cases are drawn anew."""

from __future__ import annotations

from collections.abc import Sequence

from samunet.data.groups import Origins, unit_numbers
from samunet.evaluation.bootstrap import Interval, mean_interval, score_array
from samunet.pipeline.report.collect import Model, ScoredCase


def dice_interval(
    model: Model, names: Sequence[str] | None = None, *, ignore_groups: bool = False
) -> Interval:
    """A model's mean Dice over its out-of-fold cases, as in summary.json, with its interval.

    Args:
        model: with scored cases; groups and patients are those of the day of scoring.
        names: classes to take the mean over; None takes all.
        ignore_groups: declared groups are sites: patients are drawn where they are declared, else cases.

    Returns:
        Bounds are NaN where a single patient says nothing about others.
    """
    origins = model.origins.without_groups if ignore_groups else model.origins
    return _interval(model.cases, tuple(names or model.plan.labels.foreground), origins)


def group_interval(model: Model, group: str) -> Interval:
    """The mean Dice over the cases of one group, with its interval: patients, else cases are drawn anew."""
    cases = [case for case in model.cases if case.group == group]
    return _interval(cases, tuple(model.plan.labels.foreground), model.origins.without_groups)


def _interval(cases: Sequence[ScoredCase], names: Sequence[str], origins: Origins) -> Interval:
    scores = score_array((case.metrics for case in cases), names, "Dice")
    return mean_interval(scores, unit_numbers([case.name for case in cases], origins))
