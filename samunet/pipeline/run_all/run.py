"""Plan, train methods fold by fold, select, report: each step once, whatever stopped the run before."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from samunet.data.dataset import RawDataset
from samunet.data.splits import Split, kept_together, load_or_create_splits, select_fold
from samunet.errors import SamunetError, unknown_name
from samunet.pipeline.goal_split import settle_for_goal
from samunet.pipeline.models import configuration_name, load_plan, recommended_for_longer
from samunet.pipeline.plan_and_preprocess import PlanOptions, plan, preprocess
from samunet.pipeline.replaced_plan import MEMORY_ROUNDING
from samunet.pipeline.replan import Overrides, replan
from samunet.pipeline.report.write import ReportOptions, write_report
from samunet.pipeline.run_all.folds import (
    DONE,
    HALFWAY,
    NEW,
    UNSCORED,
    Training,
    WantedRun,
    WantedTraining,
    start_or_go_on,
)
from samunet.pipeline.run_all.room import check_probability_room
from samunet.pipeline.said_once import SaidOnce, Say
from samunet.pipeline.selection.find import SelectionOptions, find_best
from samunet.pipeline.selection.out_of_fold import ModelsWanted
from samunet.pipeline.selection.text import describe
from samunet.pipeline.train import TrainOptions, train
from samunet.pipeline.trained_cases import DEFAULT_SCHEME
from samunet.planning.methods import get_method
from samunet.planning.plan import Plan
from samunet.planning.standing import shown_hours
from samunet.progress import Screen, no_screen
from samunet.records import to_data
from samunet.trainers.settings import apply_overrides, configuration_fields
from samunet.workspace import SPLITS_FILE, Workspace, split_tag

logger = logging.getLogger(__name__)

FIRST_RIVAL = "2d_cnn"
"""The SAM method that a recommended U-Net is compared with, where it fits: it suits data of any kind."""


@dataclass(frozen=True, kw_only=True)
class RunAllOptions:
    """The whole run in the user's words.

    Attributes:
        dataset: full name.
        configurations: methods to train; None takes the plan's recommendation and its rival.
        folds: to train; None takes every fold of the split.
        planning: how to plan, where there is no such plan yet.
        settings: --set with --epochs and --iterations.
        time_budget_minutes: for each fold of each method.
        splits: scheme of the folds; None takes the goal's, which is the default one unless the goal is
            `generalize` and every case is of a group.
        workers: processes that read and preprocess; those that prepare samples are at most as many as a
            training takes by itself.
        ensembles: whether the probabilities of the validation cases are kept and ensembles tried.
    """

    dataset: str
    configurations: tuple[str, ...] | None = None
    folds: tuple[int | str, ...] | None = None
    planning: PlanOptions = field(default_factory=PlanOptions)
    settings: dict[str, Any] = field(default_factory=dict)
    time_budget_minutes: float | None = None
    device: str = "auto"
    seed: int | None = None
    tag: str | None = None
    splits: str | None = None
    workers: int | None = None
    ensembles: bool = True

    @property
    def scheme(self) -> str:
        """Split scheme, once the goal's is settled."""
        return self.splits or DEFAULT_SCHEME

    @property
    def run_tag(self) -> str | None:
        """Tag of the trainings: the user's, else that of a split which is not the default one."""
        return self.tag or split_tag(self.scheme)


@dataclass(frozen=True, kw_only=True)
class RunAllOutcome:
    """Where the report lies; `interrupted` when a signal ended a training early."""

    report: Path | None
    verdict: str = ""
    interrupted: bool = False

    def text(self) -> str:
        """The outcome in plain words."""
        if self.interrupted:
            return "Interrupted. The same command goes on from here."
        return f"{self.verdict}\n\nReport: {self.report}".lstrip()


