"""95 % intervals of the report's means: patients, or cases where no patients are declared, drawn anew."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from samunet.evaluation.bootstrap import Bootstrap, ScoreTable
from samunet.pipeline.report.collect import Model

Bounds = tuple[float, float]


def dice_interval(model: Model, names: Sequence[str] | None = None) -> Bounds:
    """Interval of a model's mean Dice over its out-of-fold cases.

    Args:
        model: with scored cases.
        names: classes to take the mean over; None takes all.

    Returns:
        Low and high; NaN where a single patient says nothing about others.
    """
    names = tuple(names or model.plan.labels.foreground)
    scores = [[case.metrics[name] for name in names] for case in model.cases]
    values = np.array([[metrics["Dice"] for metrics in row] for row in scores], float)
    present = np.array([[metrics["n_ref"] > 0 for metrics in row] for row in scores], bool)
    patients: dict[str, int] = {}
    units = np.array([patients.setdefault(case.group or case.name, len(patients)) for case in model.cases])
    if not present.any():
        return math.nan, math.nan
    interval = Bootstrap.draw(ScoreTable(values=values[None], present=present, units=units)).mean(0)
    return interval.low, interval.high
