"""How many cores other processes keep busy meanwhile, so that a measurement of this one can be doubted."""

from __future__ import annotations

import os
import time

import psutil

LEAST_SECONDS = 0.3
"""The system counts processor time in hundredths of a second; shorter whiles say nothing."""
ENOUGH_CORES = 0.75
"""Of the threads that compute; with fewer cores left a measurement counts as disturbed."""
IDLE_FIELDS = ("idle", "iowait")
COUNTED_TWICE = ("guest", "guest_nice")
"""Linux counts these as `user` and `nice` too."""


class OtherWork:
    """Watches the machine from its making on."""

    def __init__(self) -> None:
        self._busy, self._own, self._wall = _busy_seconds(), time.process_time(), time.monotonic()

    def cores(self) -> float:
        """Cores that other processes (and other virtual machines, where the system knows) have kept busy."""
        wall = time.monotonic() - self._wall
        if wall < LEAST_SECONDS:
            return 0.0
        others = _busy_seconds() - self._busy - (time.process_time() - self._own)
        return min(max(others / wall, 0.0), float(os.cpu_count() or 1))


def are_too_few(others: float, threads: int) -> bool:
    """Whether cores that others keep busy leave too few for that many threads."""
    return (os.cpu_count() or 1) - others < ENOUGH_CORES * threads


def _busy_seconds() -> float:
    """Processor time of all cores since the system started, less what they were idle."""
    times = psutil.cpu_times()._asdict()
    return float(sum(value for name, value in times.items() if name not in (*IDLE_FIELDS, *COUNTED_TWICE)))