def run_all(workspace: Workspace, options: RunAllOptions, screen: Screen = no_screen) -> RunAllOutcome:
    """Plan, preprocess, train, select and report; what is there already is kept.

    Raises:
        SamunetError: folds that are there were trained otherwise than the options say, the disk has no room
            for the probabilities of the validation cases, or a step cannot be done.
    """
    made = _plan(workspace, options)
    raw = RawDataset.load(workspace.raw_folder(options.dataset))
    scheme, settings = settle_for_goal(made, raw, options.splits, options.settings)
    options = replace(options, splits=scheme, settings=settings)
    names = chosen_methods(made, options.configurations)
    say = SaidOnce()
    longer = recommended_for_longer(made, options.time_budget_minutes)
    if longer and options.configurations is None:
        say(longer)
    cases = _cases(workspace, raw, options, say)
    methods = _check_methods(workspace, options, made, names, say)
    trainings = _trainings(workspace, options, made, names, tuple(cases))
    if options.ensembles:
        check_probability_room(workspace, raw, trainings, cases)
    else:
        logger.info("--no_ensembles: no class probabilities are kept, and no ensembles are tried.")
    start_or_go_on(workspace, _wanted(options, methods, cases), trainings)
    preprocess(workspace, made, names, options.workers, screen)
    clock = _Clock(options.time_budget_minutes)
    for number, training in enumerate(trainings, start=1):
        told = f"[{number} of {len(trainings)}] {training.configuration}, fold {training.fold}"
        if training.state == DONE:
            logger.info("%s: done before", told)
            continue
        left = [t for t in trainings[number - 1 :] if t.state != DONE]
        logger.info("%s; about %s of training left in all", told, shown_hours(clock.hours(left)))
        start = time.perf_counter()
        if not _train(workspace, options, training, say):
            return RunAllOutcome(report=None, interrupted=True)
        clock.note(training, time.perf_counter() - start)
    verdict = _select(workspace, options, made, trainings)
    report = write_report(workspace, ReportOptions(dataset=options.dataset, plans=made.name))
    return RunAllOutcome(report=report, verdict=verdict)


def _select(workspace: Workspace, options: RunAllOptions, made: Plan, trainings: Sequence[Training]) -> str:
    """Compare what was trained on its out-of-fold cases; empty where no case was kept out."""
    folds = tuple(dict.fromkeys(t.fold for t in trainings if isinstance(t.fold, int)))
    if not folds:
        return ""
    names = dict.fromkeys(t.configuration for t in trainings)
    tag = f"__{options.run_tag}" if options.run_tag else ""
    wanted = ModelsWanted(
        dataset=options.dataset,
        configurations=tuple(f"{name}{tag}" for name in names),
        plans=made.name,
        splits=options.scheme,
        folds=folds,
    )
    return describe(
        find_best(
            workspace, SelectionOptions(wanted=wanted, ensembles=options.ensembles, workers=options.workers)
        )
    )


def _plan(workspace: Workspace, options: RunAllOptions) -> Plan:
    """The plan of that name, made now where there is none.

    Raises:
        SamunetError: it is there, and was made otherwise than the flags say.
    """
    wanted = options.planning
    if not workspace.plan_file(options.dataset, wanted.plans).is_file():
        return plan(workspace, options.dataset, wanted, workers=options.workers)
    made = load_plan(workspace, options.dataset, wanted.plans)
    differing = _plan_differences(wanted, made)
    if differing:
        raise SamunetError(
            f"The plan {made.name} is there and was made otherwise: {'; '.join(differing)}. Leave these "
            "flags out to use it, or name a plan of its own with -p."
        )
    logger.info(
        "The plan %s is there and is used (goal %s, %g h a fold, %g GB).",
        made.name,
        made.goal,
        made.budget.hours,
        made.budget.memory_gb,
    )
    return made


