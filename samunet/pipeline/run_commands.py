"""The command that trains folds of a model, also as another one was trained: settings, budget, teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samunet.listing import shown_command
from samunet.pipeline.setting_flags import setting_flags
from samunet.pipeline.trained_cases import DEFAULT_SCHEME
from samunet.trainers.identity import RunRecord
from samunet.workspace import DEFAULT_PLANS, FINAL, short_dataset_name

DEFAULT_STEP = 0.5


@dataclass(frozen=True, kw_only=True)
class TrainedAs:
    """How a model is named on the command line.

    Attributes:
        dataset: full name.
        splits: scheme that names the folds; None is that of the run to be repeated, else the default.
    """

    dataset: str
    configuration: str
    plans: str = DEFAULT_PLANS
    tag: str | None = None
    splits: str | None = None

    @property
    def name(self) -> str:
        """`2d_cnn`, or `2d_cnn__TAG`."""
        return self.configuration if self.tag is None else f"{self.configuration}__{self.tag}"

    def command(self, folds: Sequence[int | str], *flags: str, like: RunRecord | None = None) -> str:
        """What a user types to train these folds, or to do with them what the flags say.

        Args:
            flags: further words. With `--c` only the teacher of `like` is named, the rest is what the fold
                began with; with `--val` nothing is, for a trained fold needs no teacher.
            like: a run to be repeated, of one of the folds or of another fold of the model, with everything
                that it was given; one that had a teacher makes it samunet_distill.
        """
        taught = None if like is None or "--val" in flags else like.distillation
        words = ["samunet_train" if taught is None else "samunet_distill", short_dataset_name(self.dataset)]
        words += [] if taught is None else [str(taught["teacher"]).partition("__")[0]]
        words += [self.configuration, *map(str, folds)]
        words += [] if self.plans == DEFAULT_PLANS else ["-p", self.plans]
        words += [] if self.tag is None else ["--tag", self.tag]
        own = None if like is None else like.overrides.get("splits")
        splits = self.splits or own or DEFAULT_SCHEME
        words += [] if splits == DEFAULT_SCHEME else ["--splits", splits]
        words += [] if like is None else self._given(like, flags)
        return shown_command([*words, *flags])

    def _given(self, run: RunRecord, flags: Sequence[str]) -> list[str]:
        """Flags that a run was given, as far as the further flags do not know them by themselves."""
        is_begun = {"--c", "--val"} & set(flags)
        words = [] if is_begun else given_flags(run.overrides, run.time_budget_minutes, run.seed)
        if run.distillation is None or "--val" in flags:
            return words
        words += _teacher_flags(run.distillation, self.plans)
        return words + ([] if "--c" in flags else _teaching_flags(run.distillation, run.fold))


def given_flags(told: Mapping[str, Any], time_budget_minutes: float | None, seed: int) -> list[str]:
    """Flags of samunet_train.

    Args:
        told: `settings`, `encoder` and `weights` as in the overrides of a run.
    """
    flags: list[str] = []
    for key, value in told.get("settings", {}).items():
        flags += [f"--{key}", str(value)] if key in ("epochs", "iterations") else setting_flags({key: value})
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
