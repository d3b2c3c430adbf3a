"""Folds that samunet_run_all finds: how far they have come, and whether it would have trained them so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samunet.data.splits import Split
from samunet.errors import SamunetError
from samunet.pipeline.replan import Overrides, planned_weights
from samunet.pipeline.run_commands import TrainedAs, given_flags
from samunet.planning.methods import get_method
from samunet.planning.plan import Configuration, Plan
from samunet.records import read_json, write_json
from samunet.trainers import import_trainer
from samunet.trainers.checkpoint import checkpoints_in
from samunet.trainers.identity import RunRecord, differences, identify, read_run, settle_all_replaced
from samunet.workspace import FINAL, Fold, Workspace, fold_folder, fold_folders, is_validated

NEW, HALFWAY, UNSCORED, DONE = "new", "halfway", "not scored yet", "done"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One fold of one method; `hours` is what the plan expects of it."""

    configuration: str
    fold: Fold
    model_folder: Path
    hours: float

    @property
    def state(self) -> str:
        """How far it has come, by the files that are there."""
        folder = fold_folder(self.model_folder, self.fold)
        if not (folder / FINAL).is_file():
            return HALFWAY if checkpoints_in(folder) else NEW
        scored = self.fold == "all" or is_validated(self.model_folder, self.fold)
        return DONE if scored else UNSCORED


@dataclass(frozen=True, kw_only=True)
class WantedTraining:
    """How a run would train one method.

    Attributes:
        plan: with the method's configuration as it would be trained.
        given: of the user's flags, those that concern the method.
    """

    plan: Plan
    given: Overrides


@dataclass(frozen=True, kw_only=True)
class WantedRun:
    """What a run is asked for.

    Attributes:
        asked: the user's flags in plain data, as they are written down.
        methods: by name.
        cases: of every fold.
        seed: None takes what a fold was begun with.
        ensembles: whether probabilities of the validation cases are kept.
    """

    dataset: str
    plans: str
    tag: str | None
    splits: str
    asked: dict[str, Any]
    methods: Mapping[str, WantedTraining]
    cases: Mapping[Fold, Split]
    time_budget_minutes: float | None
    seed: int | None
    ensembles: bool = True


def start_or_go_on(workspace: Workspace, run: WantedRun, trainings: Sequence[Training]) -> None:
    """Make sure that every fold that is there is of this run, and write down what was asked for.

    What a fold was trained with is read from its own record: it may have been trained by hand. What an
    earlier call was asked for counts only as long as something that it began is there. Folds that a killed
    --overwrite put aside are put back first.

    Raises:
        SamunetError: names every fold that was trained otherwise, and what differs.
    """
    for model_folder in dict.fromkeys(training.model_folder for training in trainings):
        settle_all_replaced(model_folder)
    tag = f"_{run.tag}" if run.tag else ""
    file = workspace.results / run.dataset / f"run_all_{run.plans}{tag}.json"
    before = read_json(file) if file.is_file() else {}
    changed = [
        f"{key} was {before.get(key)}, is {value}"
        for key, value in run.asked.items()
        if before and before.get(key) != value
    ]
    odd = {t: told for t in trainings if (told := _differences(workspace, run, t))}
    if odd or (changed and _others_begun(workspace, run, before, trainings)):
        raise SamunetError(_refusal(run, odd, file, changed))
    listed = {} if changed else before
    names = dict.fromkeys([*listed.get("configurations", ()), *run.methods])
    folds = dict.fromkeys([*listed.get("folds", ()), *run.cases])
    write_json(file, {**run.asked, "configurations": list(names), "folds": list(folds)})


