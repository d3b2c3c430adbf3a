"""Training one fold from a request: resolve, check the run's identity, prepare, and hand over to the loop."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.planning.methods import get_method
from samunet.planning.plan import Configuration, Plan, WeightsUsed
from samunet.preprocessing.store import CaseStore
from samunet.trainers import import_trainer
from samunet.trainers.augmentation import fixed_random
from samunet.trainers.base import MethodTrainer, Phase, PretrainedFile, config_of
from samunet.trainers.batches import PatchSource
from samunet.trainers.budget import fit_schedule, recipe_phases
from samunet.trainers.cache_setup import prepare_cache
from samunet.trainers.checkpoint import BaseWeights, Checkpoint, load_checkpoint
from samunet.trainers.claim import claimed
from samunet.trainers.continuing import load_latest
from samunet.trainers.devices import (
    Precision,
    choose_device,
    cpu_has_bf16,
    hardware,
    sample_workers,
    versions,
)
from samunet.trainers.distillation import check_soft_labels, distilled, refuse_cached
from samunet.trainers.encoder_weights import check_planned, starting_words
from samunet.trainers.folds_beside import other_folds_warning, refuse_other_weights
from samunet.trainers.identity import (
    Identity,
    PhaseLength,
    RunRecord,
    check_resumable,
    check_unclaimed,
    clear_for_new_run,
    identify,
    read_run,
    settle_replaced,
    write_run,
)
from samunet.trainers.loop import Outcome, fit
from samunet.trainers.reporter import Reporter, make_reporter
from samunet.trainers.run import RunRequest, TrainingRun, source_settings
from samunet.trainers.settings import apply_overrides
from samunet.workspace import LATEST

logger = logging.getLogger(__name__)

BF16_HINT = (
    "This CPU has bf16 instructions: --set precision=bf16 makes most steps nearly twice as fast "
    "(documentation/training.md says what it changes)."
)


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """How a training ended.

    Attributes:
        status: `finished`, or `interrupted` by a signal (continue with `--c`).
        folder: of the run.
        seconds: wall-clock time of this call.
    """

    status: Outcome
    folder: Path
    seconds: float


def train_fold(request: RunRequest, reporter: Reporter | None = None) -> TrainingOutcome:
    """Train one fold; leaves checkpoints, history.jsonl, progress.png and run.json in the run folder.

    Args:
        request: what to train.
        reporter: is told what happens; None writes to standard output.

    Raises:
        SamunetError: settings, weights, device or cases that do not fit; a folder of another run; nothing to
            continue; a loss that is not finite.
    """
    started = time.monotonic()
    reporter = make_reporter() if reporter is None else reporter
    with closing(reporter), claimed(request.folder):
        settle_replaced(request.folder)
        request, found = _repeat_settings(request)
        seed = request.seed or 0
        try:
            with fixed_random(seed):
                run = _prepare(request, seed, found, reporter)
                _settle_samples_and_schedule(request, run, found, started)
                with fixed_random(seed):
                    status = fit(run)
            if status == "finished":
                (request.folder / LATEST).unlink(missing_ok=True)  # the final one is the same
        finally:
            settle_replaced(request.folder)
    return TrainingOutcome(status=status, folder=request.folder, seconds=time.monotonic() - started)


def _repeat_settings(request: RunRequest) -> tuple[RunRequest, RunRecord | None]:
    """For a run to be continued, settings that were not given again are those of the run."""
    found = read_run(request.folder)
    if not request.resume or found is None:
        return request, found
    told, minutes = found.overrides, found.time_budget_minutes
    if request.time_budget_minutes not in (None, minutes):
        there = "without a time budget" if minutes is None else f"with a time budget of {minutes:g} minutes"
        raise SamunetError(
            f"The run in {request.folder} was started {there} and keeps the schedule that was decided then. "
            "Leave out --time_budget, or start anew with --overwrite."
        )
    return (
        replace(
            request,
            settings={**told.get("settings", {}), **request.settings},
            encoder=request.encoder or told.get("encoder"),
            weights=request.weights or (Path(told["weights"]) if told.get("weights") else None),
            time_budget_minutes=minutes,
            seed=found.seed if request.seed is None else request.seed,
        ),
        found,
    )


def _prepare(request: RunRequest, seed: int, found: RunRecord | None, reporter: Reporter) -> TrainingRun:
    """Everything but the samples and the length of the schedule."""
    plan = apply_overrides(request.plan, request.configuration, request.settings)
    configuration = plan.configuration(request.configuration)
    method = get_method(configuration.method)
    trainer = import_trainer(method.trainer)
    pretrained = trainer.pretrained(configuration, request.weights, request.weights_folder)
    if pretrained is not None:
        if not request.resume:
            check_planned(plan, configuration.name, pretrained, request.weights)
        plan = _started_from(plan, configuration, pretrained)
        configuration = plan.configuration(configuration.name)
    _check_cases(request)
    if configuration.encoder is not None:
        reporter.message(starting_words(configuration, pretrained))
    config = config_of(configuration)
    if request.distillation is not None and trainer.cacheable(config):
        refuse_cached(method.name)
    cases = (tuple(request.split.train), tuple(request.split.val))
    identity = identify(plan, configuration.name, cases, seed, _distillation(request))
    resume_from = _checkpoint_to_continue(request, identity, found, pretrained)
    if resume_from is None:
        _check_folds_beside(request, identity, pretrained, reporter)
    device = choose_device(request.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    _warn_of_device(plan, device, reporter)
    if device.type == "cpu" and config.precision == "auto" and cpu_has_bf16():
        reporter.message(BF16_HINT)
    torch.default_generator.manual_seed(seed)
    weights = None if pretrained is None else pretrained.path
    network = trainer.build_network(plan, configuration, weights=weights)
    prefix = trainer.frozen_prefix(config)
    module = trainer.build_training(network, plan, configuration)
    if request.distillation is not None:
        module = distilled(module, method.name, request.distillation)
    precision = Precision.choose(device, trainer.precision, config.precision)
    precision.prepare(module, device)
    return TrainingRun(
        plan=plan,
        configuration=configuration,
        method=method,
        trainer=trainer,
        config=config,
        fold=request.fold,
        folder=request.folder,
        seed=seed,
        overrides=_overrides(request),
        time_budget_minutes=request.time_budget_minutes,
        device=device,
        precision=precision,
        module=module,
        phases=_phases(trainer, config, found if request.resume else None),
        source=PatchSource(source_settings(request, plan, configuration, config, seed)),
        workers=sample_workers() if request.workers is None else request.workers,
        reporter=reporter,
        pretrained=pretrained,
        base_weights=_base_weights(pretrained, prefix),
        resume_from=resume_from,
    )


def _started_from(plan: Plan, configuration: Configuration, pretrained: PretrainedFile) -> Plan:
    """The plan with the weights that this training starts from; the stored one says so too."""
    configuration = replace(configuration, encoder_weights=pretrained.kind)
    return replace(
        plan,
        configurations={**plan.configurations, configuration.name: configuration},
        weights={**plan.weights, pretrained.variant: _weights_used(pretrained)},
    )


def _check_cases(request: RunRequest) -> None:
    """All cases of the split must have been preprocessed.

    Raises:
        SamunetError: some are missing; or there are none to train on.
    """
    names = set(CaseStore(request.case_folder).names())
    missing = sorted({*request.split.train, *request.split.val} - names)
    if missing:
        raise SamunetError(
            f"{len(missing)} cases of the split are not preprocessed in {request.case_folder}: "
            f"{listed(missing)}. Run `samunet_preprocess` for this dataset, or correct the split file."
        )
    if not request.split.train or not request.split.val:
        raise SamunetError(
            f"Fold {request.fold} has no training or no validation cases. Correct the split file."
        )


def _checkpoint_to_continue(
    request: RunRequest, identity: Identity, found: RunRecord | None, pretrained: PretrainedFile | None
) -> Checkpoint | None:
    if not request.resume:
        if not request.overwrite:
            check_unclaimed(request.folder, identity)
        return None
    check_resumable(request.folder, identity, found)
    assert found is not None
    used = None if found.weights is None else found.weights.sha256
    now = None if pretrained is None else pretrained.sha256
    if used != now:
        raise SamunetError(
            f"The run in {request.folder} started from other encoder weights (SHA-256 {used}, now {now}). "
            "Give the same file with -w, or put it into the weights folder."
        )
    return load_latest(request.folder, load_checkpoint)


def _phases(trainer: type[MethodTrainer], config: Any, found: RunRecord | None) -> tuple[Phase, ...]:
    """The method's phases; those of a run to be continued are as they were decided then."""
    phases = trainer.phases(config)
    if found is None:
        return phases
    decided = {
        length.name: {k: v for k, v in asdict(length).items() if k != "name"} for length in found.phases
    }
    return tuple(replace(phase, **decided[phase.name]) for phase in phases)


