"""The checkpoint that a training goes on from; and which other one would do where that is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from samunet.errors import SamunetError
from samunet.trainers.loop_run import Restorable
from samunet.workspace import BEST, HISTORY_FILE, LATEST

State = TypeVar("State", bound=Restorable)


def load_latest(folder: Path, load: Callable[[Path], State]) -> State:
    """The state that a run was left in.

    That of an end between the first two checkpoints is in the best one, which is written first. Otherwise an
    older one is only named: to go on from it gives up the epochs after it, with their lines of the history,
    and a file that was cut off while it was copied may be whole elsewhere.

    Args:
        folder: of the run.
        load: reads a checkpoint of its kind, or says in a SamunetError why it cannot.

    Raises:
        SamunetError: it cannot be read; names the best one if the training can go on from that.
    """
    latest = folder / LATEST
    if not latest.exists() and (folder / BEST).exists():
        return load(folder / BEST)
    try:
        return load(latest)
    except SamunetError as fault:
        best = _whole(folder / BEST, load) if latest.exists() else None
        if best is None:
            raise
        raise SamunetError(
            f"{latest} cannot be read, but {BEST} beside it can. Copy the former again from where "
            f"it came; or copy {BEST} over it, and the same command goes on after epoch {best.epoch}: later "
            f"epochs are trained again, and their lines leave {HISTORY_FILE}."
        ) from fault


def _whole(path: Path, load: Callable[[Path], State]) -> State | None:
    """A checkpoint that a training can go on from; None if it is none."""
    try:
        found = load(path)
    except (SamunetError, OSError):
        return None
    return found if found.training else None
