"""The commands that make the models of a report again."""

from __future__ import annotations

from collections.abc import Sequence

from samunet.pipeline.report.collect import Model
from samunet.pipeline.run_commands import TrainedAs


def training_commands(dataset: str, models: Sequence[Model]) -> tuple[str, ...]:
    """One command a fold: samunet_train, or samunet_distill for what had a teacher."""
    commands = []
    for model in models:
        trained = TrainedAs(
            dataset=dataset, configuration=model.configuration, plans=model.plan.name, tag=model.tag
        )
        commands += [trained.command([fold.run.fold], like=fold.run) for fold in model.folds]
    return tuple(commands)
