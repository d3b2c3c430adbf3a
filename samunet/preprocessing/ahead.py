"""How many batches worker processes make before they are asked for: they wait in /dev/shm."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

AHEAD = 8
"""Batches that all workers together prepare ahead, as far as LEAST_AHEAD and MOST_AHEAD of each allow it:
they take memory, and /dev/shm, of which containers have little."""
LEAST_AHEAD = 2
"""Batches come in the order of their keys: a worker that makes one alone waits until all before it are
taken. Computed for times that vary by a third, twelve workers that hold up the training are a quarter slower
with one each than with four, and a fifteenth with two."""
MOST_AHEAD = 4

SHARED_MEMORY = Path("/dev/shm")
AMPLE_BYTES = 8_000_000_000
"""Where as much is free, nobody asks what a batch takes."""
SHARE = 0.9
"""Of the free shared memory that batches may take."""
IN_USE = 1
"""Batches that the training has taken and not yet let go."""


class Ahead(NamedTuple):
    """Worker processes, and the batches that each makes ahead; 0 and 0 where there is no other process."""

    workers: int
    each: int

    @property
    def batches(self) -> int:
        return self.workers * self.each


def usual_ahead(workers: int) -> Ahead:
    """As many batches as are of use to so many workers."""
    return Ahead(workers, min(MOST_AHEAD, max(LEAST_AHEAD, AHEAD // workers)) if workers else 0)


def fitting_ahead(workers: int, batch_bytes: int, free: int) -> Ahead:
    """The usual, or what has room: then fewer batches of each worker, fewer workers, in the end none.

    Args:
        workers: processes that are wanted.
        batch_bytes: what a batch takes.
        free: bytes of the shared memory.
    """
    room = max(0, int(SHARE * free) // max(1, batch_bytes) - IN_USE)
    fitting = min(workers, room // LEAST_AHEAD or room)
    return Ahead(fitting, min(usual_ahead(fitting).each, room // max(1, fitting)))


def needed_bytes(workers: int, batch_bytes: int) -> float:
    """Shared memory that the usual batches of so many workers ask for."""
    return (usual_ahead(workers).batches + IN_USE) * batch_bytes / SHARE


def scarce_shared_bytes() -> int | None:
    """What is free where Linux keeps memory that processes share; None where that is ample, or elsewhere."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None
    return free if free < AMPLE_BYTES else None
