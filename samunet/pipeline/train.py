"""Train a fold, then predict and score its validation cases from the checkpoint alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from samunet.data.dataset import RawDataset
from samunet.data.splits import Split, kept_together, load_or_create_splits, select_fold
from samunet.errors import SamunetError
from samunet.inference.probabilities import Storage
from samunet.pipeline.models import AUTO, configuration_name, load_plan, recommended_for_longer
from samunet.pipeline.preprocessed_cases import (
    preprocess_command,
    preprocessed_names,
    refuse_other_declaration,
)
from samunet.pipeline.qc.model import calibrate_when_complete
from samunet.pipeline.recorded_plan import recorded_plan
from samunet.pipeline.replan import Overrides, planned_weights, replan
from samunet.pipeline.said_once import SaidOnce, Say
from samunet.pipeline.trained_cases import DEFAULT_SCHEME, SplitInUse, begun_run, check_trained_cases
from samunet.pipeline.validate import ValidationRequest, ValidationResult, validate
from samunet.planning.plan import Plan
from samunet.records import read_json, write_json
from samunet.trainers.distillation import Distillation
from samunet.trainers.entry import train_fold
from samunet.trainers.identity import RunRecord, read_run, settle_all_replaced
from samunet.trainers.portable import is_shared_model
from samunet.trainers.run import RunRequest
from samunet.workspace import BEST, DEFAULT_PLANS, FINAL, Workspace, fold_folder, split_tag

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """A training in the user's words.

    Attributes:
        dataset: full name.
        configuration: method, alias, or `auto`.
        fold: number or `all`.
        method: -tr.
        settings: --set with --epochs and --iterations.
        encoder: SAM variant in place of the plan's.
        weights: encoder file, or folder with official files.
        only_validate / checkpoint: --val and -chk.
        save_probabilities: how to keep those of the validation cases (--npz); True is fp16.
        tag: keeps the run apart; None takes one from `splits` (none for the default split), "" has none.
        replaced: further folds that the same command replaces with `overwrite`.
        splits: split scheme; None is the default, or that of the run which is continued or validated.
        like: record of the fold that a new one is begun like.
    """

    dataset: str
    configuration: str
    fold: int | str
    method: str | None = None
    plans: str = DEFAULT_PLANS
    device: str = "auto"
    settings: dict[str, Any] = field(default_factory=dict)
    encoder: str | None = None
    weights: Path | None = None
    time_budget_minutes: float | None = None
    seed: int | None = None
    tag: str | None = None
    resume: bool = False
    only_validate: bool = False
    checkpoint: str = FINAL
    save_probabilities: Storage | bool = False
    overwrite: bool = False
    replaced: tuple[int | str, ...] = ()
    splits: str | None = None
    workers: int | None = None
    like: RunRecord | None = None

    @property
    def run_tag(self) -> str | None:
        """Tag of the run's folder."""
        return split_tag(self.splits) if self.tag is None else self.tag or None


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """Where the run lies and what its validation gave; `interrupted` when a signal ended it early."""

    folder: Path
    interrupted: bool = False
    validation: ValidationResult | None = None

    def text(self) -> str:
        """The outcome in plain words."""
        lines = [f"Run folder: {self.folder}"]
        if self.validation is not None:
            lines.insert(0, self.validation.text())
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """What a run stands on.

    Attributes:
        plan: with the configuration as the user's overrides have it planned; `name` is its name.
        dataset: the raw data, where they are here.
        split: cases of the fold.
        splits / splits_file: scheme of the split, None for the default one, and its file.
        case_folder: preprocessed cases of the configuration's data.
        model_folder: the run's folder is fold_K in it.
        found: record of a run that is there already.
    """

    plan: Plan
    name: str
    dataset: RawDataset | None
    split: Split
    splits: str | None
    splits_file: Path
    case_folder: Path
    model_folder: Path
    found: RunRecord | None

    def check_cases(self, fold: int | str) -> None:
        """See that a fold that is trained has not been trained on what would be validated now.

        Raises:
            SamunetError: its cases are others than the split's.
        """
        now = SplitInUse(scheme=self.splits or DEFAULT_SCHEME, file=self.splits_file, split=self.split)
        check_trained_cases(fold_folder(self.model_folder, fold), self.found, now)


Teach = Callable[[PreparedRun], Distillation]
"""Finds the teacher of a run."""


