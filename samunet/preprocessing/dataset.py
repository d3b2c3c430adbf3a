"""All cases of a dataset: in worker processes, resumable, one bad case does not stop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from samunet.data.cases import HEADERS_READ
from samunet.data.dataset import Case, RawDataset, check_label_grid
from samunet.data.geometry import resampled_shape
from samunet.data.readers import read_header, read_image, read_label
from samunet.data.workers import GUARD, each_in_workers, worker_count
from samunet.errors import SamunetError
from samunet.planning.plan import Plan
from samunet.preprocessing.case import preprocess_case
from samunet.preprocessing.locations import Locations, sample_locations
from samunet.preprocessing.store import STORE_FORMAT, CaseStore, content_start
from samunet.progress import Progress
from samunet.records import content_hash, hash_files
from samunet.whole_files import NO_SPACE, remove_partials

log = logging.getLogger(__name__)

DIED = (
    "its worker process died, most likely because the memory was used up. Run again on a machine with more "
    f"memory, or plan a coarser spacing (-overwrite_target_spacing). {GUARD}"
)


@dataclass(frozen=True, kw_only=True)
class PreprocessReport:
    """What happened to the cases: `written` now, or `kept` from an earlier run."""

    written: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CaseOrder:
    """What a worker is asked for: one case in some data configurations.

    Attributes:
        keys: data configuration -> key of the stored case.
        blank: a case without a label gets one that is background wherever there is an image.
    """

    case: Case
    keys: dict[str, str]
    blank: bool = False


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


def preprocess_folders(
    dataset: RawDataset,
    plan: Plan,
    folders: Mapping[str, Path],
    workers: int | None = None,
    progress: Progress | None = None,
) -> PreprocessReport:
    """Preprocess every case of a raw dataset for several data configurations; each case is read once.

    Cases that are there already and were made from the same files in the same way are kept; cases that the
    dataset no longer has are removed. The number of workers follows from free memory.

    Args:
        folders: data configuration of the plan (`2d`, `3d`) -> folder of its cases.
        workers: at most this many processes; None takes one per core.
        progress: called with (cases done, all cases).

    Raises:
        SamunetError: no space is left, or cases could not be preprocessed: names each with its reason, after
            all others are finished.
    """
    folders = {name: Path(folder) for name, folder in folders.items()}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
        _remove_foreign(CaseStore(folder), dataset)
    return _preprocess(
        _open_orders(dataset.cases, plan, folders), dataset.cases, plan, folders, workers, progress
    )


def preprocess_unlabelled(
    cases: Sequence[Case], plan: Plan, data_name: str, folder: Path, workers: int | None = None
) -> PreprocessReport:
    """Preprocess images without labels for one data configuration, as `preprocess_folders` does.

    They are stored with a label that is background wherever there is an image, -1 outside.

    Raises:
        SamunetError: as `preprocess_folders`.
    """
    folders = {data_name: Path(folder)}
    orders = [replace(order, blank=True) for order in _open_orders(cases, plan, folders)]
    return _preprocess(orders, cases, plan, folders, workers, None)


def _preprocess(
    orders: list[CaseOrder],
    cases: Sequence[Case],
    plan: Plan,
    folders: Mapping[str, Path],
    workers: int | None,
    progress: Progress | None,
) -> PreprocessReport:
    kept = tuple(sorted({case.name for case in cases} - {order.case.name for order in orders}))
    state = _Progress(total=len(cases), done=len(kept), callback=progress)
    state.report()
    if orders:
        for folder in folders.values():
            remove_partials(folder)
        count = worker_count(workers, largest_case_bytes(orders, plan), len(orders))
        log.info("Preprocessing %d cases (%s) with %d workers.", len(orders), ", ".join(folders), count)
        try:
            _run(partial(preprocess_to_store, plan=plan, folders=folders), orders, count, state)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            raise _no_space(next(iter(folders.values())).parent) from error
    if state.failures:
        listed = "\n".join(f"  {name}: {reason}" for name, reason in sorted(state.failures.items()))
        raise SamunetError(
            f"{len(state.failures)} of {len(cases)} cases could not be preprocessed:\n{listed}\n"
            "The others are finished and are kept. Correct these and run the command again."
        )
    return PreprocessReport(written=tuple(sorted(order.case.name for order in orders)), kept=kept)


def _remove_foreign(store: CaseStore, dataset: RawDataset) -> None:
    for name in set(store.names()) - {case.name for case in dataset.cases}:
        log.info("Removing preprocessed case %s: the dataset no longer has it.", name)
        store.remove(name)


def _open_orders(cases: Sequence[Case], plan: Plan, folders: Mapping[str, Path]) -> list[CaseOrder]:
    orders = []
    for case in cases:
        stale = [name for name, folder in folders.items() if not is_current(case, plan, name, folder)]
        if stale:
            missing = {name: case_key(case, plan, name) for name in stale}
            orders.append(CaseOrder(case=case, keys=missing))
    return orders


def case_key(case: Case, plan: Plan, data_name: str) -> str:
    """Identifies a preprocessed case: how it is made, and its raw files by name, size and time of change."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in case.files]
    return content_hash([STORE_FORMAT, plan.data_hash(data_name), stats])


