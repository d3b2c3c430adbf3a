"""The commands that make the models of a report again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samunet.pipeline.report.collect import Model
from samunet.trainers.checkpoint import FINAL
from samunet.trainers.identity import RunRecord
from samunet.workspace import training_command

DEFAULT_STEP = 0.5


def training_commands(dataset: str, models: Sequence[Model]) -> tuple[str, ...]:
    """One command a fold: samunet_train, or samunet_distill for what had a teacher."""
    return tuple(_command(dataset, model, fold.run) for model in models for fold in model.folds)


def _command(dataset: str, model: Model, run: RunRecord) -> str:
    taught = run.distillation
    return training_command(
        dataset,
        model.configuration,
        [run.fold],
        plans=model.plan.name,
        tag=model.tag,
        splits=run.overrides.get("splits", "kfold"),
        teacher=None if taught is None else str(taught["teacher"]).partition("__")[0],
        flags=[*_flags(run), *([] if taught is None else _teaching_flags(taught, run.fold, model.plan.name))],
    )


def _flags(run: RunRecord) -> list[str]:
    flags = []
    for key, value in run.overrides.get("settings", {}).items():
        flags += [f"--{key}", str(value)] if key in ("epochs", "iterations") else ["--set", f"{key}={value}"]
    if run.overrides.get("weights"):
        flags += ["-w", str(run.overrides["weights"])]
    if run.time_budget_minutes is not None:
        flags += ["--time_budget", f"{run.time_budget_minutes:g}"]
    return flags + (["--seed", str(run.seed)] if run.seed != 0 else [])


def _teaching_flags(taught: dict[str, Any], fold: int | str, plans: str) -> list[str]:
    """What of a record of a teacher differs from what samunet_distill does without a word."""
    _, teacher_plans, *tag = str(taught["teacher"]).split("__")
    flags = ["--lambda", f"{taught['weight']:g}"]
    flags += ["--target", taught["target"]] if taught["target"] != "probabilities" else []
    flags += ["--teacher_tag", tag[0]] if tag else []
    flags += ["--teacher_plans", teacher_plans] if teacher_plans != plans else []
    flags += ["--teacher_folds", *map(str, taught["folds"])] if taught["folds"] != [fold] else []
    flags += ["--teacher_checkpoint", taught["checkpoint"]] if taught["checkpoint"] != FINAL else []
    flags += ["-step_size", f"{taught['step_size']:g}"] if taught["step_size"] != DEFAULT_STEP else []
    flags += [] if taught["mirroring"] else ["--disable_tta"]
    return flags + (["--unlabelled", taught["unlabelled_folder"]] if taught["unlabelled_folder"] else [])