def train(
    workspace: Workspace, options: TrainOptions, teach: Teach | None = None, *, say: Say | None = None
) -> TrainOutcome:
    """Train one fold and validate it on whole cases.

    Args:
        workspace: where everything lies.
        options: the user's words.
        teach: gives the teacher of a distilled run.
        say: tells what is the same for all folds of a command.

    Raises:
        SamunetError: no plan, cases not preprocessed, unknown method or setting, fold out of range, a run
            folder that does not match, or one to be validated that was trained on other cases.
    """
    say = say or SaidOnce()
    prepared = prepare_run(workspace, options, say)
    folder = fold_folder(prepared.model_folder, options.fold)
    if prepared.splits != options.splits:
        logger.info("The cases are split by %s, as in %s.", prepared.splits, prepared.model_folder.name)
    if options.only_validate:
        prepared.check_cases(options.fold)
    else:
        _tell_of_best(prepared, say)
        distillation = None if teach is None else teach(prepared)
        _describe_model(workspace, prepared, replace=False)
        request = replace(_request(workspace, options, prepared), distillation=distillation)
        outcome = train_fold(request)
        _describe_model(workspace, prepared, replace=True)
        if outcome.status == "interrupted":
            return TrainOutcome(folder=folder, interrupted=True)
    return TrainOutcome(folder=folder, validation=_validate(workspace, options, prepared))


def _tell_of_best(prepared: PreparedRun, say: Say) -> None:
    """What the best checkpoint is chosen on, where a figure of other groups is what the split is for."""
    kept_out = set(prepared.split.val) - set(prepared.split.train)
    if prepared.splits in (None, DEFAULT_SCHEME) or not kept_out:
        return
    say(
        f"--splits {prepared.splits}: the validation cases are of the groups that are kept out of training. "
        f"{BEST} is the epoch that was best on them, so its scores for these groups are optimistic. "
        f"Validation and prediction take {FINAL}, the last epoch, unless -chk names another."
    )


def prepare_run(workspace: Workspace, options: TrainOptions, say: Say | None = None) -> PreparedRun:
    """Resolve plan, configuration, split and folders of a fold; writes nothing but the splits file.

    A run that a killed --overwrite put aside is put back first.

    Raises:
        SamunetError: no plan, cases not preprocessed, unknown method or setting, or no such fold.
    """
    say = say or SaidOnce()
    stored = load_plan(workspace, options.dataset, options.plans)
    name = configuration_name(options.configuration, options.method, stored.recommended)
    longer = recommended_for_longer(stored, options.time_budget_minutes)
    if longer and options.configuration == AUTO and options.method is None:
        say(longer)
    model_folder = workspace.model_folder(stored.dataset, name, stored.name, options.run_tag)
    if is_shared_model(model_folder):
        raise SamunetError(
            f"{model_folder} holds a model that was installed, not trained here; nothing is trained into it. "
            "Give this training a --tag, or remove that folder."
        )
    settle_all_replaced(model_folder)
    found = read_run(fold_folder(model_folder, options.fold))
    record = _repeated(options, model_folder, found)
    given = _planning_overrides(options, record)
    plan = None if record is None else recorded_plan(stored, model_folder, record, given, say)
    plan = plan or replan(workspace, stored, name, given, say)
    data_name = plan.configuration(name).data
    case_folder = workspace.case_folder(plan.dataset, plan.name, data_name)
    raw = workspace.raw / plan.dataset
    dataset = RawDataset.load(raw) if (raw / "dataset.json").is_file() else None
    if dataset is not None:
        refuse_other_declaration(dataset, plan)
    again = preprocess_command(stored, name, data_name)
    names = preprocessed_names(dataset, plan, data_name, case_folder, again)
    scheme = _split_scheme(options, record)
    splits_file = workspace.splits_file(plan.dataset, scheme or DEFAULT_SCHEME)
    splits = load_or_create_splits(
        splits_file,
        names,
        groups=None if dataset is None else kept_together(dataset.origins, scheme or DEFAULT_SCHEME),
        scheme=scheme or DEFAULT_SCHEME,
        raw_file=raw / "splits_final.json",
        warn=lambda text: say(text, logging.WARNING),
    )
    return PreparedRun(
        plan=plan,
        name=name,
        dataset=dataset,
        split=select_fold(splits, options.fold, names),
        splits=scheme,
        splits_file=splits_file,
        case_folder=case_folder,
        model_folder=model_folder,
        found=found,
    )


def _repeated(options: TrainOptions, model_folder: Path, found: RunRecord | None) -> RunRecord | None:
    """The record that a run repeats where nothing else is given: its own when continued or validated.

    Under --c a fold that was never started repeats those that were.
    """
    if not (options.resume or options.only_validate):
        return options.like
    return found or begun_run(model_folder)[1]


