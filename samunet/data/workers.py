"""Worker processes: as many as free memory allows, spawn-safe, and a death that names the case."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from samunet.data.limits import core_quota, memory_left
from samunet.errors import SamunetError
from samunet.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

MEMORY_SHARE = 0.8
"""Share of the free memory that workers may take together."""
PROCESS_BYTES = 150_000_000
"""A worker process before it has read anything."""
QUEUED_PER_WORKER = 2
GUARD = 'In a script of your own the call must stand under `if __name__ == "__main__":`.'
"""Workers start by importing the script; without the guard each ends at once."""


def free_memory_bytes() -> int:
    """Memory that can be had now, bytes: the machine's, or less within a container or a job of a cluster."""
    import psutil

    free, left = int(psutil.virtual_memory().available), memory_left()
    return max(0, free if left is None else min(free, left))


def available_cores() -> int:
    """Cores that this process may use: those of its affinity, or fewer within a limited container or job."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, core_quota() or cores)


def worker_count(wanted: int | None, bytes_per_case: int, num_items: int) -> int:
    """Number of worker processes, at least 1 (then no process is started).

    Args:
        wanted: the user's number, never exceeded; None takes one per core.
        bytes_per_case: memory that the largest case needs while it is worked on.
        num_items: cases to work on.
    """
    allowed = int(MEMORY_SHARE * free_memory_bytes() // (bytes_per_case + PROCESS_BYTES))
    return max(1, min(wanted or available_cores(), allowed, num_items))


def map_in_workers(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    name: Callable[[Item], str],
    progress: Progress | None = None,
) -> list[Result]:
    """`[task(item) for item in items]` in worker processes, in the order of the items.

    Args:
        task: a module-level function (or partial of one): it is sent to spawned processes.
        workers: processes; with 1 or fewer everything runs in this process.
        name: what to call an item when its worker dies.

    Raises:
        SamunetError: a worker died; names the items in work. Errors of `task` are passed on unchanged.
    """
    if workers <= 1:
        return [_done(task(item), i + 1, len(items), progress) for i, item in enumerate(items)]
    results: dict[int, Result] = {}
    waiting = deque(enumerate(items))
    running: dict[Future[Result], int] = {}
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        while waiting or running:
            while waiting and len(running) < workers * QUEUED_PER_WORKER:
                index, item = waiting.popleft()
                running[pool.submit(task, item)] = index
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                results[running[future]] = future.result()
                del running[future]
                _done(None, len(results), len(items), progress)
    except BrokenProcessPool as error:
        names = ", ".join(name(items[index]) for index in sorted(running.values()))
        raise SamunetError(
            f"A worker process died while these were worked on: {names}. Most likely the memory was used up; "
            f"run again with fewer workers (-np 1). {GUARD}"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [results[index] for index in range(len(items))]


def _done(result: Result, count: int, total: int, progress: Progress | None) -> Result:
    if progress is not None:
        progress(count, total)
    return result
