"""The commands that make the models of a report again."""

from __future__ import annotations

from collections.abc import Sequence

from samunet.pipeline.report.collect import Model
from samunet.pipeline.run_commands import command_like


def training_commands(dataset: str, models: Sequence[Model]) -> tuple[str, ...]:
    """One command a fold: samunet_train, or samunet_distill for what had a teacher."""
    return tuple(
        command_like(
            fold.run, dataset, model.configuration, [fold.run.fold], plans=model.plan.name, tag=model.tag
        )
        for model in models
        for fold in model.folds
    )