def _split_scheme(options: TrainOptions, record: RunRecord | None) -> str | None:
    """The user's; unless one is given, that of the record which is repeated."""
    if options.splits is not None or record is None:
        return options.splits
    return record.overrides.get("splits")


def _planning_overrides(options: TrainOptions, record: RunRecord | None) -> Overrides:
    """What the planner has to know: what is given now, over what the user gave for the run that is repeated.

    The encoder counts as given only where the user had named one: the planner's own choice, named, would be
    planned otherwise. Settings beside --val are of prediction.
    """
    if record is None:
        return Overrides(settings=options.settings, encoder=options.encoder, weights=options.weights)
    told, now = record.overrides, {} if options.only_validate else options.settings
    return Overrides(
        settings={**told.get("settings", {}), **now},
        encoder=options.encoder or told.get("encoder"),
        weights=options.weights or (Path(told["weights"]) if told.get("weights") else None),
    )


def _request(workspace: Workspace, options: TrainOptions, prepared: PreparedRun) -> RunRequest:
    plan = prepared.plan
    data_name = plan.configuration(prepared.name).data
    return RunRequest(
        plan=plan,
        configuration=prepared.name,
        fold=options.fold,
        split=prepared.split,
        case_folder=prepared.case_folder,
        folder=fold_folder(prepared.model_folder, options.fold),
        splits=prepared.splits,
        settings=options.settings,
        encoder=options.encoder,
        weights=_weights(options, prepared),
        weights_folder=workspace.weights,
        embedding_folder=lambda signature: workspace.embedding_folder(
            plan.dataset, plan.name, data_name, signature
        ),
        device=options.device,
        seed=options.seed,
        time_budget_minutes=options.time_budget_minutes,
        resume=options.resume,
        overwrite=options.overwrite,
        replaced=options.replaced if options.overwrite else (),
        workers=options.workers,
    )


def _weights(options: TrainOptions, prepared: PreparedRun) -> Path | None:
    """File or folder of weights: the user's, else the plan's."""
    weights = options.weights
    if weights is None:
        return planned_weights(prepared.plan, prepared.name)
    if not weights.exists():
        raise SamunetError(f"-w {weights}: there is no such file or folder.")
    return weights


def _describe_model(workspace: Workspace, prepared: PreparedRun, *, replace: bool) -> None:
    """Leave plan, dataset.json and fingerprint in the model folder, so that it is complete in itself.

    Only a training that was let in may replace them: a refused one must not touch another's folder.
    """
    fingerprint = workspace.fingerprint_file(prepared.plan.dataset)
    contents = {
        "plan.json": prepared.plan,
        "dataset.json": None if prepared.dataset is None else prepared.dataset.json,
        "fingerprint.json": read_json(fingerprint) if fingerprint.exists() else None,
    }
    for name, content in contents.items():
        file = prepared.model_folder / name
        if content is not None and (replace or not file.exists()):
            write_json(file, content)


def _validate(workspace: Workspace, options: TrainOptions, prepared: PreparedRun) -> ValidationResult | None:
    """Whole-case validation; None where no case is kept out or the raw data are not here."""
    if not set(prepared.split.val) - set(prepared.split.train):
        logger.info(
            "Fold %s keeps no case out of training, so there is nothing to validate on.", options.fold
        )
        return None
    if prepared.dataset is None:
        logger.warning(
            "The raw data of %s are not in %s: whole cases cannot be validated. Put them there and run again "
            "with --val.",
            prepared.plan.dataset,
            workspace.raw,
        )
        return None
    # Only a folder can hold what a checkpoint leaves out, and only then it has to be there.
    told = options.weights or prepared.plan.overrides.get("weights")
    weights = None if told is None else Path(told)
    result = validate(
        ValidationRequest(
            model_folder=prepared.model_folder,
            fold=options.fold,
            cases=tuple(prepared.dataset.case(name) for name in prepared.split.val),
            origins=prepared.dataset.origins,
            device=options.device,
            weights_folder=weights if weights is not None and weights.is_dir() else workspace.weights,
            save_probabilities=options.save_probabilities,
            checkpoint=options.checkpoint,
            settings=options.settings if options.only_validate else {},
        )
    )
    quality = calibrate_when_complete(prepared.model_folder, prepared.dataset.case_names)
    if quality is not None:
        logger.info("%s", quality.text())
    return result
