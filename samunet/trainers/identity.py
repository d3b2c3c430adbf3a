"""Run identity: what a run folder holds is written down, and nothing else is ever mixed into it."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from samunet.errors import SamunetError
from samunet.planning.plan import EXPECTED, Plan, WeightsUsed
from samunet.records import content_hash, read_record, to_data, write_json
from samunet.trainers.checkpoint import checkpoints_in
from samunet.trainers.claim import claimed
from samunet.workspace import FINAL, LATEST, RUN_FILE

logger = logging.getLogger(__name__)

PLACES = ("teacher_folder", "unlabelled_folder")
"""Keys of a distillation that say where things lay, not what they were."""


@dataclass(frozen=True, kw_only=True)
class PhaseLength:
    """Length of a phase as decided at the start of the run, and the rates that go with it."""

    name: str
    epochs: int
    iterations: int
    val_iterations: int
    learning_rate: float
    momentum: float


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """How the frozen encoder's outputs come to the head; a continued run keeps to it.

    Attributes:
        mode: `cached`; `on the fly`, encoding in every step; `none`, nothing to cache.
        reason: why not cached.
        views / items_per_case: extent of the cache; None keeps all slices.
    """

    mode: Literal["cached", "on the fly", "none"]
    reason: str = ""
    views: int = 0
    items_per_case: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Content of run.json.

    Attributes:
        configuration_hash / data_hash / split_hash: identify what is trained on what.
        configuration: the configuration with overrides applied, plain data.
        fold / seed / train / val: which cases, and what all draws come from.
        overrides: what the user changed on the command line.
        time_budget_minutes: wanted duration; `phases` what was decided from it.
        batch_workers: worker processes that were to prepare samples; a small /dev/shm may have allowed fewer.
        weights: pretrained file used, if any.
        distillation: teacher and share of its outputs in the loss; None for a training without a teacher.
        device / precision / hardware / versions: where it was trained.
    """

    configuration_hash: str
    data_hash: str
    split_hash: str
    configuration: dict[str, Any]
    fold: int | str
    seed: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    overrides: dict[str, Any]
    time_budget_minutes: float | None
    phases: tuple[PhaseLength, ...]
    batch_workers: int
    weights: WeightsUsed | None
    cache: CacheUse
    device: str
    precision: str
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    distillation: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What must agree before a run folder may be continued."""

    configuration_hash: str
    data_hash: str
    split_hash: str
    seed: int
    configuration: dict[str, Any]
    distillation: dict[str, Any] | None = None


def identify(
    plan: Plan,
    name: str,
    cases: tuple[tuple[str, ...], tuple[str, ...]],
    seed: int,
    distillation: dict[str, Any] | None = None,
) -> Identity:
    """Identity of training configuration `name` of a plan on `cases` (training, validation)."""
    configuration = to_data(plan.configuration(name))
    return Identity(
        configuration_hash=plan.configuration_hash(name),
        data_hash=plan.data_hash(plan.configuration(name).data),
        split_hash=content_hash([sorted(cases[0]), sorted(cases[1])]),
        seed=seed,
        configuration={key: value for key, value in configuration.items() if key not in EXPECTED},
        distillation=distillation,
    )


def read_run(folder: Path) -> RunRecord | None:
    """The record of a run folder, or None when there is none."""
    path = folder / RUN_FILE
    return read_record(RunRecord, path) if path.exists() else None


def write_run(folder: Path, record: RunRecord) -> None:
    """Write run.json."""
    write_json(folder / RUN_FILE, record, lasting=True)


DEFAULT = "the default"
"""Of a setting that a configuration does not name."""


def differences(found: RunRecord, wanted: Identity) -> list[str]:
    """In words, everything in which a run folder differs from what is wanted."""
    told = configuration_differences(found, wanted)
    if found.split_hash != wanted.split_hash:
        told.append("the split: other cases for training or validation")
    if found.seed != wanted.seed:
        told.append(f"seed: {found.seed} there, {wanted.seed} now")
    return told + distillation_differences(found.distillation, wanted.distillation)


def configuration_differences(found: RunRecord, wanted: Identity) -> list[str]:
    """In words, how configuration and preprocessing of a run differ from what is wanted."""
    there, now = (_plain_keys(configuration) for configuration in (found.configuration, wanted.configuration))
    told = [
        f"{key}: {there.get(key, DEFAULT)} there, {now.get(key, DEFAULT)} now"
        for key in sorted({*there, *now})
        if there.get(key, DEFAULT) != now.get(key, DEFAULT)
    ]
    if found.data_hash != wanted.data_hash:
        told.append("the preprocessing of the cases")
    if found.configuration_hash != wanted.configuration_hash and not told:
        told.append("the display window or other parts of the data configuration")
    return told


def _plain_keys(configuration: dict[str, Any]) -> dict[str, Any]:
    """A configuration with its settings beside its own keys; of a name that both have, --set means the
    setting."""
    own = {key: value for key, value in configuration.items() if key != "settings"}
    settings = configuration.get("settings", {}).items()
    return {**own, **{f"--set {key}" if key in own else key: value for key, value in settings}}


def distillation_differences(found: dict[str, Any] | None, wanted: dict[str, Any] | None) -> list[str]:
    """In words, how what a run is distilled from differs from what is wanted; None is no teacher."""
    if found is None or wanted is None:
        there, now = (
            "no teacher" if kept is None else f"distilled from {kept['teacher']}" for kept in (found, wanted)
        )
        return [] if there == now else [f"{there} there, {now} now (command samunet_distill)"]
    return [
        f"{key} of the distillation: {found.get(key)!r} there, {wanted.get(key)!r} now"
        for key in sorted({*found, *wanted} - set(PLACES))
        if found.get(key) != wanted.get(key)
    ]


def clear_for_new_run(folder: Path) -> None:
    """Put the run that --overwrite replaces aside; to be called when nothing can refuse the new one any more.

    `settle_replaced` removes it, or puts it back. An empty folder, as timing leaves it, is no run.
    """
    if folder.exists() and any(folder.iterdir()):
        logger.info("Replacing the run in %s.", folder)
        folder.rename(_aside(folder))


def settle_replaced(folder: Path) -> None:
    """Remove a run that was put aside once the new one has a checkpoint; without one it comes back."""
    aside = _aside(folder)
    if not aside.is_dir():
        return
    if checkpoints_in(folder):
        shutil.rmtree(aside)
        return
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    logger.warning("The new run left no checkpoint, so the one that it was to replace is back in %s.", folder)


def settle_all_replaced(model_folder: Path) -> None:
    """Settle the folds of a model that an --overwrite put aside and did not live to settle.

    To be called before anything is concluded from the folds that are there. A fold that another process is
    replacing just now is left to it.
    """
    for aside in sorted(model_folder.glob(_aside(Path("*")).name)):
        folder = aside.with_name(aside.name.removeprefix(".").removesuffix(".replaced"))
        with suppress(SamunetError), claimed(folder):
            settle_replaced(folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def check_unclaimed(folder: Path, wanted: Identity) -> None:
    """Make sure that a new run may start in `folder`.

    Raises:
        SamunetError: it holds a run, the same or another one.
    """
    found = read_run(folder)
    started = checkpoints_in(folder)
    told = differences(found, wanted) if found is not None else []
    if told and started:
        raise SamunetError(
            f"{folder} holds another run. It differs in: {'; '.join(told)}. Give this run a name of its own "
            "with --tag, or replace the old one with --overwrite."
        )
    if started:
        state, usual = "an unfinished training", "Continue with --c"
        if FINAL in started:
            state, usual = "a finished training", "Validate it with --val, keep another beside it with --tag"
        raise SamunetError(
            f"{folder} already holds {state} of this configuration and split. {usual}, or start anew with "
            "--overwrite."
        )


def check_resumable(folder: Path, wanted: Identity, found: RunRecord | None) -> None:
    """Make sure that the run in `folder` can be continued.

    Raises:
        SamunetError: there is nothing to continue, the run is finished, or it is another run.
    """
    if found is None or not checkpoints_in(folder):
        raise SamunetError(
            f"There is nothing to continue in {folder}: no {LATEST}. Start the training without --c."
        )
    told = differences(found, wanted)
    if told:
        raise SamunetError(
            f"The run in {folder} cannot be continued, it differs in: {'; '.join(told)}. Repeat its "
            f"settings, give "
            "the new run a --tag, or replace the old one with --overwrite."
        )
    if (folder / FINAL).exists():
        raise SamunetError(
            f"The training in {folder} is finished ({FINAL} exists); there is nothing to continue. Predict "
            "with it, validate it with --val, or train anew with --overwrite."
        )
