"""`--time_budget`: a few steps are timed and undone, then the schedule is fixed."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from samunet.planning.plan import Plan
from samunet.preprocessing.streams import BatchStream
from samunet.trainers.base import Phase
from samunet.trainers.devices import synchronize
from samunet.trainers.sampling import VAL, Position, SampleKey, batch_keys
from samunet.trainers.schedule import Timing, fit_to_budget, phase_seconds
from samunet.trainers.step import TrainingStep

if TYPE_CHECKING:
    from samunet.trainers.loop_run import LoopRun
    from samunet.trainers.run import TrainingRun

logger = logging.getLogger(__name__)

TIMING_SHARE = 0.03
"""Part of the budget that timing may take, beyond the steps that it needs at least."""
LEAST_SECONDS = 3.0
WARM_UP = 2
MOST_STEPS = 50
MOST_BATCHES = 4
"""That each worker makes while it is timed."""
FEW_STEPS = 100
"""Below this many steps a training is called pointless, so that nobody waits for its result."""
SAVES_AN_EPOCH = 2
"""Latest and, while things improve, best."""


def recipe_phases(run: TrainingRun) -> tuple[Phase, ...]:
    """The recipe's own length where the plan cut it to its hours: a time budget takes their place.

    A length that the user set, for the plan or for this run, is kept.
    """
    if given_settings(run.plan, run.overrides) & {"epochs", "iterations"}:
        return run.phases
    return run.trainer.phases(replace(run.config, epochs=run.method.config.epochs))


def given_settings(plan: Plan, overrides: Mapping[str, Any]) -> frozenset[str]:
    """Names of the settings that the user gave, for the plan or for a run, whatever their values."""
    return frozenset(plan.overrides.get("settings", {})) | frozenset(overrides.get("settings", {}))


def fit_schedule(run: TrainingRun, started: float, minutes: float) -> tuple[Phase, ...]:
    """The run's phases, shortened so that the training ends `minutes` after `started` (time.monotonic).

    The timed steps are undone: a run with a time budget is the same as one with the epochs and iterations
    that it decides for.
    """
    timing = measure(run, minutes * 60)
    left = minutes * 60 - (time.monotonic() - started)
    fitted = fit_to_budget(run.phases, timing, max(left, 1.0))
    phases = fitted
    if fitted != run.phases:
        phases = run.trainer.shortened(run.config, fitted, given=given_settings(run.plan, run.overrides))
    expected = sum(phase_seconds(phase, timing) for phase in phases)
    lengths = ", ".join(f"{p.name} {p.epochs} epochs of {p.iterations} steps" for p in phases)
    shortened = "as planned" if phases == run.phases else "shortened"
    run.reporter.message(
        f"Time budget {minutes:g} min: {timing.train_step:.3g} s a step; schedule {shortened}: {lengths}, "
        f"about {expected / 60:.1f} min."
    )
    for before, after in zip(fitted, phases):
        if before != after:
            run.reporter.message(
                f"So few steps are trained with learning rate {after.learning_rate:g} and momentum "
                f"{after.momentum:g} instead of {before.learning_rate:g} and {before.momentum:g} "
                "(--set learning_rate, momentum)."
            )
    tell_overrun(run, expected, left)
    steps = sum(phase.epochs * phase.iterations for phase in phases)
    if steps < FEW_STEPS and phases != run.phases:
        run.reporter.message(
            f"Warning: {steps} training steps teach a network next to nothing. Give more time, take a "
            "smaller method, or plan smaller patches: samunet_plan_experiment with -gpu_memory_target 2 and "
            "a plan name of its own (-p)."
        )
    return phases


def tell_overrun(run: LoopRun, expected: float, left: float) -> None:
    """Say so where a fitted schedule still takes more seconds than are left."""
    if expected > left:
        run.reporter.message("Even the shortest schedule will take longer than the time budget.")


def measure(run: LoopRun, budget_seconds: float) -> Timing:
    """Seconds of a training step and a validation step; network and random state are left as they were."""
    network = run.module.network
    before = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    step = TrainingStep(run, run.phases[0])
    with closing(BatchStream(run.source, _keys(run), run.workers, run.device)) as stream:
        train = _time_steps(run, lambda: step.train(lambda: next(stream), 0.0), budget_seconds)
        # A few steps live on batches that were made ahead. Where making them takes longer, that counts.
        batch = _time_batches(stream, budget_seconds / 4)
        train = max(train, run.phases[0].accumulate * batch)
    with closing(BatchStream(run.source, _keys(run, validation=True), run.workers, run.device)) as stream:
        val = max(batch, _time_steps(run, lambda: step.validate(next(stream)), budget_seconds / 4))
    network.load_state_dict(before)
    return Timing(train_step=train, val_step=val, epoch_overhead=SAVES_AN_EPOCH * _time_save(run, step))


def _time_batches(stream: BatchStream, budget_seconds: float) -> float:
    """Seconds that workers take for a batch when nothing but they hold up the training; 0 without workers."""
    limit = time.monotonic() + max(TIMING_SHARE * budget_seconds, LEAST_SECONDS)
    workers = stream.ahead.workers
    for _ in range(stream.ahead.batches):
        next(stream)
        if time.monotonic() > limit:
            break
    started, made = time.monotonic(), 0
    while workers and made < MOST_BATCHES * workers and (made < workers or time.monotonic() < limit):
        next(stream)
        made += 1
    return (time.monotonic() - started) / max(made, 1)


def _time_save(run: LoopRun, step: TrainingStep) -> float:
    """Seconds of writing a checkpoint with the optimizer's state."""
    started = time.monotonic()
    path = run.folder / "timing.pth"
    try:
        run.save(path, 0, {"optimizer": step.optimizer.state_dict()})
    finally:
        path.unlink(missing_ok=True)
    return time.monotonic() - started


def _keys(run: LoopRun, validation: bool = False) -> Iterator[list[SampleKey]]:
    """The first training batches again and again, or validation batches."""
    phase = run.phases[0]
    first = list(itertools.islice(batch_keys(run.phases, run.batching, Position()), phase.iterations))
    if validation:
        first = [[key._replace(stream=VAL) for key in keys] for keys in first]
    return itertools.cycle(first)


def _time_steps(run: LoopRun, step: Callable[[], object], budget_seconds: float) -> float:
    begun = time.monotonic()
    durations: list[float] = []
    limit = max(TIMING_SHARE * budget_seconds, LEAST_SECONDS)
    while len(durations) < MOST_STEPS and (len(durations) <= 1 or time.monotonic() - begun < limit):
        started = time.monotonic()
        step()
        synchronize(run.device)
        durations.append(time.monotonic() - started)
    counted = durations[WARM_UP:] if len(durations) > 2 * WARM_UP else durations[1:]
    return sum(counted) / len(counted)
