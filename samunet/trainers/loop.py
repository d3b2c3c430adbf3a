"""The one training loop. Methods supply a TrainingModule and phases; nothing here is overridden."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from samunet.errors import SamunetError
from samunet.trainers.base import Phase, build_optimizer
from samunet.trainers.batches import BatchStream
from samunet.trainers.checkpoint import (
    BEST,
    FINAL,
    LATEST,
    load_network_state,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from samunet.trainers.devices import peak_memory_gb, synchronize, to_device
from samunet.trainers.history import (
    EpochRecord,
    append_history,
    cut_history,
    draw_progress,
    moving_average,
    patch_dice,
)
from samunet.trainers.reporter import StepReport
from samunet.trainers.sampling import Position, batch_keys
from samunet.trainers.schedule import learning_rate_factor

if TYPE_CHECKING:
    from samunet.trainers.run import TrainingRun

logger = logging.getLogger(__name__)

CHECK_STEPS = 20
"""On a GPU the losses are looked at every so many steps, because looking waits for the GPU."""
PICTURE_SECONDS = 20.0
"""progress.png is drawn at most this often, and at the end."""

Outcome = Literal["finished", "interrupted"]


@dataclass
class Sums:
    """What has been added up within an epoch.

    Attributes:
        values: name -> sum over steps (losses) or over voxels (`tp`, `fp`, `fn`).
        steps: how many steps they are of.
    """

    values: dict[str, Any] = field(default_factory=dict)
    steps: int = 0

    def add(self, parts: dict[str, Tensor]) -> None:
        for name, value in parts.items():
            value = value.detach()
            self.values[name] = self.values[name] + value if name in self.values else value.clone()
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Mean per step of the scalar values."""
        return {k: float(v) / self.steps for k, v in self.values.items() if v.ndim == 0}

    def state(self) -> dict[str, Any]:
        return {"values": {k: v.cpu() for k, v in self.values.items()}, "steps": self.steps}


@dataclass
class Progress:
    """Where a run stands; all of it goes into the checkpoint.

    Attributes:
        epoch: complete epochs.
        iteration: optimizer steps done in the present epoch; above 0 only after an interruption.
        ema: moving average of patch Dice; `best` its highest value.
        sums: of the present epoch's training steps.
        seconds / waiting: of the present epoch.
    """

    epoch: int = 0
    iteration: int = 0
    ema: float | None = None
    best: float | None = None
    sums: Sums = field(default_factory=Sums)
    seconds: float = 0.0
    waiting: float = 0.0


def fit(run: TrainingRun) -> Outcome:
    """Train until the schedule ends, or a signal asks to stop; both leave a checkpoint.

    Raises:
        SamunetError: the loss is not finite; the last checkpoint is left as it was.
    """
    session = _Session(run)
    with stop_signals() as stop:
        outcome = session.run_epochs(stop)
    if outcome == "finished":
        session.save(FINAL)
        draw_progress(run.folder, session.records)
    return outcome


