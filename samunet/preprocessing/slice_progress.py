"""Which cases an interrupted cutting into slices has finished: a line a case beside their files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from samunet.preprocessing.slice_index import SlicedCase
from samunet.records import from_data, to_data
from samunet.whole_files import atomic_path

PROGRESS = "cut.jsonl"


def read_progress(folder: Path) -> dict[int, SlicedCase]:
    """The last line of each case by its number; empty where nothing was cut, or it was finished."""
    found: dict[int, SlicedCase] = {}
    with suppress(FileNotFoundError):
        for line in (folder / PROGRESS).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # the last one may be cut off, and earlier versions wrote others
                case = from_data(SlicedCase, json.loads(line))
                found[case.number] = case
    return found


def begin_progress(folder: Path, kept: Iterable[SlicedCase]) -> None:
    """Write down what is kept, and nothing else: files of other cases are about to be replaced."""
    with atomic_path(folder / PROGRESS) as temporary:
        temporary.write_text("".join(map(_line, kept)), "utf-8")


def add_progress(folder: Path, case: SlicedCase) -> None:
    """Write down that a case is whole."""
    with (folder / PROGRESS).open("a", encoding="utf-8") as file:
        file.write(_line(case))


def end_progress(folder: Path) -> None:
    """Forget it: the index tells from now on."""
    (folder / PROGRESS).unlink(missing_ok=True)


def _line(case: SlicedCase) -> str:
    return json.dumps(to_data(case)) + "\n"
