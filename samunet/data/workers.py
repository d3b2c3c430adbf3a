"""Worker processes: as many as free memory allows, spawn-safe, and a death that names the case."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from samunet.data.limits import core_quota, memory_left
from samunet.errors import SamunetError
from samunet.progress import Progress

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

MEMORY_SHARE = 0.8
"""Share of the free memory that workers may take together."""
PROCESS_BYTES = 150_000_000
"""A worker process before it has read anything."""
QUEUED_PER_WORKER = 2
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS")
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
    free = free_memory_bytes()
    if bytes_per_case > free:
        logger.warning(
            "The largest case takes about %.1f GB of memory, and %.1f GB are free: if the system ends the "
            "program, close others, or take a machine with more.",
            bytes_per_case / 1e9,
            free / 1e9,
        )
    allowed = int(MEMORY_SHARE * free // (bytes_per_case + PROCESS_BYTES))
    return max(1, min(wanted or available_cores(), allowed, num_items))


@dataclass(frozen=True)
class Finished(Generic[Result]):
    """What became of an item: its result, or that its worker process `died`, which it does alone too."""

    index: int
    result: Result | None
    died: bool = False


def each_in_workers(
    task: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[Finished[Result], None, None]:
    """Work through items in worker processes, one thread each; yields each item as it is finished.

    When a worker dies, every item that was in work then is tried again alone, with all the memory.

    Args:
        task: a module-level function (or partial of one), sent once to every spawned process. Its errors are
            passed on unchanged.
        workers: processes; with 1 or fewer everything runs in this process.
    """
    if workers <= 1:
        yield from (Finished(index, task(item)) for index, item in enumerate(items))
        return
    with _one_thread_each():
        waiting = deque(range(len(items)))
        while waiting:
            suspects = yield from _pooled(task, items, waiting, workers)
            for index in suspects:
                if (yield from _pooled(task, items, deque([index]), 1)):
                    yield Finished(index, None, died=True)


def _pooled(
    task: Callable[[Item], Result], items: Sequence[Item], waiting: deque[int], workers: int
) -> Generator[Finished[Result], None, list[int]]:
    """Work through `waiting`; when a worker dies, stop and return what was in work."""
    running: dict[Future[Result], int] = {}
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_receive_task, initargs=(task,))
    try:
        while waiting or running:
            while waiting and len(running) < workers * QUEUED_PER_WORKER:
                running[pool.submit(_work, items[waiting[0]])] = waiting[0]
                waiting.popleft()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield Finished(running.pop(future), result)
    except BrokenProcessPool:
        return sorted(running.values())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return []


_worker_task: list[Callable[[Any], Any]] = []
"""In a worker process: the task."""


def _receive_task(task: Callable[[Any], Any]) -> None:
    _worker_task[:] = [task]


def _work(item: Any) -> Any:
    return _worker_task[0](item)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Worker processes start with one thread per numeric library; the cores are taken by the processes."""
    previous = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update({name: "1" for name in THREAD_VARIABLES})
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def map_in_workers(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    name: Callable[[Item], str],
    progress: Progress | None = None,
) -> list[Result]:
    """`[task(item) for item in items]` in worker processes, in the order of the items.

    Args:
        task / workers: see `each_in_workers`.
        name: what to call an item when its worker dies.

    Raises:
        SamunetError: a worker died; names the item. Errors of `task` are passed on unchanged.
    """
    results: dict[int, Result] = {}
    with closing(each_in_workers(task, items, workers)) as finished:
        for one in finished:
            if one.died:
                raise SamunetError(
                    f"The worker process died while {name(items[one.index])} was worked on, alone too. Most "
                    f"likely the memory was used up; a machine with more memory is needed. {GUARD}"
                )
            results[one.index] = cast(Result, one.result)
            if progress is not None:
                progress(len(results), len(items))
    return [results[index] for index in range(len(items))]
