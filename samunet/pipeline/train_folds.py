"""Several folds of one configuration, one after the other, each to be continued where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samunet.errors import SamunetError
from samunet.pipeline.said_once import SaidOnce
from samunet.pipeline.train import PreparedRun, Teach, TrainOptions, TrainOutcome, prepare_run, train
from samunet.pipeline.trained_cases import begun_run
from samunet.planning.methods import build_config, get_method
from samunet.records import to_data
from samunet.trainers.checkpoint import checkpoints_in
from samunet.trainers.distillation import Distillation
from samunet.trainers.identity import RunRecord, distillation_differences
from samunet.workspace import FINAL, LATEST, Workspace, fold_folder, is_validated

logger = logging.getLogger(__name__)

Fold = int | str


Teaching = Callable[[TrainOptions, PreparedRun], Distillation]
"""Finds the teacher of a fold's run."""


def train_folds(
    workspace: Workspace, options: TrainOptions, folds: Sequence[Fold], teaching: Teaching | None = None
) -> Iterator[TrainOutcome]:
    """Train and validate folds in order, all with the same options; one that is interrupted ends the rest.

    With `options.resume` finished folds are skipped, a finished training without its validation is
    validated, an unfinished one is continued, and one that was never started begins with the settings of
    those that were, or as what is given says.

    Args:
        workspace: where everything lies.
        options: the user's words; `fold` is replaced.
        folds: numbers or `all`.
        teaching: gives the teacher of each fold of a distilled model.

    Yields:
        The outcome of each fold that had something to do, once it is done.

    Raises:
        SamunetError: before anything is trained, when a fold is given twice or does not exist, or, without
            `resume` and `overwrite`, holds a training already; else what `train` raises.
    """
    if len(folds) == 1 and not options.resume:
        own = replace(options, fold=folds[0])
        yield train(workspace, own, _teach(teaching, own))
        return
    twice = sorted({str(fold) for fold in folds if list(folds).count(fold) > 1})
    if twice:
        raise SamunetError(f"Fold {', '.join(twice)} is given twice.")
    say = SaidOnce()
    prepared = {fold: prepare_run(workspace, replace(options, fold=fold), say) for fold in folds}
    _check_started(options, prepared)
    for number, fold in enumerate(folds, start=1):
        own = replace(options, fold=fold, replaced=tuple(folds[number:]))
        wanted = _continued(own, prepared, teaching) if options.resume else own
        where = f"Fold {fold} ({number} of {len(folds)})" if len(folds) > 1 else f"Fold {fold}"
        if wanted is None:
            logger.info("%s is trained%s already.", where, "" if fold == "all" else " and validated")
            continue
        logger.info("%s", where)
        outcome = train(workspace, wanted, _teach(teaching, wanted), say=say)
        yield outcome
        if outcome.interrupted:
            return


def _teach(teaching: Teaching | None, options: TrainOptions) -> Teach | None:
    return None if teaching is None else lambda prepared: teaching(options, prepared)


def _check_started(options: TrainOptions, prepared: dict[Fold, PreparedRun]) -> None:
    """Do not train for hours before the fold is met that is there already, or has been trained on others."""
    started = [fold for fold, run in prepared.items() if _started(run, fold)]
    if options.resume or options.only_validate:
        for fold in started:
            prepared[fold].check_cases(fold)
    elif started and not options.overwrite:
        model, told = next(iter(prepared.values())).model_folder, ", ".join(map(str, started))
        raise SamunetError(
            f"{model} holds trainings of fold {told} already. Continue with --c, which trains what is "
            "unfinished and skips the rest, start all anew with --overwrite, or name other folds."
        )


