"""Preprocessed cases on disk: compressed arrays that are read by patch or by slice.

A case is NAME.image.b2nd (float32), NAME.label.b2nd (int16), NAME.locations.npy (int32) and NAME.json. The
JSON file gets its name last: without it the case does not exist. A case is replaced when the new one is ready
on the disk, by one process at a time.
"""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from samunet.data.open_files import too_many_open
from samunet.errors import SamunetError
from samunet.file_locks import locked
from samunet.preprocessing.case import PreprocessedCase, SpatialRecord
from samunet.preprocessing.locations import Locations
from samunet.records import RecordError, from_data, read_json, write_json
from samunet.whole_files import atomic_path, partial_folder, replace_path

STORE_FORMAT = 1
BLOCK = (32, 32, 32)
"""Smallest piece (z, y, x) of a 3D case that is decompressed: 128 KiB, within a core's cache."""
CHUNK = (64, 128, 128)
SMALL_BYTES = 512 * 2**10
"""A 3D case up to this size is one block."""
SLICE_BLOCK_BYTES = 128 * 2**10
SLICE_CHUNK_BYTES = 2 * 2**20
"""Chunks of a case that is read slice by slice hold several slices: tiny chunks cost much time."""
MEMBERS = (".image.b2nd", ".label.b2nd", ".locations.npy")
REPLACING_SECONDS = 2.0
"""Longest that a reader waits for the rest of a case; files change their names in milliseconds."""
RUN_AGAIN = "Run `samunet_preprocess` again; finished cases are kept."


@dataclass(frozen=True, kw_only=True)
class CaseEntry:
    """Content of NAME.json.

    Attributes:
        key: identifies what the case was made from (data configuration; raw files by name, size and time).
        content: identifies the same by the bytes of the raw files; empty in cases of earlier versions.
        copied_from: the key of a later copy of the same raw files, whose times differ; caches keep to `key`.
        classes: names of the sampled classes; class i owns rows [ends[i - 1], ends[i]) of the locations.
        annotated: rows after the classes' that are annotated voxels; None without an ignore label.
        sizes: ending of each member -> its bytes; empty in cases of earlier versions.
    """

    format: int = STORE_FORMAT
    key: str
    content: str = ""
    copied_from: str = ""
    record: SpatialRecord
    has_label: bool
    classes: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()
    annotated: int | None = None
    sizes: dict[str, int] = field(default_factory=dict, hash=False)

    @property
    def made_from(self) -> str:
        """The same for a case that was made a second time from the same bytes."""
        return self.content or self.key

    def may_be_of(self, data_hash: str) -> bool:
        """Whether that data configuration made the case; cases of earlier versions do not tell."""
        return not self.content or self.content.startswith(content_start(data_hash))


def content_start(data_hash: str) -> str:
    """How the `content` of a case begins that a data configuration made; the hash of its files follows."""
    return f"{data_hash}-"


@dataclass(frozen=True)
class StoredCase:
    """A case on disk; arrays are opened when first used and decompressed only where they are sliced.

    Attributes:
        name: of the case.
        entry: content of its JSON file.
    """

    name: str
    entry: CaseEntry
    folder: Path = field(repr=False)

    @property
    def record(self) -> SpatialRecord:
        return self.entry.record

    @cached_property
    def image(self) -> Any:
        """(C, Z, Y, X) float32; slicing gives a numpy array."""
        return self._open(".image.b2nd")

    @cached_property
    def label(self) -> Any:
        """(Z, Y, X) int16; slicing gives a numpy array. None for a case without a label."""
        return self._open(".label.b2nd") if self.entry.has_label else None

    @cached_property
    def locations(self) -> dict[str, np.ndarray]:
        """Class or region name -> int32 (n, 3) voxels z, y, x; empty arrays for absent classes."""
        starts = (0, *self.entry.ends[:-1])
        return {
            name: self._rows[start:end]
            for name, start, end in zip(self.entry.classes, starts, self.entry.ends)
        }

    @cached_property
    def annotated(self) -> np.ndarray | None:
        """int32 (n, 3) voxels that do not carry the ignore label; None for data without one."""
        if self.entry.annotated is None:
            return None
        return self._rows[len(self._rows) - self.entry.annotated :]

    @cached_property
    def _rows(self) -> np.ndarray:
        # With an ignore label it is a row for every hundredth voxel, of which a sample reads one.
        return load_array(self.folder / f"{self.name}.locations.npy", RUN_AGAIN, mapped=True)

    def _open(self, suffix: str) -> Any:
        return open_packed(self.folder / f"{self.name}{suffix}", RUN_AGAIN)


