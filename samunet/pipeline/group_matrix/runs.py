"""Trainings on one group: which there are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samunet.data.splits import SINGLE_SOURCE
from samunet.pipeline.run_commands import TrainedAs
from samunet.trainers.identity import RunRecord, read_run
from samunet.workspace import DEFAULT_PLANS, FINAL, SUMMARY_FILE, Workspace, fold_folders, validation_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MatrixRequest:
    """Which trainings are collected.

    Attributes:
        dataset: full name.
        configurations: methods; none takes every one that was trained on a single group.
        plans: name of the plan.
        tags: of the trainings; none takes the tags that `--splits single_source...` gives by itself.
    """

    dataset: str
    configurations: tuple[str, ...] = ()
    plans: str = DEFAULT_PLANS
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SourceRun:
    """A fold that was trained on one group; `model` names it without its split."""

    folder: Path
    fold: int | str
    model: TrainedAs
    source: str
    record: RunRecord

    @property
    def tag(self) -> str:
        return str(self.model.tag)

    @property
    def summary(self) -> Path:
        return validation_folder(self.folder.parent, self.fold) / SUMMARY_FILE

    @property
    def is_trained(self) -> bool:
        return (self.folder / FINAL).exists()

    @property
    def splits(self) -> str:
        """Scheme that it was trained on; where that was not written down, as fold and tag tell it."""
        is_one_of_all = self.fold != 0 or self.tag == SINGLE_SOURCE
        guess = SINGLE_SOURCE if is_one_of_all else f"{SINGLE_SOURCE}:{self.source}"
        return str(self.record.overrides.get("splits") or guess)

    def command(self, *flags: str) -> str:
        """What a user types to do with this run what the flags say (`TrainedAs.command`)."""
        return replace(self.model, splits=self.splits).command([self.fold], *flags, like=self.record)


def unlike(records: Sequence[RunRecord]) -> str:
    """In what the trainings differ but for seed and source: such are no repeats; empty where in nothing."""
    compared: dict[str, set[Any]] = {
        "settings": {record.configuration_hash for record in records},
        "weights": {None if record.weights is None else record.weights.sha256 for record in records},
        "time budgets": {record.time_budget_minutes for record in records},
        "teaching (samunet_distill)": {record.distillation is None for record in records},
    }
    return " and ".join(name for name, values in compared.items() if len(values) > 1)


def trained_methods(workspace: Workspace, request: MatrixRequest) -> tuple[str, ...]:
    """Methods that have a run with one of the tags."""
    folders = (workspace.results / request.dataset).glob(f"*__{request.plans}__*")
    found = {
        folder.name.split("__")[0] for folder in folders if _wanted(request, folder.name.split("__")[-1])
    }
    return tuple(sorted(found))


def _wanted(request: MatrixRequest, tag: str) -> bool:
    return tag in request.tags if request.tags else tag.startswith(SINGLE_SOURCE)


def runs_of(
    workspace: Workspace, request: MatrixRequest, method: str, groups: Mapping[str, str]
) -> list[SourceRun]:
    """Folds of the method whose training cases are all of one group."""
    start, runs = f"{method}__{request.plans}__", []
    models = sorted((workspace.results / request.dataset).glob(f"{start}*"))
    wanted = [model for model in models if _wanted(request, model.name.removeprefix(start))]
    for fold, folder in [item for model in wanted for item in fold_folders(model).items()]:
        record = read_run(folder)
        if record is None:
            continue
        trained_on = {groups.get(case, "") for case in record.train}
        if len(trained_on) == 1:
            model = TrainedAs(
                dataset=request.dataset,
                configuration=method,
                plans=request.plans,
                tag=folder.parent.name.removeprefix(start),
            )
            source = trained_on.pop()
            runs.append(SourceRun(folder=folder, fold=fold, model=model, source=source, record=record))
        else:
            logger.info("%s was trained on %d groups and is left out.", folder, len(trained_on))
    return runs