def _continued(
    options: TrainOptions, prepared: dict[Fold, PreparedRun], teaching: Teaching | None
) -> TrainOptions | None:
    """What is left to do for a fold under --c; None when nothing is."""
    run = prepared[options.fold]
    folder = fold_folder(run.model_folder, options.fold)
    if (folder / FINAL).exists():
        _check_repeated(options, run.found, folder)
        _check_teacher(run, None if teaching is None else teaching(options, run), folder)
        kept_out = set(run.split.val) - set(run.split.train)
        if not kept_out or is_validated(run.model_folder, options.fold):
            return None
        return replace(options, resume=False, only_validate=True, settings={})
    if _started(run, options.fold):
        return options
    return _begun_like(replace(options, resume=False), prepared)


def _begun_like(options: TrainOptions, prepared: dict[Fold, PreparedRun]) -> TrainOptions:
    """Options of a fold without a checkpoint: what is not given again is as in the folds that were started.

    One that was killed before its first checkpoint has a record of its own. nnU-Net's --c begins such a fold
    with a warning too.
    """
    run = prepared[options.fold]
    fold, found = _begun(prepared) if run.found is None else (options.fold, run.found)
    if found is None or len(prepared) == 1:
        logger.warning(
            "There is nothing to continue in %s: no %s. Fold %s is started; if it was begun elsewhere, stop "
            "this and correct --tag, -p or --workspace.",
            fold_folder(run.model_folder, options.fold),
            LATEST,
            options.fold,
        )
    if found is None:
        return options
    whose = f"the settings of fold {fold} of {run.model_folder.name}"
    logger.info("It begins with %s.", whose if run.found is None else "what it was started with before")
    told = found.overrides
    return replace(
        options,
        settings={**told.get("settings", {}), **options.settings},
        encoder=options.encoder or told.get("encoder"),
        weights=options.weights or (Path(told["weights"]) if told.get("weights") else None),
        time_budget_minutes=options.time_budget_minutes or found.time_budget_minutes,
        seed=found.seed if options.seed is None else options.seed,
        splits=run.splits,
        tag=options.run_tag or "",
        like=found,
    )


def _begun(prepared: dict[Fold, PreparedRun]) -> tuple[Fold | None, RunRecord | None]:
    """The first fold of the model that was started, named now or not, and its record."""
    return begun_run(next(iter(prepared.values())).model_folder)


def _check_repeated(options: TrainOptions, found: RunRecord | None, folder: Path) -> None:
    """A finished fold is not passed over in silence when something else is asked for.

    Raises:
        SamunetError: naming it.
    """
    if found is None:
        return
    told = [
        f"{key}: {there!r} there, {now!r} now"
        for key, there, now in _given_again(options, found)
        if there != now
    ]
    if told:
        raise SamunetError(
            f"{folder} was trained with other settings ({'; '.join(told)}). Repeat them or leave them out, "
            "give these folds a --tag, or train anew with --overwrite."
        )


def _given_again(options: TrainOptions, found: RunRecord) -> Iterator[tuple[str, Any, Any]]:
    """(name, as trained, now) of all that is given; what is left out is as it was."""
    own = found.configuration
    trained = {**own, **to_data(build_config(get_method(own["method"]), own["settings"]))}
    yield from ((key, trained.get(key), value) for key, value in options.settings.items())
    if options.encoder is not None:
        yield "encoder", own.get("encoder"), options.encoder
    if options.seed is not None:
        yield "seed", found.seed, options.seed
    if options.time_budget_minutes is not None:
        yield "time budget", found.time_budget_minutes, options.time_budget_minutes


def _check_teacher(run: PreparedRun, distillation: Distillation | None, folder: Path) -> None:
    """Nor where it has learned from another teacher, or from none.

    Raises:
        SamunetError: naming what differs.
    """
    if run.found is None:
        return
    wanted = None if distillation is None else distillation.record()
    told = distillation_differences(run.found.distillation, wanted)
    if told:
        raise SamunetError(
            f"{folder} is finished, but differs in: {'; '.join(told)}. Repeat what it was made with, give "
            "these folds a --tag, or train anew with --overwrite."
        )


def _started(run: PreparedRun, fold: Fold) -> bool:
    return bool(checkpoints_in(fold_folder(run.model_folder, fold)))