def _base_weights(pretrained: PretrainedFile | None, prefix: str | None) -> BaseWeights | None:
    """What checkpoints leave out: a frozen encoder from a file that prediction will find again."""
    if pretrained is None or prefix is None or not pretrained.retrievable:
        return None
    return BaseWeights(
        variant=pretrained.variant, file=pretrained.path.name, sha256=pretrained.sha256, prefix=prefix
    )


def _weights_used(pretrained: PretrainedFile) -> WeightsUsed:
    return WeightsUsed(
        file=pretrained.path.name,
        kind=pretrained.kind,
        sha256=pretrained.sha256,
        adapted=pretrained.adapted,
    )


def _overrides(request: RunRequest) -> dict[str, Any]:
    given: dict[str, Any] = {
        "settings": dict(request.settings),
        "encoder": request.encoder,
        "splits": request.splits,
        "weights": None if request.weights is None else str(request.weights),
        "time_budget_minutes": request.time_budget_minutes,
        "distillation": _distillation(request),
    }
    return {name: value for name, value in given.items() if value}


def _distillation(request: RunRequest) -> dict[str, Any] | None:
    return None if request.distillation is None else request.distillation.record()


def _check_folds_beside(
    request: RunRequest, identity: Identity, pretrained: PretrainedFile | None, reporter: Reporter
) -> None:
    """Refuse other weights than those of the folds beside this one; warn where they differ otherwise."""
    if pretrained is not None:
        refuse_other_weights(request.folder, _weights_used(pretrained), request.replaced)
    told = other_folds_warning(request.folder, identity, overwrite=request.overwrite)
    if told is not None:
        reporter.message(told)


