"""Time, waiting, the screen and the finiteness of losses within one epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samunet.errors import SamunetError
from samunet.preprocessing.streams import BatchStream
from samunet.trainers.base import Phase
from samunet.trainers.devices import synchronize
from samunet.trainers.progress import Progress
from samunet.trainers.reporter import StepReport
from samunet.workspace import LATEST

if TYPE_CHECKING:
    from samunet.trainers.loop_run import LoopRun

MOST_OVERFLOWS = 10
"""In a row, of losses in fp16; an isolated one is usual, as in nnU-Net."""
CHECK_STEPS = 20
"""On a GPU the losses are looked at every so many steps, because looking waits for the GPU."""


class EpochMeter:
    """Is told of every step of one epoch."""

    def __init__(self, run: LoopRun, phase: Phase, progress: Progress) -> None:
        self.run, self.phase, self.progress = run, phase, progress
        self.started = time.monotonic()
        self.seconds_before = progress.seconds
        self.training_before = progress.training_seconds
        self.is_training = True
        self.first = progress.iteration
        self.pending: list[tuple[int, Tensor]] = []
        self.shown_loss = math.nan
        self.overflows = self.overflows_in_a_row = 0
        self.check_every = 1 if run.device.type == "cpu" else CHECK_STEPS

    def wait_for(self, stream: BatchStream) -> dict[str, Tensor]:
        """The next batch; the time it takes is counted."""
        started = time.monotonic()
        batch = next(stream)
        self.progress.waiting += time.monotonic() - started
        return batch

    def step(self, iteration: int, loss: Tensor | None) -> None:
        """After a training step (with its loss), or a validation step (None); numbered through the epoch.

        Raises:
            SamunetError: a loss is not finite, or in fp16 many in a row.
        """
        if loss is not None:
            self.pending.append((iteration, loss))
            if len(self.pending) >= self.check_every:
                self._check()
        self.run.reporter.step(self._report(iteration + 1))

    def end_training(self) -> None:
        """Between the last training step of the epoch and its validation."""
        synchronize(self.run.device)
        self.progress.training_seconds = self._training_seconds()
        self.is_training = False

    def finish(self, trained: Sequence[Tensor]) -> None:
        """At the end of the epoch, or where it was interrupted.

        Raises:
            SamunetError: a loss (in fp16 many in a row) or one of the trained parameters is not finite.
        """
        if self.pending:
            self._check()
        if self.overflows:
            self.run.reporter.message(
                f"Warning: the loss of {self.overflows} step(s) of epoch {self.progress.epoch + 1} was not "
                "finite, as happens in fp16; they changed no weights."
            )
        # A finite loss may have an infinite gradient, which nothing shows after the last step.
        with torch.no_grad():
            finite = [parameter.isfinite().all() for parameter in trained]
        if finite and not bool(torch.stack(finite).all()):
            raise _not_finite("Weights became infinite or NaN at the end", self.progress, self.run)
        synchronize(self.run.device)
        if self.is_training:
            self.progress.training_seconds = self._training_seconds()
        self.progress.seconds = self.seconds_before + time.monotonic() - self.started

    def _training_seconds(self) -> float:
        """Of this epoch, with what went before an interruption."""
        if not self.is_training:
            return self.progress.training_seconds
        return self.training_before + time.monotonic() - self.started

    def _report(self, steps: int) -> StepReport:
        phase, epochs = self.phase, sum(p.epochs for p in self.run.phases)
        elapsed, done = time.monotonic() - self.started, steps - self.first
        length = phase.iterations + phase.val_iterations
        left = (length - steps) + length * (epochs - self.progress.epoch - 1)
        trained = min(steps, phase.iterations)
        return StepReport(
            epoch=self.progress.epoch,
            epochs=epochs,
            iteration=steps,
            iterations=length,
            loss=self.shown_loss,
            samples_per_second=samples_per_second(self.run, phase, trained, self._training_seconds()),
            seconds_left=left * elapsed / done,
        )

    def _check(self) -> None:
        values = torch.stack([loss.float() for _, loss in self.pending]).tolist()
        most = min(MOST_OVERFLOWS, self.phase.iterations) if self.run.precision.skips_overflows else 1
        for (iteration, _), value in zip(self.pending, values):
            if math.isfinite(value):
                self.shown_loss, self.overflows_in_a_row = value, 0
                continue
            self.overflows += 1
            self.overflows_in_a_row += 1
            if self.overflows_in_a_row == most:
                told = f"The loss became {value} in step {iteration + 1}"
                raise _not_finite(told, self.progress, self.run)
        self.pending = []


def samples_per_second(run: LoopRun, phase: Phase, steps: int, seconds: float) -> float:
    """Training samples of so many optimizer steps over the time that they took."""
    return steps * phase.accumulate * run.batch_size / max(seconds, 1e-9)


def _not_finite(told: str, progress: Progress, run: LoopRun) -> SamunetError:
    latest = run.folder / LATEST
    wider = "in fp32 (--overwrite --set precision=fp32) or " if run.precision.skips_overflows else ""
    kept = f"The last checkpoint is {latest}." if latest.exists() else "No checkpoint was written yet."
    return SamunetError(
        f"{told} of epoch {progress.epoch + 1}. {kept} Look at the images for extreme intensities, or start "
        f"anew {wider}with a lower rate (--overwrite --set learning_rate=...)."
    )
