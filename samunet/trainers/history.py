"""What an epoch brought: one line a time in history.jsonl, and the picture progress.png."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samunet.records import from_data, to_data
from samunet.whole_files import atomic_path, sync, write_text
from samunet.workspace import HISTORY_FILE, PROGRESS_FILE

EMA_KEEP = 0.9


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch. `None` stands for a value that does not exist (a class absent from all patches).

    Attributes:
        epoch: number over all phases, from 0.
        phase: name of the phase.
        learning_rate: of the first parameter group at the end of the epoch.
        train / val: mean loss and its parts; None of a validation that was not finite.
        patch_dice: Dice per class or region over all validation patches of the epoch pooled. Patches are
            drawn (a third with forced foreground), so this is not the Dice of whole cases.
        mean_patch_dice: mean over the classes that exist; ema_patch_dice: its moving average (0.9 old, 0.1
            new).
        seconds: duration; waiting_seconds: of it spent waiting for samples.
        samples_per_second: training samples over the time of the training steps; validation does not count.
        memory_gb: peak GPU memory, or peak resident memory of the process, 1e9 bytes.
    """

    epoch: int
    phase: str
    learning_rate: float
    train: dict[str, float]
    val: dict[str, float | None]
    patch_dice: dict[str, float | None]
    mean_patch_dice: float | None
    ema_patch_dice: float | None
    seconds: float
    waiting_seconds: float
    samples_per_second: float
    memory_gb: float

    @property
    def val_loss(self) -> float:
        """Validation loss; NaN where there was none, or none that is finite."""
        value = self.val.get("loss")
        return math.nan if value is None else value


def patch_dice(
    names: Sequence[str], tp: Sequence[float], fp: Sequence[float], fn: Sequence[float]
) -> tuple[dict[str, float | None], float | None]:
    """Dice per name from pooled voxel counts, and the mean over those that exist."""
    values: dict[str, float | None] = {}
    for name, hit, wrong, missed in zip(names, tp, fp, fn):
        total = 2 * hit + wrong + missed
        values[name] = 2 * hit / total if total else None
    known = [value for value in values.values() if value is not None]
    return values, (sum(known) / len(known) if known else None)


def moving_average(previous: float | None, new: float | None) -> float | None:
    """0.9 old + 0.1 new; the first value starts it, an epoch without a value leaves it."""
    if new is None or previous is None:
        return previous if new is None else new
    return EMA_KEEP * previous + (1 - EMA_KEEP) * new


def append_history(folder: Path, record: EpochRecord) -> None:
    """Add one line; the file is flushed line by line, so that it can be followed."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / HISTORY_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(_without_nan(to_data(record))) + "\n")
        sync(file)  # the checkpoint that counts this epoch is on the disk, too


def read_history(folder: Path) -> list[EpochRecord]:
    """All records; a last line cut off by a crash is dropped."""
    path = folder / HISTORY_FILE
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            data = json.loads(line)
        except json.JSONDecodeError:
            break
        records.append(from_data(EpochRecord, data, where=str(path)))
    return records


def cut_history(folder: Path, epochs: int) -> list[EpochRecord]:
    """Keep the first `epochs` records, those that the checkpoint to be continued knows; returns them."""
    kept = [record for record in read_history(folder) if record.epoch < epochs]
    lines = [json.dumps(_without_nan(to_data(record))) + "\n" for record in kept]
    write_text(folder / HISTORY_FILE, "".join(lines), lasting=True)
    return kept


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw_progress(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Write progress.png: losses with patch Dice, seconds an epoch, learning rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [record.epoch for record in records]
    figure = Figure(figsize=(11, 13))
    figure.subplots_adjust(left=0.08, right=0.92, top=0.965, bottom=0.05, hspace=0.06)
    FigureCanvasAgg(figure)
    losses, seconds, rates = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    losses.plot(epochs, [r.train["loss"] for r in records], color="tab:blue", label="training loss")
    losses.plot(epochs, [r.val_loss for r in records], color="tab:red", label="validation loss")
    losses.set_ylabel("loss")
    dice = losses.twinx()
    values = [[r.mean_patch_dice, r.ema_patch_dice] for r in records]
    plain, smooth = zip(*[[math.nan if v is None else v for v in pair] for pair in values])
    dice.plot(epochs, plain, ".", color="tab:green", alpha=0.5, label="patch Dice")
    dice.plot(epochs, smooth, color="tab:green", label="patch Dice, moving average")
    dice.set_ylabel("patch Dice (drawn patches, not whole cases)")
    dice.set_ylim(0, 1)
    lines = [*losses.get_lines(), *dice.get_lines()]
    names = [str(line.get_label()) for line in lines]
    losses.legend(  # above: inside it covers one of the curves sooner or later
        lines,
        names,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(lines),
        frameon=False,
        fontsize=9,
    )
    seconds.plot(epochs, [r.seconds for r in records], color="tab:gray", label="epoch")
    seconds.plot(
        epochs, [r.waiting_seconds for r in records], color="tab:orange", label="waiting for samples"
    )
    seconds.set_ylabel("seconds")
    seconds.set_ylim(bottom=0)
    seconds.legend(fontsize=8)
    rates.plot(epochs, [r.learning_rate for r in records], color="tab:purple")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("epoch")
    for axis in (losses, seconds, rates):
        axis.grid(alpha=0.3)
    with atomic_path(folder / PROGRESS_FILE) as temporary:
        figure.savefig(temporary, dpi=80, format="png")
