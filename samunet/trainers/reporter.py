"""Progress on the screen: a live line on a terminal, plain flushed lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import IO, Protocol

from samunet.trainers.history import EpochRecord

PLAIN_SECONDS = 60.0
"""Without a terminal a line inside a long epoch appears this often."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Where the run is.

    Attributes:
        epoch / epochs: present epoch from 0, and all epochs.
        iteration / iterations: within the epoch, training and validation counted together.
        loss: of the last step that was looked at.
        samples_per_second: training samples so far in this epoch; validation does not count.
        seconds_left: expected time to the end of the run, or None at the start.
    """

    epoch: int
    epochs: int
    iteration: int
    iterations: int
    loss: float
    samples_per_second: float
    seconds_left: float | None


class Reporter(Protocol):
    """Is told what happens; knows nothing of training."""

    def message(self, text: str) -> None:
        """A sentence for the user."""

    def status(self, text: str) -> None:
        """What is going on now; shown in passing."""

    def step(self, report: StepReport) -> None:
        """After every training or validation step."""

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        """After every epoch of `epochs`."""

    def close(self) -> None:
        """At the end, also after an error."""


def duration(seconds: float | None) -> str:
    """1:02:03, or 2:03 below an hour."""
    if seconds is None:
        return "?"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """One epoch in one line."""
    return (
        f"epoch {record.epoch + 1}/{epochs}  loss {record.train['loss']:.4f}"
        f"  val {_figure(record.val.get('loss'), 4)}  {_scores(record)}"
        f"  {record.samples_per_second:.1f} samples/s  {duration(record.seconds)}"
        f"  {record.memory_gb:.1f} GB  lr {record.learning_rate:.2e}"
    )


def _scores(record: EpochRecord) -> str:
    """Dice; where nothing is segmented, the parts of the validation loss."""
    if record.patch_dice:
        average = _figure(record.ema_patch_dice, 3)
        return f"patch Dice {_figure(record.mean_patch_dice, 3)} (average {average})"
    parts = [f"{name} {_figure(value, 4)}" for name, value in record.val.items() if name != "loss"]
    return f"({', '.join(parts) or 'not validated'})"


def _figure(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def step_line(report: StepReport) -> str:
    """The present step in one line."""
    return (
        f"epoch {report.epoch + 1}/{report.epochs}  step {report.iteration}/{report.iterations}"
        f"  loss {report.loss:.4f}  {report.samples_per_second:.1f} samples/s"
        f"  {duration(report.seconds_left)} left"
    )


class PlainReporter:
    """Lines, flushed one by one."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream
        self._shown_at = time.monotonic()

    def message(self, text: str) -> None:
        stream = self._stream or sys.stdout  # looked up now: a test or a notebook may have replaced it
        stream.write(text + "\n")
        stream.flush()

    def status(self, text: str) -> None:
        if time.monotonic() - self._shown_at >= PLAIN_SECONDS:
            self._shown_at = time.monotonic()
            self.message(text)

    def step(self, report: StepReport) -> None:
        self.status(step_line(report))

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        self._shown_at = time.monotonic()
        self.message(epoch_line(record, epochs))

    def close(self) -> None:
        pass


class LiveReporter:
    """A line that renews itself while an epoch runs; finished epochs stay above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def status(self, text: str) -> None:
        self._live.update(text)

    def step(self, report: StepReport) -> None:
        self.status(step_line(report))

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        self.message(epoch_line(record, epochs))

    def close(self) -> None:
        self._live.stop()


def make_reporter() -> Reporter:
    """A live line if standard output is a terminal, else plain lines."""
    return LiveReporter() if sys.stdout.isatty() else PlainReporter()
