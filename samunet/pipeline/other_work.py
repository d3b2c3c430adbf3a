"""How many cores other processes keep busy meanwhile, so that a measurement of this one can be doubted."""

from __future__ import annotations

import os
import time

import psutil

LEAST_SECONDS = 0.3
"""The system counts processor time in hundredths of a second; shorter whiles say nothing."""
ENOUGH_CORES = 0.75
"""Of the threads that compute; with fewer cores left a measurement counts as disturbed."""


class OtherWork:
    """Watches the machine from its making on; one at a time in a thread."""

    def __init__(self) -> None:
        psutil.cpu_percent()
        self._own, self._wall = time.process_time(), time.monotonic()

    def cores(self) -> float:
        """Cores that other processes (and other virtual machines, where the system knows) have kept busy."""
        wall = time.monotonic() - self._wall
        if wall < LEAST_SECONDS:
            return 0.0
        busy = psutil.cpu_percent() / 100 * (os.cpu_count() or 1)
        return max(0.0, busy - (time.process_time() - self._own) / wall)


def are_too_few(others: float, threads: int) -> bool:
    """Whether cores that others keep busy leave too few for that many threads."""
    return (os.cpu_count() or 1) - others < ENOUGH_CORES * threads
