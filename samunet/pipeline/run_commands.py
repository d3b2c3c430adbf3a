"""The command that trains a fold as another one was trained: its settings, weights, budget and teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samunet.trainers.checkpoint import FINAL
from samunet.trainers.identity import RunRecord
from samunet.workspace import training_command

DEFAULT_STEP = 0.5


def command_like(
    run: RunRecord,
    dataset: str,
    configuration: str,
    folds: Sequence[int | str],
    *,
    plans: str,
    tag: str | None,
    splits: str | None = None,
    flags: Sequence[str] = (),
) -> str:
    """samunet_train, or samunet_distill for what had a teacher, with everything that the run was given.

    Args:
        run: of one of the folds, or of another fold of the model.
        plans / tag: of the model.
        splits: scheme that names the folds; None is the run's own.
        flags: further words. With `--c` only the teacher is named, the rest is what the fold began with;
            with `--val` nothing is, for a trained fold needs no teacher.
    """
    taught = None if "--val" in flags else run.distillation
    is_begun = {"--c", "--val"} & set(flags)
    words = [] if is_begun else given_flags(run.overrides, run.time_budget_minutes, run.seed)
    if taught is not None:
        words += _teacher_flags(taught, plans)
        words += [] if "--c" in flags else _teaching_flags(taught, run.fold)
    return training_command(
        dataset,
        configuration,
        folds,
        plans=plans,
        tag=tag,
        splits=run.overrides.get("splits", "kfold") if splits is None else splits,
        teacher=None if taught is None else str(taught["teacher"]).partition("__")[0],
        flags=[*words, *flags],
    )


def given_flags(told: Mapping[str, Any], time_budget_minutes: float | None, seed: int) -> list[str]:
    """Flags of samunet_train.

    Args:
        told: `settings`, `encoder` and `weights` as in the overrides of a run.
    """
    flags: list[str] = []
    for key, value in told.get("settings", {}).items():
        flags += [f"--{key}", str(value)] if key in ("epochs", "iterations") else ["--set", f"{key}={value}"]
    flags += ["-encoder", str(told["encoder"])] if told.get("encoder") else []
    flags += ["-w", str(told["weights"])] if told.get("weights") else []
    if time_budget_minutes is not None:
        flags += ["--time_budget", f"{time_budget_minutes:g}"]
    return flags + (["--seed", str(seed)] if seed != 0 else [])


def _teacher_flags(taught: dict[str, Any], plans: str) -> list[str]:
    """Where the teacher lies, as far as samunet_distill would not look there."""
    _, teacher_plans, *tag = str(taught["teacher"]).split("__")
    flags = ["--teacher_tag", tag[0]] if tag else []
    return flags + (["--teacher_plans", teacher_plans] if teacher_plans != plans else [])


def _teaching_flags(taught: dict[str, Any], fold: int | str) -> list[str]:
    """What of the teaching differs from what samunet_distill does without a word."""
    flags = ["--lambda", f"{taught['weight']:g}"]
    flags += ["--target", taught["target"]] if taught["target"] != "probabilities" else []
    flags += ["--teacher_folds", *map(str, taught["folds"])] if taught["folds"] != [fold] else []
    flags += ["--teacher_checkpoint", taught["checkpoint"]] if taught["checkpoint"] != FINAL else []
    flags += ["-step_size", f"{taught['step_size']:g}"] if taught["step_size"] != DEFAULT_STEP else []
    flags += [] if taught["mirroring"] else ["--disable_tta"]
    return flags + (["--unlabelled", taught["unlabelled_folder"]] if taught["unlabelled_folder"] else [])