def is_current(case: Case, plan: Plan, data_name: str, folder: Path) -> bool:
    """Whether `folder` holds this case, made by this plan from these raw files.

    Files of another time are read: a dataset that was copied or checked out again has the same bytes, and its
    cases stay. The new times are noted, so that the next look is a short one.
    """
    store, key = CaseStore(folder), case_key(case, plan, data_name)
    entry = store.finished(case.name)
    if entry is None:
        return False
    if key in (entry.key, entry.copied_from):
        return True
    made_by = content_start(plan.data_hash(data_name))
    if not entry.content.startswith(made_by) or entry.content != made_by + hash_files(case.files):
        return False
    # A folder that may only be read, or is locked: the files are read again the next time.
    with suppress(OSError, SamunetError):
        store.note_copy(case.name, key, entry.content)
    return True


def largest_case_bytes(orders: Sequence[CaseOrder], plan: Plan) -> int:
    """Memory that the largest case needs while it is preprocessed, from the headers of the largest files."""
    channels = len(plan.channel_names)
    largest = 0
    by_size = sorted(orders, key=lambda order: sum(path.stat().st_size for path in order.case.images))
    for order in by_size[-HEADERS_READ:]:
        geometry = read_header(order.case.images[0]).geometry
        spacing = [geometry.spacing_mm[axis] for axis in plan.transpose_forward]
        shape = [geometry.shape[axis] for axis in plan.transpose_forward]
        before, after = prod(shape), 0
        for data in (plan.data[name] for name in order.keys):
            target = data.spacing_mm if data.dimension == 3 else (spacing[0], *data.spacing_mm)
            after = max(after, prod(resampled_shape(shape, spacing, target)))
        # The image twice while it is read; then the image, one normalised channel, masks and labels, the
        # result and the volume between two axes of a resize. Measured: two thirds to three quarters of this.
        reading, resizing = 8 * channels * before, (4 * channels + 12) * before + (4 * channels + 8) * after
        largest = max(largest, reading, resizing)
    return largest


def preprocess_to_store(order: CaseOrder, plan: Plan, folders: Mapping[str, Path]) -> str | None:
    """Preprocess one case and store it; returns why it failed, or None. Runs in a worker process.

    What another process has stored since the order was given is left as it is.
    """
    case = order.case
    try:
        missing = {n: key for n, key in order.keys.items() if not is_current(case, plan, n, folders[n])}
        if not missing:
            return None
        image, geometry = read_image(case.images)
        label = np.zeros(image.shape[1:], np.uint8) if order.blank else None
        if case.label is not None:
            label, label_geometry = read_label(case.label)
            check_label_grid(case, geometry, label_geometry)
        bytes_hash = hash_files(case.files)
        for name, key in missing.items():
            data = plan.data[name]
            done = preprocess_case(image, label, geometry, plan, data, where=case.name)
            locations = Locations() if done.label is None else sample_locations(done.label, plan.labels)
            content = content_start(plan.data_hash(name)) + bytes_hash
            by_slice = data.dimension == 2
            CaseStore(folders[name]).write(case.name, done, locations, key, content, by_slice)
            del done, locations  # before the next configuration needs its own memory
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


def _run(
    task: Callable[[CaseOrder], str | None], orders: Sequence[CaseOrder], workers: int, state: _Progress
) -> None:
    with closing(each_in_workers(task, orders, workers)) as finished:
        for one in finished:
            state.finished(orders[one.index].case.name, DIED if one.died else one.result)


def _no_space(folder: Path) -> SamunetError:
    return SamunetError(
        f"No space is left for preprocessed cases in {folder}. Free some disk space, or set another "
        "workspace; finished cases are kept when the command runs again."
    )
