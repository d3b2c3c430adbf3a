"""What a folder of slices for pretraining holds, case by case, and of which files each was cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samunet.records import content_hash, read_record

if TYPE_CHECKING:
    from samunet.preprocessing.slices import Cutting

VAL_EVERY = 10
"""One patient's cases in so many, in the order of the index, are for validation only; none of fewer cases."""
UNANNOTATED = 65535
"""Stored for voxels with the dataset's ignore label, whatever its number is there: the last uint16."""
INDEX = "index.json"


@dataclass(frozen=True, kw_only=True)
class SlicedCase:
    """One case on disk: NUMBER_image.npy uint8 (slices, C, H, W), NUMBER_label.npy uint16 (slices, H, W).

    C is 3, or 1 where all three are equal; three equal ones are read alike.

    Attributes:
        name: of the case or the file.
        number: of its files.
        slices: how many.
        labelled: numbers of the slices with foreground; empty where there is no label.
        stamp: of the files that it was cut from; empty in a folder of an earlier version, which is cut anew.
    """

    name: str
    number: int
    slices: int
    labelled: tuple[int, ...]
    stamp: str = ""


@dataclass(frozen=True, kw_only=True)
class SliceIndex:
    """Content of index.json, written last: where it is, the folder is complete.

    Attributes:
        source: dataset's name or folder; `excluded` counts cases left out.
        licence: as the dataset declares it, or `not declared`.
    """

    source: str
    licence: str
    excluded: int
    cases: tuple[SlicedCase, ...] = field(default=())

    @property
    def slices(self) -> int:
        return sum(case.slices for case in self.cases)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(case.name for case in self.cases)

    def of(self, cutting: Cutting) -> bool:
        """Whether these are slices of a cutting's cases, whatever their files hold now."""
        wanted = (cutting.source, len(cutting.excluded), cutting.names)
        return (self.source, self.excluded, self.names) == wanted

    def changed(self, cutting: Cutting) -> tuple[str, ...]:
        """Names of the cases whose files are not those that the slices of this cutting were cut from."""
        return tuple(
            case.name for number, case in enumerate(self.cases) if case.stamp != cutting.stamp(number)
        )


def found_slices(folder: Path) -> SliceIndex | None:
    """The index of a complete folder of slices, or None."""
    return read_record(SliceIndex, folder / INDEX) if (folder / INDEX).is_file() else None


def stamp(files: Sequence[Path], ignore: int | None) -> str:
    """Identifies what a case is cut from: paths, sizes and times of its files, and the ignored label."""
    known = [(file, file.stat()) for file in files]
    told = [[str(file), status.st_size, status.st_mtime_ns] for file, status in known]
    return content_hash([told, ignore])


@lru_cache(maxsize=64)
def mapped(path: Path) -> np.ndarray:
    """The array of a file, mapped into memory; files that are replaced need `mapped.cache_clear()` before."""
    return np.load(path, mmap_mode="r")
