"""The one training loop. Methods supply a TrainingModule and phases; nothing here is overridden."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Literal

from samunet.preprocessing.streams import BatchStream
from samunet.trainers.base import Phase
from samunet.trainers.checkpoint import load_network_state, random_states, restore_random_states
from samunet.trainers.devices import peak_memory_gb, restart_peak_memory
from samunet.trainers.history import (
    EpochRecord,
    append_history,
    cut_history,
    draw_progress,
    moving_average,
    patch_dice,
)
from samunet.trainers.meter import EpochMeter, samples_per_second
from samunet.trainers.progress import Progress, Sums
from samunet.trainers.sampling import Position, batch_keys
from samunet.trainers.schedule import learning_rate_factor
from samunet.trainers.signals import StopFlag, stop_signals
from samunet.trainers.step import TrainingStep
from samunet.workspace import BEST, FINAL, LATEST

if TYPE_CHECKING:
    from samunet.trainers.loop_run import LoopRun, Restorable

PICTURE_SECONDS = 30.0
"""progress.png is drawn at most this often, and at the end."""

Outcome = Literal["finished", "interrupted"]


def fit(run: LoopRun) -> Outcome:
    """Train until the schedule ends, or a signal asks to stop; both leave a checkpoint.

    Raises:
        SamunetError: loss or weights are not finite; the last checkpoint is left as it was.
    """
    session = _Session(run, run.take_checkpoint())
    restart_peak_memory(run.device)
    with stop_signals() as stop:
        outcome = session.run_epochs(stop)
    if outcome == "finished":
        session.save(FINAL)
        session.draw()
    return outcome


class _Session:
    """The moving parts of one call of `fit`."""

    def __init__(self, run: LoopRun, continued: Restorable | None) -> None:
        self.run = run
        self.progress = Progress()
        self.phase_index = -1
        epoch = 0 if continued is None else continued.epoch
        self.records = cut_history(run.folder, epoch)
        self.drawn_at = time.monotonic()
        self._enter_phase(self._locate(epoch)[0])
        if continued is not None:
            self._restore(continued)

    @property
    def phase(self) -> Phase:
        return self.run.phases[self.phase_index]

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.run.phases)

    def _locate(self, epoch: int) -> tuple[int, int]:
        """(index of the phase, epoch within it); the last phase's end for the end of the run."""
        for index, phase in enumerate(self.run.phases):
            if epoch < phase.epochs:
                return index, epoch
            epoch -= phase.epochs
        return len(self.run.phases) - 1, self.run.phases[-1].epochs

    def _enter_phase(self, index: int) -> None:
        if index != self.phase_index:
            self.phase_index = index
            self.step = TrainingStep(self.run, self.phase)

    def _restore(self, checkpoint: Restorable) -> None:
        load_network_state(self.run.module.network, checkpoint.network, checkpoint.base_weights)
        # A checkpoint at the end of a phase holds a network that has not entered the next one.
        self.run.module.enter_phase(self.phase)
        state = checkpoint.training
        if state["phase"] == self.phase_index:
            self.step.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # empty where the run was in fp32 or bf16 so far
                self.step.scaler.load_state_dict(state["scaler"])
        sums = state["sums"]
        self.progress = Progress(
            epoch=checkpoint.epoch,
            iteration=state["iteration"],
            ema=state["ema"],
            best=state["best"],
            sums=Sums(
                {k: v.to(self.run.device) for k, v in sums["values"].items()},
                sums["steps"],
                sums.get("left_out", 0),  # earlier checkpoints left none out
            ),
            seconds=state["seconds"],
            waiting=state["waiting"],
            training_seconds=state.get("training_seconds", state["seconds"]),
        )
        restore_random_states(state["random"])

    def save(self, name: str) -> None:
        """Write a checkpoint of the present state."""
        progress = self.progress
        training = {
            "phase": self.phase_index,
            "optimizer": self.step.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "random": random_states(self.run.device),
            "iteration": progress.iteration,
            "ema": progress.ema,
            "best": progress.best,
            "sums": progress.sums.state(),
            "seconds": progress.seconds,
            "waiting": progress.waiting,
            "training_seconds": progress.training_seconds,
        }
        self.run.save(self.run.folder / name, progress.epoch, training)

    def run_epochs(self, stop: StopFlag) -> Outcome:
        start = Position(epoch=self.progress.epoch, iteration=self.progress.iteration)
        keys = batch_keys(self.run.phases, self.run.batching, start)
        stream = BatchStream(self.run.source, keys, self.run.workers, self.run.device)
        try:
            while self.progress.epoch < self.epochs:
                if not self._epoch(stream, stop):
                    self.save(LATEST)
                    self.run.reporter.message(
                        f"Stopped by {stop.name} in epoch {self.progress.epoch + 1}, step "
                        f"{self.progress.iteration}; "
                        f"{self.run.folder / LATEST} is written. Continue with --c."
                    )
                    return "interrupted"
        finally:
            stream.close()
        return "finished"

    def _epoch(self, stream: BatchStream, stop: StopFlag) -> bool:
        """Train and validate one epoch; False if a signal came (the epoch is left unfinished)."""
        index, local_epoch = self._locate(self.progress.epoch)
        self._enter_phase(index)
        meter = EpochMeter(self.run, self.phase, self.progress)
        for iteration in range(self.progress.iteration, self.phase.iterations):
            factor = learning_rate_factor(self.phase, local_epoch, iteration)
            losses = self.step.train(lambda: meter.wait_for(stream), factor)
            self.progress.sums.add(losses, finite_only=self.run.precision.skips_overflows)
            self.progress.iteration = iteration + 1
            meter.step(iteration, losses["loss"])
            if stop.name is not None:
                meter.finish(self.step.trained)
                return False
        meter.end_training()
        val = Sums()
        for batch in range(self.phase.val_iterations):
            val.add(self.step.validate(meter.wait_for(stream)))
            meter.step(self.phase.iterations + batch, None)
            if stop.name is not None:
                meter.finish(self.step.trained)
                return False
        meter.finish(self.step.trained)
        self._end_epoch(val)
        return True

    def _end_epoch(self, val: Sums) -> None:
        progress, phase = self.progress, self.phase
        counts = [val.values[name].tolist() if name in val.values else [] for name in ("tp", "fp", "fn")]
        dice, mean = patch_dice(self.run.class_names, *counts)
        progress.ema = moving_average(progress.ema, mean)
        record = EpochRecord(
            epoch=progress.epoch,
            phase=phase.name,
            learning_rate=self.step.optimizer.param_groups[0]["lr"],
            train=progress.sums.means(),
            val=self._finite(val.means()),
            patch_dice=dice,
            mean_patch_dice=mean,
            ema_patch_dice=progress.ema,
            seconds=progress.seconds,
            waiting_seconds=progress.waiting,
            samples_per_second=samples_per_second(
                self.run, phase, phase.iterations, progress.training_seconds
            ),
            memory_gb=peak_memory_gb(self.run.device),
        )
        is_best = progress.ema is not None and (progress.best is None or progress.ema > progress.best)
        self.progress = Progress(
            epoch=progress.epoch + 1, ema=progress.ema, best=progress.ema if is_best else progress.best
        )
        append_history(self.run.folder, record)
        self.records.append(record)
        if is_best:
            self.save(BEST)
        self.save(LATEST)
        self.run.reporter.epoch(record, self.epochs)
        if time.monotonic() - self.drawn_at > PICTURE_SECONDS:
            self.draw()

    def _finite(self, losses: dict[str, float]) -> dict[str, float | None]:
        """A single overflow in validation, as fp16 has it now and then, is said and ends nothing."""
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if wrong:
            self.run.reporter.message(
                f"Warning: {', '.join(wrong)} of the validation in epoch {self.progress.epoch} not finite."
            )
        return {name: None if name in wrong else value for name, value in losses.items()}

    def draw(self) -> None:
        """Draw the curves; a picture that cannot be written ends no training."""
        self.drawn_at = time.monotonic()
        try:
            draw_progress(self.run.folder, self.records)
        except OSError as problem:
            self.run.reporter.message(f"Warning: the curves were not drawn ({problem}).")