class StopFlag:
    """Set by SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.name: str | None = None


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """SIGINT and SIGTERM set a flag within the block; a second one acts as usual. Main thread only."""
    flag, previous = StopFlag(), {}

    def ask(number: int, _frame: Any) -> None:
        flag.name = signal.Signals(number).name
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, ask)
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Session:
    """The moving parts of one call of `fit`."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self.module = run.module.to(run.device)
        self.scaler = run.precision.scaler(run.device)
        self.progress = Progress()
        self.phase_index = -1
        self.records = cut_history(run.folder, 0 if run.resume_from is None else run.resume_from.epoch)
        self.drawn_at = -math.inf
        self._enter_phase(self._locate(0 if run.resume_from is None else run.resume_from.epoch)[0])
        if run.resume_from is not None:
            self._restore()

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
            self.optimizer = build_optimizer(self.phase, self.run.module.network)

    def _restore(self) -> None:
        checkpoint = self.run.resume_from
        assert checkpoint is not None
        load_network_state(self.run.module.network, checkpoint.network, checkpoint.base_weights)
        state = checkpoint.training
        if state["phase"] == self.phase_index:
            self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        sums = state["sums"]
        self.progress = Progress(
            epoch=checkpoint.epoch,
            iteration=state["iteration"],
            ema=state["ema"],
            best=state["best"],
            sums=Sums({k: v.to(self.run.device) for k, v in sums["values"].items()}, sums["steps"]),
            seconds=state["seconds"],
            waiting=state["waiting"],
        )
        restore_random_states(state["random"])

    def save(self, name: str) -> None:
        """Write a checkpoint of the present state."""
        progress = self.progress
        training = {
            "phase": self.phase_index,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_states(self.run.device),
            "iteration": progress.iteration,
            "ema": progress.ema,
            "best": progress.best,
            "sums": progress.sums.state(),
            "seconds": progress.seconds,
            "waiting": progress.waiting,
        }
        save_checkpoint(self.run.folder / name, self.run.checkpoint(progress.epoch, training))

    def run_epochs(self, stop: StopFlag) -> Outcome:
        start = Position(epoch=self.progress.epoch, iteration=self.progress.iteration)
        keys = batch_keys(self.run.phases, self.run.batch_size, start)
        stream = BatchStream(self.run.source, keys, self.run.workers, self.run.device)
        try:
            while self.progress.epoch < self.epochs:
                if not self._epoch(stream, stop):
                    self.save(LATEST)
                    self.run.reporter.message(
                        f"Stopped by {stop.name} in epoch {self.progress.epoch + 1}, step {self.progress.iteration}; "
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
        meter = _Meter(self)
        self.module.train()
        for iteration in range(self.progress.iteration, self.phase.iterations):
            losses = self._train_step(stream, meter, learning_rate_factor(self.phase, local_epoch, iteration))
            self.progress.sums.add(losses)
            self.progress.iteration = iteration + 1
            meter.step(iteration, losses["loss"])
            if stop.name is not None:
                meter.finish()
                return False
        val = Sums()
        self.module.eval()
        for batch in range(self.phase.val_iterations):
            val.add(self._val_step(stream, meter))
            meter.step(self.phase.iterations + batch, None)
            if stop.name is not None:
                meter.finish()
                return False
        meter.finish()
        self._end_epoch(val)
        return True

    def _train_step(self, stream: BatchStream, meter: _Meter, rate_factor: float) -> dict[str, Tensor]:
        phase = self.phase
        for group in self.optimizer.param_groups:
            group["lr"] = phase.learning_rate * group["lr_factor"] * rate_factor
        self.optimizer.zero_grad(set_to_none=True)
        parts = Sums()
        for _ in range(phase.accumulate):
            batch = to_device(meter.wait_for(stream), self.run.device)
            with self.run.precision.autocast(self.run.device):
                losses = self.module(batch)
            self.scaler.scale(losses["loss"] / phase.accumulate).backward()
            parts.add(losses)
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, phase.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {name: value / phase.accumulate for name, value in parts.values.items()}

    @torch.no_grad()
    def _val_step(self, stream: BatchStream, meter: _Meter) -> dict[str, Tensor]:
        batch = to_device(meter.wait_for(stream), self.run.device)
        with self.run.precision.autocast(self.run.device):
            return self.module(batch)

    def _end_epoch(self, val: Sums) -> None:
        progress, phase = self.progress, self.phase
        counts = [val.values[name].tolist() if name in val.values else [] for name in ("tp", "fp", "fn")]
        dice, mean = patch_dice(self.run.class_names, *counts)
        progress.ema = moving_average(progress.ema, mean)
        samples = phase.iterations * phase.accumulate * self.run.batch_size
        record = EpochRecord(
            epoch=progress.epoch,
            phase=phase.name,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            train=progress.sums.means(),
            val=val.means(),
            patch_dice=dice,
            mean_patch_dice=mean,
            ema_patch_dice=progress.ema,
            seconds=progress.seconds,
            waiting_seconds=progress.waiting,
            samples_per_second=samples / max(progress.seconds, 1e-9),
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
            draw_progress(self.run.folder, self.records)
            self.drawn_at = time.monotonic()


class _Meter:
    """Time, waiting, screen and the finiteness of losses within one epoch."""

    def __init__(self, session: _Session) -> None:
        self.session = session
        self.started = time.monotonic()
        self.before = session.progress.seconds
        self.first = session.progress.iteration
        self.pending: list[tuple[int, Tensor]] = []
        self.shown_loss = math.nan
        self.check_every = 1 if session.run.device.type == "cpu" else CHECK_STEPS

    def wait_for(self, stream: BatchStream) -> dict[str, Tensor]:
        """The next batch; the time it takes is counted."""
        started = time.monotonic()
        batch = next(stream)
        self.session.progress.waiting += time.monotonic() - started
        return batch

    def step(self, iteration: int, loss: Tensor | None) -> None:
        """After a training step (its loss), or a validation step (None)."""
        if loss is not None:
            self.pending.append((iteration, loss))
            if len(self.pending) >= self.check_every:
                self._check()
        elapsed = time.monotonic() - self.started
        phase, run = self.session.phase, self.session.run
        done = iteration + 1 - self.first
        length = phase.iterations + phase.val_iterations
        left = (length - iteration - 1) + length * (self.session.epochs - self.session.progress.epoch - 1)
        trained = min(done, phase.iterations - self.first) * phase.accumulate * run.batch_size
        run.reporter.step(
            StepReport(
                epoch=self.session.progress.epoch,
                epochs=self.session.epochs,
                iteration=iteration + 1,
                iterations=length,
                loss=self.shown_loss,
                samples_per_second=trained / max(elapsed, 1e-9),
                seconds_left=left * elapsed / done if done else None,
            )
        )

    def _check(self) -> None:
        values = torch.stack([loss.float() for _, loss in self.pending]).tolist()
        for (iteration, _), value in zip(self.pending, values):
            if not math.isfinite(value):
                self._refuse(iteration, value)
        self.shown_loss = values[-1]
        self.pending = []

    def _refuse(self, iteration: int, value: float) -> None:
        latest = self.session.run.folder / LATEST
        kept = f"The last checkpoint is {latest}." if latest.exists() else "No checkpoint was written yet."
        raise SamunetError(
            f"The loss became {value} in epoch {self.session.progress.epoch + 1}, step {iteration + 1}. {kept} "
            "Lower the rate with --set learning_rate=..., and look at the images for extreme intensities."
        )

    def finish(self) -> None:
        """At the end of the epoch, or where it was interrupted."""
        if self.pending:
            self._check()
        synchronize(self.session.run.device)
        self.session.progress.seconds = self.before + time.monotonic() - self.started
