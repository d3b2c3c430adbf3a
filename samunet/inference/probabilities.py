"""Class probabilities on disk beside a segmentation, written and read slab by slab.

CASE.probabilities.npy is a plain NumPy file (K, Z, Y, X) of half floats or, compact, of bytes; a small JSON
lies beside it. Unlike nnU-Net's .npz neither side ever holds all classes at full size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np

from samunet.data.geometry import Geometry
from samunet.data.names import split_ending
from samunet.errors import NoSpaceError, SamunetError
from samunet.records import read_record, write_json
from samunet.whole_files import NO_SPACE, atomic_path, take_space

Storage = Literal["fp16", "uint8"]
STORAGES: tuple[Storage, ...] = get_args(Storage)
"""`fp16`: half floats, off by at most 1/4096. `uint8`: round(255 p), half the size, off by at most 1/510."""
KINDS: dict[Storage, type[np.generic]] = {"fp16": np.float16, "uint8": np.uint8}
LEVELS = 255

PROBABILITIES = ".probabilities.npy"
PROBABILITIES_RECORD = ".probabilities.json"


@dataclass(frozen=True, kw_only=True)
class ProbabilitiesRecord:
    """Content of CASE.probabilities.json.

    Attributes:
        class_names: per channel of the array; with background for softmax data.
        has_regions: channels are independent sigmoids, else they sum to one.
        geometry: of the image file.
        storage: how the array's numbers are stored.
    """

    class_names: tuple[str, ...]
    has_regions: bool
    geometry: Geometry
    storage: Storage = "fp16"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.class_names), *self.geometry.shape


class Probabilities:
    """Probabilities (K, Z, Y, X) in a file: an index gives float32 values, floats are put in by index.

    The file is mapped anew at each access, so that only the part in use counts as memory of the process.
    """

    def __init__(self, file: Path) -> None:
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
        self.file = file
        self.shape: tuple[int, ...] = mapped.shape
        self.stored = mapped.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: Any) -> np.ndarray:
        mapped = np.load(self.file, mmap_mode="r", allow_pickle=False)
        values = mapped[where].astype(np.float32)
        if self.stored == np.uint8:
            values /= LEVELS
        return values

    def __setitem__(self, where: Any, values: np.ndarray | float) -> None:
        if self.stored == np.uint8:
            values = np.rint(np.clip(np.asarray(values, np.float32), 0, 1) * LEVELS)
        mapped = np.load(self.file, mmap_mode="r+", allow_pickle=False)
        mapped[where] = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.float32, copy=False)


def storage_of(asked: Storage | bool) -> Storage | None:
    """What a user's or caller's word means: True is fp16, False keeps nothing."""
    if isinstance(asked, bool):
        return "fp16" if asked else None
    assert asked in STORAGES, asked
    return asked


@contextmanager
def new_probabilities(segmentation: Path, record: ProbabilitiesRecord) -> Iterator[Probabilities]:
    """Probabilities to be filled in; with their JSON they lie beside `segmentation` once the block succeeds.

    Raises:
        NoSpaceError: no space is left.
    """
    file, record_file = probability_files(segmentation)
    with atomic_path(file) as temporary:
        kind = KINDS[record.storage]
        np.lib.format.open_memmap(temporary, mode="w+", dtype=kind, shape=record.shape)
        with temporary.open("r+b") as opened:
            size = temporary.stat().st_size
            reserve(opened, size, file.parent, str(file), "predict without --save_probabilities")
        yield Probabilities(temporary)
    write_json(record_file, record)


def open_probabilities(segmentation: Path) -> tuple[Probabilities, ProbabilitiesRecord]:
    """Probabilities beside a segmentation file, and their record.

    Raises:
        SamunetError: they were not saved, are cut off, or do not fit their record.
    """
    file, record_file = probability_files(segmentation)
    if not file.is_file():
        raise SamunetError(f"There is no {file}. Predict again with --save_probabilities.")
    record = read_record(ProbabilitiesRecord, record_file)
    try:
        probabilities = Probabilities(file)
    except (ValueError, EOFError) as error:
        raise SamunetError(
            f"{file} cannot be read ({error}): it is cut off. Predict this case again."
        ) from error
    if probabilities.shape != record.shape or probabilities.stored != KINDS[record.storage]:
        raise SamunetError(
            f"{file} holds {probabilities.stored} {probabilities.shape}, but {record_file} says "
            f"{record.storage} {record.shape}. Predict this case again."
        )
    return probabilities, record


def probability_files(segmentation: Path) -> tuple[Path, Path]:
    """Names of the array and of its JSON beside a segmentation file CASE.ext."""
    stem, _ = split_ending(segmentation)
    return segmentation.with_name(stem + PROBABILITIES), segmentation.with_name(stem + PROBABILITIES_RECORD)


def probability_ending(file_ending: str) -> str:
    """What the name of an array has behind the case's, beside segmentations of that ending."""
    return probability_files(Path(f"x{file_ending}"))[0].name[1:]


def slabs(shape: Sequence[int], slab_bytes: int) -> Iterator[tuple[slice, ...]]:
    """Places (slices of z, y, x) that cover (K, Z, Y, X), each at most `slab_bytes` in float32, all classes.

    Cut along z, a single plane along its rows; one row or plane at least.
    """
    channels, *space = shape
    along = 0 if space[0] > 1 else 1
    row_bytes = 4 * channels * int(np.prod(space)) // max(1, space[along])
    step = max(1, slab_bytes // max(1, row_bytes))
    for first in range(0, space[along], step):
        rows = slice(first, min(first + step, space[along]))
        yield tuple(rows if axis == along else slice(None) for axis in range(3))


def reserve(file: IO[bytes], size: int, folder: Path, what: str, advice: str) -> None:
    """Take the disk space of a file to be mapped now: a full disk under a memory map kills the process.

    Raises:
        NoSpaceError: no space is left; `what` is for, and what to do about it.
    """
    try:
        take_space(file, size, folder)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise NoSpaceError(
            f"No space is left for {what} ({size / 1e9:.2f} GB). Free some disk space, or {advice}."
        ) from error
