"""Learning rates as pure functions of the position in a phase, and fitting a schedule to a time budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samunet.trainers.base import Phase

POLY_EXPONENT = 0.9
BUDGET_SHARE = 0.95
"""Part of the time budget that is planned for; the rest absorbs a machine that slows down."""
MIN_EPOCHS = 10
"""A fitted schedule keeps at least this many epochs, so that best checkpoint and averages mean something."""
WARMUP_SHARE = 0.1
"""Warm-up never takes more than this part of a (shortened) phase."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What was measured before the schedule was fixed, seconds.

    Attributes:
        train_step: one optimizer step with its data.
        val_step: one validation batch with its data.
        epoch_overhead: checkpoint and bookkeeping at the end of an epoch.
    """

    train_step: float
    val_step: float
    epoch_overhead: float = 0.0


def poly(position: float, length: float, exponent: float = POLY_EXPONENT) -> float:
    """Factor (1 - position / length) ** exponent, 0 at the end and beyond."""
    return max(0.0, 1.0 - position / length) ** exponent


def learning_rate_factor(phase: Phase, epoch: int, iteration: int) -> float:
    """Factor on a phase's learning rate at (epoch within the phase, iteration within the epoch).

    `phase.schedule` is `poly_epoch` (nnU-Net: polynomial, constant within an epoch; over the warm-up steps,
    of which nnU-Net has none, it is reached linearly), `poly_step` (linear warm-up, then polynomial to zero,
    changed at every step) or `constant`.
    """
    if phase.schedule == "constant":
        return 1.0
    total = phase.epochs * phase.iterations
    step = epoch * phase.iterations + iteration
    warmup = min(phase.warmup_steps, int(WARMUP_SHARE * total))
    rising = min(1.0, (step + 1) / (warmup + 1))
    if phase.schedule == "poly_epoch":
        return rising * poly(epoch, phase.epochs)
    return rising if step < warmup else poly(step - warmup, total - warmup)


def fit_to_budget(phases: Sequence[Phase], timing: Timing, seconds: float) -> tuple[Phase, ...]:
    """Shorten the phases so that they take about `seconds`; a schedule that fits is left as it is.

    Epochs keep their number of iterations as long as MIN_EPOCHS of them fit; then the epochs get shorter.
    Every phase keeps its share of the whole.
    """
    needed = sum(phase_seconds(phase, timing) for phase in phases)
    available = BUDGET_SHARE * seconds
    if needed <= available:
        return tuple(phases)
    return tuple(
        _shorten(phase, timing, available * phase_seconds(phase, timing) / needed) for phase in phases
    )


def phase_seconds(phase: Phase, timing: Timing) -> float:
    """Expected duration of a phase."""
    epoch = phase.iterations * timing.train_step + phase.val_iterations * timing.val_step
    return phase.epochs * (epoch + timing.epoch_overhead)


def _shorten(phase: Phase, timing: Timing, seconds: float) -> Phase:
    epochs = int(seconds / (phase_seconds(phase, timing) / phase.epochs))
    if epochs >= min(MIN_EPOCHS, phase.epochs):
        return replace(phase, epochs=epochs)
    epochs = min(MIN_EPOCHS, phase.epochs)
    val_share = phase.val_iterations / phase.iterations
    left = seconds / epochs - timing.epoch_overhead
    iterations = max(1, int(left / (timing.train_step + val_share * timing.val_step)))
    iterations = min(iterations, phase.iterations)
    return replace(
        phase, epochs=epochs, iterations=iterations, val_iterations=max(1, round(val_share * iterations))
    )