class CaseStore:
    """Folder of the preprocessed cases of one data configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def names(self) -> tuple[str, ...]:
        """Names of all finished cases, sorted."""
        return tuple(sorted(path.name[: -len(".json")] for path in self.folder.glob("[!.]*.json")))

    def finished(self, name: str) -> CaseEntry | None:
        """The entry of a stored case; None when the case is absent, incomplete, cut off or unreadable."""
        try:
            entry = self._found(name)
        except SamunetError:  # written by another version: the caller writes it anew
            return None
        if entry is None:
            return None
        members = [suffix for suffix in MEMBERS if entry.has_label or suffix != ".label.b2nd"]
        return entry if all(self._is_whole(name, suffix, entry) for suffix in members) else None

    def _found(self, name: str) -> CaseEntry | None:
        """The entry if there is such a case; one that another process is replacing is waited for."""
        until = time.monotonic() + REPLACING_SECONDS
        while True:
            try:
                return self._entry(name)
            except SamunetError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
            if not self._path(name, MEMBERS[0]).is_file() or time.monotonic() > until:
                return None
            time.sleep(0.01)

    def _is_whole(self, name: str, suffix: str, entry: CaseEntry) -> bool:
        file = self._path(name, suffix)
        if not file.is_file():
            return False
        return suffix not in entry.sizes or file.stat().st_size == entry.sizes[suffix]

    def note_copy(self, name: str, key: str, content: str) -> None:
        """Keep the key that a copy of the case's raw files has, if the case still is of that content."""
        with self._lock():
            entry = self.finished(name)
            if entry is not None and entry.content == content:
                write_json(self._path(name, ".json"), replace(entry, copied_from=key))

    def open(self, name: str) -> StoredCase:
        """The stored case of that name; its arrays are opened when they are first used.

        Raises:
            SamunetError: it is not there, is damaged, or was written in another format.
        """
        entry = self._found(name)
        if entry is None:
            raise SamunetError(f"There is no preprocessed case {name} in {self.folder}. {RUN_AGAIN}")
        return StoredCase(name, entry, self.folder)

    def open_whole(self, name: str) -> StoredCase:
        """The same with all arrays open: they stay what they are when another process replaces the case.

        Raises:
            SamunetError: as `open`.
        """
        while True:
            case = self.open(name)
            try:
                _ = case.image, case.label, case.locations
            except SamunetError:
                if self.open(name).entry == case.entry:
                    raise
                continue
            # Its JSON file goes before the first and comes after the last of the arrays is another.
            if self.open(name).entry == case.entry:
                return case

    def write(
        self,
        name: str,
        case: PreprocessedCase,
        locations: Locations,
        key: str = "",
        content: str = "",
        by_slice: bool = False,
    ) -> None:
        """Store a case; it appears complete or not at all, and replaces another only then.

        A case that is there already, of the same `content`, stays: another process was first.

        Args:
            key / content: identify what the case was made from, see `CaseEntry`.
            by_slice: lay the arrays out for reading single slices instead of 3D patches.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with partial_folder(self.folder) as prepared:
            fresh = CaseStore(prepared)
            write_packed(fresh._path(name, ".image.b2nd"), pack(case.image, by_slice))
            if case.label is not None:
                write_packed(fresh._path(name, ".label.b2nd"), pack(case.label, by_slice))
            annotated = [] if locations.annotated is None else [locations.annotated]
            rows = [*locations.classes.values(), *annotated]
            stacked = np.concatenate(rows) if rows else np.zeros((0, 3), np.int32)
            with fresh._path(name, ".locations.npy").open("wb") as file:
                np.save(file, stacked.astype(np.int32, copy=False))
            counts = [len(found) for found in locations.classes.values()]
            entry = CaseEntry(
                key=key,
                content=content,
                record=case.record,
                has_label=case.label is not None,
                classes=tuple(locations.classes),
                ends=tuple(int(n) for n in np.cumsum(counts)),
                annotated=None if locations.annotated is None else len(locations.annotated),
                sizes={s: fresh._path(name, s).stat().st_size for s in fresh._members(name)},
            )
            write_json(fresh._path(name, ".json"), entry)
            self._take(name, fresh, entry)

    def _take(self, name: str, fresh: CaseStore, entry: CaseEntry) -> None:
        """Give a case that is ready on the same disk its place."""
        with self._lock():
            there = self.finished(name)
            if there is not None and entry.content and there.content == entry.content:
                return
            self._unlink(name, (".json", *({*MEMBERS} - {*fresh._members(name)})))
            for suffix in (*fresh._members(name), ".json"):
                replace_path(fresh._path(name, suffix), self._path(name, suffix))

    def _members(self, name: str) -> list[str]:
        """Endings of the arrays that are there."""
        return [suffix for suffix in MEMBERS if self._path(name, suffix).is_file()]

    def _lock(self) -> AbstractContextManager[None]:
        """Changes of what is in the folder come one after the other; the lock lies beside it, for in it lie
        cases only."""
        return locked(self.folder.with_name(f".{self.folder.name}.lock"))

    def remove(self, name: str) -> None:
        """Delete a case, the JSON file first, so that no half of it counts as a case."""
        with self._lock():
            self._unlink(name, (".json", *MEMBERS))

    def _unlink(self, name: str, suffixes: tuple[str, ...]) -> None:
        for suffix in suffixes:
            self._path(name, suffix).unlink(missing_ok=True)

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name}{suffix}"

    def _entry(self, name: str) -> CaseEntry:
        path = self._path(name, ".json")
        try:
            entry = from_data(CaseEntry, read_json(path))
        except RecordError as error:
            raise SamunetError(f"{path} was not written by this samunet ({error}) {RUN_AGAIN}") from error
        if entry.format != STORE_FORMAT:
            raise SamunetError(
                f"{path} has format {entry.format}, this samunet reads {STORE_FORMAT}. {RUN_AGAIN}"
            )
        return entry


def pack(array: np.ndarray, by_slice: bool) -> bytes:
    """The compressed form of an array (*leading, Z, Y, X), as `write_packed` writes it."""
    import blosc2

    chunks, blocks = layout(array.shape, array.itemsize, by_slice)
    settings = blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=5, filters=[blosc2.Filter.SHUFFLE], nthreads=1)
    array = np.ascontiguousarray(array)
    packed = blosc2.asarray(array, chunks=chunks, blocks=blocks, cparams=settings, contiguous=True)
    return packed.to_cframe()


def write_packed(path: Path, packed: bytes) -> None:
    """Write a compressed array; it appears complete or not at all."""
    # Through Python's own file, because blosc2 does not report a full disk reliably.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(packed)


def load_array(path: Path, again: str, *, mapped: bool = False) -> np.ndarray:
    """A .npy file, in memory or mapped.

    Args:
        again: what to do when the file cannot be read.

    Raises:
        SamunetError: it is missing or damaged, or too many files are open.
    """
    try:
        return np.asanyarray(np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error, again) from error


def open_packed(path: Path, again: str) -> Any:
    """A stored array; slicing decompresses what is sliced and gives a numpy array.

    Args:
        again: what to do when the file cannot be read.

    Raises:
        SamunetError: it is missing or damaged, or too many files are open.
    """
    import blosc2

    # blosc2 cannot map files into memory on Windows.
    mapping = {} if sys.platform == "win32" else {"mmap_mode": "r"}
    try:
        return blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1), **mapping)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(path, error, again) from error


def _unreadable(path: Path, error: Exception, again: str) -> SamunetError:
    told = too_many_open(path, error)
    return told or SamunetError(f"{path} is missing or damaged ({error}). {again}")


def layout(shape: tuple[int, ...], itemsize: int, by_slice: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk and block shape of an array (*leading, Z, Y, X).

    Neither spans channels; with `by_slice` a block, which is what reading decompresses, is within a slice.
    """
    depth, height, width = shape[-3:]
    chunk: tuple[int, ...]
    block: tuple[int, ...]
    if by_slice:
        columns = min(width, SLICE_BLOCK_BYTES // itemsize)
        rows = min(height, max(1, SLICE_BLOCK_BYTES // (itemsize * columns)))
        block = (1, rows, columns)
        slices = max(1, SLICE_CHUNK_BYTES // (itemsize * height * width))
        chunk = (min(depth, slices), height, width) if slices > 1 else (1, min(height, 8 * rows), columns)
    elif itemsize * depth * height * width <= SMALL_BYTES:
        chunk = block = (depth, height, width)
    else:
        chunk = tuple(_even_part(n, c) for n, c in zip((depth, height, width), CHUNK))
        block = tuple(_even_part(n, b) for n, b in zip(chunk, BLOCK))
    leading = (1,) * (len(shape) - 3)
    return (*leading, *chunk), (*leading, *block)


def _even_part(length: int, largest: int) -> int:
    """Size of equal parts of at most `largest`: an uneven rest would be padded and compressed in full."""
    return ceil(length / ceil(length / largest))
