"""95 % intervals of the report's means: patients, or cases where no patients are declared, drawn anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samunet.evaluation.bootstrap import Interval, mean_interval
from samunet.pipeline.report.collect import Model


def dice_interval(model: Model, names: Sequence[str] | None = None) -> Interval:
    """A model's mean Dice over its out-of-fold cases, as in summary.json, with its interval.

    Args:
        model: with scored cases.
        names: classes to take the mean over; None takes all.

    Returns:
        Bounds are NaN where a single patient says nothing about others.
    """
    names = tuple(names or model.plan.labels.foreground)
    scores = np.array([[case.metrics[name]["Dice"] for name in names] for case in model.cases], float)
    patients: dict[str, int] = {}
    units = np.array([patients.setdefault(case.group or case.name, len(patients)) for case in model.cases])
    return mean_interval(scores, units)
