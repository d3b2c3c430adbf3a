"""A plan that is planned again: how it differs from the one it replaces, and the command that repeats it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samunet.errors import SamunetError
from samunet.listing import shown_command
from samunet.pipeline.calibrate import assumed_gflops
from samunet.pipeline.setting_flags import setting_flags, setting_text
from samunet.planning.plan import EXPECTED, Budget, Plan
from samunet.records import to_data
from samunet.whole_files import atomic_path

logger = logging.getLogger(__name__)

ENDING = ".before"
"""Added to the file name of a plan that was replaced, so that nothing takes it for a plan."""

DEFAULT_GOAL, DEFAULT_HOURS = "accuracy", 24.0

MEMORY_ROUNDING = 0.06
"""A plan holds measured memory in tenths of a GB."""

MOST_TOLD = 6
LONGEST_VALUE = 40
PLANNERS = "the planner's"

NO_DECISIONS = ("version", "fingerprint_hash", "budget", "goal", "verdicts", "overrides")
"""Keys of a plan that say what it was made from, or follow from the rest."""


def save_plan(made: Plan, file: Path) -> None:
    """Write a plan; another one that it replaces is kept beside it and the difference is said.

    Args:
        made: the new plan.
        file: where plans of its name lie.
    """
    if file.is_file():
        _keep_if_other(file, made)
    made.save(file)


def _keep_if_other(file: Path, made: Plan) -> None:
    try:
        old = Plan.load(file)
    except SamunetError as fault:
        told = f"It could not be read: {fault}"
    else:
        differing = plan_differences(old, made)
        if not differing:
            return
        told = f"Old -> new: {'; '.join(differing)}. Planned as before: {planning_command(old)}."
    kept = file.with_name(file.name + ENDING)
    with atomic_path(kept) as temporary:
        shutil.copyfile(file, temporary)
    logger.warning(
        "%s held another plan, which is kept as %s; rename it to have it back. %s", file, kept.name, told
    )


def plan_differences(old: Plan, new: Plan) -> list[str]:
    """In words, what was asked of the planner otherwise; where that is alike, what else was decided.

    Args:
        old: the plan that is there.
        new: the one that takes its place. Throughput, disk and memory that were measured a little otherwise
            are no difference by themselves.
    """
    told = _asked_otherwise(old, new)
    if not told:
        # Edited by hand, or other weights at hand, data or throughput: only what came out shows it.
        there, now = _decisions(old), _decisions(new)
        if not (old.weights and new.weights):  # plans had not said them; the kinds tell what is another
            there, now = _without_weights(there), _without_weights(now)
        told = _pairs(there, now, "none")
    left = len(told) - MOST_TOLD
    return [*told[:MOST_TOLD], *([f"{left} more"] if left > 0 else [])]


def _asked_otherwise(old: Plan, new: Plan) -> list[str]:
    told = _pairs(_overrides(old), _overrides(new), PLANNERS)
    told += [f"goal {old.goal} -> {new.goal}"] * (old.goal != new.goal)
    there, now = old.budget, new.budget
    told += [f"hours {there.hours:g} -> {now.hours:g}"] * (there.hours != now.hours)
    if there.device != now.device or abs(there.memory_gb - now.memory_gb) > MEMORY_ROUNDING:
        told.append(f"memory {_memory(there)} -> {_memory(now)}")
    return told


def _memory(budget: Budget) -> str:
    return f"{budget.memory_gb:g} GB ({budget.device})"


def _overrides(plan: Plan) -> dict[str, Any]:
    """What the user decided, settings each by itself."""
    told = dict(to_data(plan.overrides))
    settings = told.pop("settings", {})
    return {**told, **{f"--set {key}": value for key, value in settings.items()}}


def _decisions(plan: Plan) -> dict[str, Any]:
    """`3d_unet.batch_size` -> 2, for everything that stages after planning read."""
    kept: dict[str, Any] = {key: value for key, value in to_data(plan).items() if key not in NO_DECISIONS}
    chosen = kept.pop("configurations")
    kept.update({name: {k: v for k, v in one.items() if k not in EXPECTED} for name, one in chosen.items()})
    return _flat(kept)


def _without_weights(decisions: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in decisions.items() if not key.startswith("weights.")}


def _flat(values: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{start}{key}.") if isinstance(value, Mapping) else {start + key: value}
    return flat


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any], nothing: str) -> list[str]:
    return [
        f"{key} {_shown(old.get(key), nothing)} -> {_shown(new.get(key), nothing)}"
        for key in dict.fromkeys((*old, *new))
        if old.get(key) != new.get(key)
    ]


def _shown(value: Any, nothing: str) -> str:
    text = nothing if value is None else setting_text(value)
    is_path = isinstance(value, str)
    return text if is_path or len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} ..."


def planning_command(plan: Plan) -> str:
    """What plans again as a plan was planned, as far as the plan holds that.

    The memory of a GPU stands in it only where that GPU was not there to be measured: of one that was, the
    plan does not hold whether the user named it.
    """
    told, budget = plan.overrides, plan.budget
    words = ["samunet_plan_and_preprocess", "-d", plan.dataset, "-p", plan.name]
    if told.get("spacing"):
        words += ["-overwrite_target_spacing", *(f"{mm:.12g}" for mm in told["spacing"])]
    words += ["-encoder", str(told["encoder"])] if told.get("encoder") else []
    words += ["-w", str(told["weights"])] if told.get("weights") else []
    words += setting_flags(told.get("settings", {}))
    words += ["--goal", plan.goal] if plan.goal != DEFAULT_GOAL else []
    words += ["--hours", f"{budget.hours:g}"] if budget.hours != DEFAULT_HOURS else []
    if budget.device == "cuda" and budget.gflops == assumed_gflops(budget.memory_gb):
        words += ["-gpu_memory_target", f"{budget.memory_gb:g}"]
    return shown_command(words)