def _refusal(run: WantedRun, odd: Mapping[Training, list[str]], file: Path, changed: Sequence[str]) -> str:
    lines = []
    if odd:
        lines.append(
            "Folds that are there were trained otherwise, and the verdict would mix them with new ones:"
        )
    lines += [f"  {t.configuration}, fold {t.fold}: {'; '.join(told)}" for t, told in odd.items()]
    if changed:
        lines.append(f"{file} says that this run was started differently ({'; '.join(changed)}).")
    remedy = "Give the same flags to go on, or --tag NAME for a run of its own"
    commands = [_again(run, name, [t.fold for t in odd if t.configuration == name]) for name in run.methods]
    replacing = "; ".join(filter(None, commands))
    lines.append(f"{remedy}; or train what differs anew: {replacing}." if replacing else f"{remedy}.")
    return "\n".join(lines)


def _again(run: WantedRun, name: str, folds: Sequence[Fold]) -> str:
    """The command that trains folds as the run would, in place of what is there."""
    if not folds:
        return ""
    given = run.methods[name].given
    flags = given_flags(
        {"settings": given.settings, "encoder": given.encoder, "weights": given.weights},
        run.time_budget_minutes,
        run.seed or 0,
    )
    flags += ["--npz"] * run.ensembles + ["--overwrite"]
    trained = TrainedAs(
        dataset=run.dataset, configuration=name, plans=run.plans, tag=run.tag, splits=run.splits
    )
    return trained.command(folds, *flags)


def _others_begun(
    workspace: Workspace, run: WantedRun, before: Mapping[str, Any], trainings: Sequence[Training]
) -> bool:
    """Whether folds of an earlier call have a checkpoint and are not compared by what they say themselves."""
    compared = {
        (t.configuration, t.fold)
        for t in trainings
        if read_run(fold_folder(t.model_folder, t.fold)) is not None
    }
    return any(
        checkpoints_in(folder)
        for name in before.get("configurations", ())
        for fold, folder in fold_folders(
            workspace.model_folder(run.dataset, name, run.plans, run.tag)
        ).items()
        if (name, fold) not in compared and fold in before.get("folds", [fold])
    )


def _differences(workspace: Workspace, run: WantedRun, training: Training) -> list[str]:
    """In words, how a fold that was begun differs from what the run would train."""
    folder = fold_folder(training.model_folder, training.fold)
    found = read_run(folder) if checkpoints_in(folder) else None
    if found is None:
        return []
    split, method = run.cases[training.fold], run.methods[training.configuration]
    plan, told = _starting_as(workspace, method, training.configuration, found)
    seed = found.seed if run.seed is None else run.seed
    wanted = identify(plan, training.configuration, (tuple(split.train), tuple(split.val)), seed)
    there, now = found.time_budget_minutes, run.time_budget_minutes
    if there != now:
        told.append(f"time budget: {_minutes(there)} there, {_minutes(now)} now")
    return [*differences(found, wanted), *told]


def _minutes(budget: float | None) -> str:
    return "none" if budget is None else f"{budget:g} minutes"


def _starting_as(
    workspace: Workspace, method: WantedTraining, name: str, found: RunRecord
) -> tuple[Plan, list[str]]:
    """The plan with the kind of weights that training would begin with; and how they are others, in words."""
    configuration, told = method.plan.configuration(name), []
    if configuration.encoder is None:
        return method.plan, []
    try:
        weights = method.given.weights or planned_weights(method.plan, name)
        trainer = import_trainer(get_method(configuration.method).trainer)
        pretrained = trainer.pretrained(configuration, weights, workspace.weights)
    except SamunetError:
        # They are gone. Where nothing is left to train they are not needed; else the training says so.
        return _with_kind(method.plan, configuration, found.configuration["encoder_weights"]), []
    if pretrained is None:
        return method.plan, []
    if found.weights is not None and found.weights.sha256 != pretrained.sha256:
        now = f"{pretrained.path} (SHA-256 {pretrained.sha256[:12]}...)"
        told.append(
            f"weights: {found.weights.file} (SHA-256 {found.weights.sha256[:12]}...) there, {now} now"
        )
    return _with_kind(method.plan, configuration, pretrained.kind), told


def _with_kind(plan: Plan, configuration: Configuration, kind: Any) -> Plan:
    changed = replace(configuration, encoder_weights=kind)
    return replace(plan, configurations={**plan.configurations, configuration.name: changed})