def _plan_differences(wanted: PlanOptions, made: Plan) -> list[str]:
    """Flags that a plan which is there does not follow; what was not given asks for nothing."""
    default, budget, told = PlanOptions(), made.budget, []
    if wanted.goal not in (default.goal, made.goal):
        told.append(f"--goal {wanted.goal}, but the plan's is {made.goal}")
    if wanted.hours not in (default.hours, budget.hours):
        told.append(f"--hours {wanted.hours:g}, but the plan's are {budget.hours:g}")
    if wanted.gpu_memory_gb is not None and abs(wanted.gpu_memory_gb - budget.memory_gb) > MEMORY_ROUNDING:
        there = f"{budget.memory_gb:g} GB ({budget.device})"
        told.append(f"-gpu_memory_target {wanted.gpu_memory_gb:g}, but it is for {there}")
    spacing = made.overrides.get("spacing")
    if wanted.spacing_mm is not None and (spacing is None or tuple(spacing) != wanted.spacing_mm):
        there = "the planner's" if spacing is None else " ".join(f"{mm:g}" for mm in spacing)
        asked = " ".join(f"{mm:g}" for mm in wanted.spacing_mm)
        told.append(f"-overwrite_target_spacing {asked}, but the plan's is {there}")
    return told


def chosen_methods(made: Plan, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The methods to train: those asked for, or the recommended one and the one it has to beat.

    A recommended SAM method has to beat the U-Net of its dimension. A recommended U-Net is compared with
    `2d_cnn`, or with the first SAM method that fits: without one, nobody would know whether the prior helps.

    Raises:
        SamunetError: an unknown method, or nothing is recommended.
    """
    if wanted:
        return tuple(dict.fromkeys(configuration_name(name, None, made.recommended) for name in wanted))
    if not made.recommended:
        raise SamunetError("The plan recommends no method: none fits its budget. Name methods with -c.")
    recommended = made.configuration(made.recommended)
    if recommended.encoder is not None:
        rival = "3d_unet" if len(recommended.patch_size) == 3 else "2d_unet"
        return (made.recommended, rival)
    fitting = {v.method for v in made.verdicts if v.status == "fits"}
    sam = [n for n, c in made.configurations.items() if c.encoder is not None and n in fitting]
    rivals = [FIRST_RIVAL] if FIRST_RIVAL in sam else sam[:1]
    return (made.recommended, *rivals)


def _known(name: str) -> set[str]:
    """Settings that a method has."""
    method = get_method(name)
    return {f.name for f in fields(method.config)} | set(configuration_fields(method))


def _overrides(options: RunAllOptions, name: str) -> Overrides:
    """What of the flags concerns a method: the settings that it has; encoder and weights if it has one."""
    known, uses_encoder = _known(name), get_method(name).uses_encoder
    return Overrides(
        settings={key: value for key, value in options.settings.items() if key in known},
        encoder=options.planning.encoder if uses_encoder else None,
        weights=options.planning.weights if uses_encoder else None,
    )


def _check_methods(
    workspace: Workspace, options: RunAllOptions, made: Plan, names: Sequence[str], say: Say
) -> dict[str, WantedTraining]:
    """How each method would be trained; refuse now what one of the trainings would refuse hours later.

    Raises:
        SamunetError: a flag that concerns none of the methods, or that one of them cannot follow.
    """
    known, told = {name: _known(name) for name in names}, ", ".join(names)
    for key in options.settings:
        concerned = [name for name in names if key in known[name]]
        if not concerned:
            raise unknown_name(f"setting of {told}", key, set().union(*known.values()))
        if len(concerned) < len(names):
            logger.info("--set %s concerns %s only.", key, ", ".join(concerned))
    if options.planning.encoder or options.planning.weights:
        concerned = [name for name in names if get_method(name).uses_encoder]
        if not concerned:
            raise SamunetError(f"-encoder and -w do not apply: none of {told} has an encoder.")
        if len(concerned) < len(names):
            logger.info("-encoder and -w concern %s only.", ", ".join(concerned))
    methods = {}
    for name in names:
        made.configuration(name)
        given, planned = _overrides(options, name), made
        if given != Overrides():
            planned = apply_overrides(replan(workspace, made, name, given, say), name, given.settings)
        methods[name] = WantedTraining(plan=planned, given=given)
    return methods


def _wanted(
    options: RunAllOptions, methods: dict[str, WantedTraining], cases: dict[int | str, Split]
) -> WantedRun:
    asked = {
        "settings": options.settings,
        "time_budget_minutes": options.time_budget_minutes,
        "seed": options.seed,
        "weights": options.planning.weights,
        "encoder": options.planning.encoder,
    }
    if options.scheme != DEFAULT_SCHEME:
        asked["splits"] = options.scheme
    return WantedRun(
        dataset=options.dataset,
        plans=options.planning.plans,
        tag=options.run_tag,
        splits=options.scheme,
        asked=to_data(asked),
        methods=methods,
        cases=cases,
        time_budget_minutes=options.time_budget_minutes,
        seed=options.seed,
        ensembles=options.ensembles,
    )


def _trainings(
    workspace: Workspace,
    options: RunAllOptions,
    made: Plan,
    names: Sequence[str],
    folds: Sequence[int | str],
) -> tuple[Training, ...]:
    """Every fold of every method; fold by fold, so that methods can be compared early."""
    return tuple(
        Training(
            configuration=name,
            fold=fold,
            model_folder=workspace.model_folder(options.dataset, name, made.name, options.run_tag),
            hours=made.configuration(name).forecast.train_hours,
        )
        for fold in folds
        for name in names
    )


def _cases(workspace: Workspace, raw: RawDataset, options: RunAllOptions, say: Say) -> dict[int | str, Split]:
    """Cases of the folds asked for, else of the split's; `all` where they are too few to keep one out.

    Raises:
        SamunetError: one of them does not exist; nothing is trained before it is met.
    """
    splits = load_or_create_splits(
        workspace.splits_file(options.dataset, options.scheme),
        raw.case_names,
        groups=kept_together(raw.origins, options.scheme),
        scheme=options.scheme,
        raw_file=workspace.raw / options.dataset / SPLITS_FILE,
        warn=lambda text: say(text, logging.WARNING),
    )
    folds = options.folds or tuple(range(len(splits))) or ("all",)
    return {fold: select_fold(splits, fold, raw.case_names) for fold in folds}


def _train(workspace: Workspace, options: RunAllOptions, training: Training, say: Say) -> bool:
    """Train or go on with one fold and score it; false when a signal ended it."""
    from samunet.trainers.devices import sample_workers

    state, given = training.state, _overrides(options, training.configuration)
    outcome = train(
        workspace,
        TrainOptions(
            dataset=options.dataset,
            configuration=training.configuration,
            fold=training.fold,
            plans=options.planning.plans,
            device=options.device,
            settings=given.settings,
            encoder=given.encoder,
            weights=given.weights,
            time_budget_minutes=options.time_budget_minutes,
            seed=options.seed,
            tag=options.run_tag,
            resume=state == HALFWAY,
            only_validate=state == UNSCORED,
            splits=None if (state, options.scheme) == (NEW, DEFAULT_SCHEME) else options.scheme,
            save_probabilities=options.ensembles,
            workers=None if options.workers is None else min(options.workers, max(1, sample_workers())),
        ),
        say=say,
    )
    logger.info("%s", outcome.text())
    return not outcome.interrupted


@dataclass
class _Clock:
    """What trainings still to come will take: as long as those of the same method took, else as planned."""

    budget_minutes: float | None
    measured: dict[str, list[float]] = field(default_factory=dict)

    def note(self, training: Training, seconds: float) -> None:
        self.measured.setdefault(training.configuration, []).append(seconds / 3600)

    def hours(self, left: Sequence[Training]) -> float:
        return sum(self._one(training) for training in left)

    def _one(self, training: Training) -> float:
        known = self.measured.get(training.configuration)
        if known:
            return sum(known) / len(known)
        return training.hours if self.budget_minutes is None else self.budget_minutes / 60