def _warn_of_device(plan: Plan, device: torch.device, reporter: Reporter) -> None:
    if plan.budget.device != device.type:
        reporter.message(
            f"Warning: the plan was made for {plan.budget.device} ({plan.budget.memory_gb:g} GB), training "
            f"runs on {device.type}. Memory and time will differ; plan again for this device."
        )


def _settle_samples_and_schedule(
    request: RunRequest, run: TrainingRun, found: RunRecord | None, started: float
) -> None:
    """Run the teacher, build the cache, fit the schedule to the time budget, and write run.json."""
    split = request.split
    if request.distillation is not None:
        request.distillation.label(run.reporter)
        names = tuple(dict.fromkeys((*split.train, *split.val)))
        check_soft_labels(request.distillation.labels, request.case_folder, names)
    assert isinstance(run.source, PatchSource)
    run.source.pin()
    budget_minutes = run.time_budget_minutes if run.resume_from is None else None
    if budget_minutes is not None:
        run.phases = recipe_phases(run)
    earlier = found.cache if found is not None and run.resume_from is not None else None
    cache = prepare_cache(request, run, earlier, started)
    if budget_minutes is not None:
        run.phases = fit_schedule(run, started, budget_minutes)
    if run.resume_from is not None:
        epoch = run.resume_from.epoch
        run.reporter.message(f"Continuing {run.folder} after epoch {epoch}.")
        return
    identity = identify(
        run.plan, run.configuration.name, (split.train, split.val), run.seed, _distillation(request)
    )
    record = RunRecord(
        configuration_hash=identity.configuration_hash,
        data_hash=identity.data_hash,
        split_hash=identity.split_hash,
        configuration=identity.configuration,
        fold=run.fold,
        seed=run.seed,
        train=tuple(request.split.train),
        val=tuple(request.split.val),
        overrides=run.overrides,
        time_budget_minutes=run.time_budget_minutes,
        phases=tuple(_decided(phase) for phase in run.phases),
        batch_workers=run.workers,
        weights=None if run.pretrained is None else _weights_used(run.pretrained),
        cache=cache,
        device=str(run.device),
        precision=run.precision.name,
        hardware=hardware(run.device),
        versions=versions(),
        distillation=identity.distillation,
    )
    if request.overwrite:
        clear_for_new_run(run.folder)
    write_run(run.folder, record)


def _decided(phase: Phase) -> PhaseLength:
    """What of a phase a continued run must repeat."""
    return PhaseLength(**{field.name: getattr(phase, field.name) for field in fields(PhaseLength)})
