"""All cases of a dataset: in worker processes, resumable, one bad case does not stop the others."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path

from samunet.data.dataset import Case, RawDataset
from samunet.data.geometry import resampled_shape
from samunet.data.readers import read_header, read_image, read_label
from samunet.data.workers import Progress, worker_count
from samunet.errors import SamunetError
from samunet.planning.plan import Plan
from samunet.preprocessing.case import preprocess_case
from samunet.preprocessing.locations import Locations, sample_locations
from samunet.preprocessing.store import STORE_FORMAT, CaseStore
from samunet.records import content_hash

log = logging.getLogger(__name__)

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass(frozen=True, kw_only=True)
class PreprocessReport:
    """What happened to the cases: `written` now, or `kept` from an earlier run."""

    written: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass
class _Progress:
    """Counts finished cases and collects what went wrong."""

    total: int
    done: int
    callback: Progress | None
    failures: dict[str, str] = field(default_factory=dict)

    def finished(self, name: str, failure: str | None) -> None:
        self.done += 1
        if failure is not None:
            self.failures[name] = failure
            log.warning("%s: %s", name, failure)
        self.report()

    def report(self) -> None:
        if self.callback is not None:
            self.callback(self.done, self.total)


def preprocess_dataset(
    dataset: RawDataset,
    plan: Plan,
    data_name: str,
    folder: Path,
    workers: int | None = None,
    progress: Progress | None = None,
) -> PreprocessReport:
    """Preprocess every case of a raw dataset into `folder`.

    Cases that are there already and were made from the same files in the same way are kept; cases that the
    dataset no longer has are removed. The number of workers follows from free memory.

    Args:
        data_name: data configuration of the plan, `2d` or `3d`.
        workers: at most this many processes; None takes one per core.
        progress: called with (cases done, all cases).

    Raises:
        SamunetError: no space is left, or cases could not be preprocessed: names each with its reason, after
            all others are finished.
    """
    store = CaseStore(folder)
    folder.mkdir(parents=True, exist_ok=True)
    keys = {case.name: case_key(case, plan, data_name) for case in dataset.cases}
    for name in set(store.names()) - set(keys):
        log.info("Removing preprocessed case %s: the dataset no longer has it.", name)
        store.remove(name)
    missing = [case for case in dataset.cases if store.key(case.name) != keys[case.name]]
    kept = tuple(sorted(set(keys) - {case.name for case in missing}))
    state = _Progress(total=len(keys), done=len(kept), callback=progress)
    state.report()
    if missing:
        count = worker_count(workers, largest_case_bytes(missing, plan, data_name), len(missing))
        log.info("Preprocessing %d cases (%s) with %d workers.", len(missing), data_name, count)
        task = partial(preprocess_to_store, plan=plan, data_name=data_name, folder=folder)
        try:
            _run(task, [(case, keys[case.name]) for case in missing], count, state)
        except OSError as error:
            raise _no_space(error, folder) from error
    if state.failures:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in sorted(state.failures.items()))
        raise SamunetError(
            f"{len(state.failures)} of {len(keys)} cases could not be preprocessed:\n{listed}\n"
            "The others are finished and are kept. Correct these and run the command again."
        )
    return PreprocessReport(written=tuple(sorted(case.name for case in missing)), kept=kept)


def case_key(case: Case, plan: Plan, data_name: str) -> str:
    """Identifies a preprocessed case: how it is made, and its raw files by name, size and time of change."""
    files = [*case.images, *([] if case.label is None else [case.label])]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return content_hash([STORE_FORMAT, plan.data_hash(data_name), stats])


def largest_case_bytes(cases: Sequence[Case], plan: Plan, data_name: str) -> int:
    """Memory that the largest of the cases needs while it is preprocessed, from the file headers alone."""
    data, channels = plan.data[data_name], len(plan.channel_names)
    largest = 0
    for case in cases:
        geometry = read_header(case.images[0]).geometry
        spacing = [geometry.spacing_mm[axis] for axis in plan.transpose_forward]
        shape = [geometry.shape[axis] for axis in plan.transpose_forward]
        target = data.spacing_mm if data.dimension == 3 else (spacing[0], *data.spacing_mm)
        before, after = prod(shape), prod(resampled_shape(shape, spacing, target))
        # float32 image twice while it is read, one normalised channel, masks and labels; then the result, the
        # volume between two axes of a resize, label and compressed copies.
        largest = max(largest, before * (8 * channels + 16) + after * (8 * channels + 12))
    return largest


def preprocess_to_store(item: tuple[Case, str], plan: Plan, data_name: str, folder: Path) -> str | None:
    """Preprocess one case and store it; returns why it failed, or None. Runs in a worker process."""
    case, key = item
    data = plan.data[data_name]
    try:
        image, geometry = read_image(case.images)
        label = None if case.label is None else read_label(case.label)[0]
        done = preprocess_case(image, label, geometry, plan, data, where=case.name)
        del image, label
        locations = Locations() if done.label is None else sample_locations(done.label, plan.labels)
        CaseStore(folder).write(case.name, done, locations, key, by_slice=data.dimension == 2)
    except SamunetError as error:
        return str(error)
    except MemoryError:
        return "not enough memory. Run again with fewer workers (-np 1), or on a machine with more memory."
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        raise RuntimeError(f"Preprocessing of case {case.name} failed: {error!r}") from error
    return None


Task = Callable[[tuple[Case, str]], "str | None"]


def _run(task: Task, items: list[tuple[Case, str]], workers: int, state: _Progress) -> None:
    if workers <= 1:
        for item in items:
            state.finished(item[0].name, task(item))
        return
    waiting = deque(items)
    with _one_thread_each():
        while waiting:
            suspects = _run_pool(task, waiting, workers, state)
            # One of these killed its worker. Each alone, with all the memory, tells which.
            for item in suspects:
                if _run_pool(task, deque([item]), 1, state):
                    state.finished(
                        item[0].name,
                        "its worker process died, most likely because the memory was used up. Run again on a "
                        "machine with more memory, or plan a coarser spacing (-overwrite_target_spacing).",
                    )


def _run_pool(
    task: Task, waiting: deque[tuple[Case, str]], workers: int, state: _Progress
) -> list[tuple[Case, str]]:
    """Work through `waiting`; when a worker dies, stop and return the items that were in work."""
    running: dict[Future[str | None], tuple[Case, str]] = {}
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running[pool.submit(task, waiting[0])] = waiting[0]
                waiting.popleft()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                failure = future.result()
                state.finished(running.pop(future)[0].name, failure)
    except BrokenProcessPool:
        return list(running.values())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return []


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


def _no_space(error: OSError, folder: Path) -> Exception:
    if error.errno in NO_SPACE:
        return SamunetError(
            f"No space is left for preprocessed cases in {folder}. Free some disk space, or set another "
            "workspace; finished cases are kept when the command runs again."
        )
    return error
