"""Which cases an interrupted cutting into slices has finished: a line a case beside their files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from samunet.records import content_hash
from samunet.whole_files import atomic_path

PROGRESS = "cut.jsonl"


def stamp(files: Sequence[Path], ignore: int | None) -> str:
    """Identifies what a case is cut from: paths, sizes and times of its files, and the ignored label."""
    known = [(file, file.stat()) for file in files]
    told = [[str(file), status.st_size, status.st_mtime_ns] for file, status in known]
    return content_hash([told, ignore])


def read_progress(folder: Path) -> dict[int, dict[str, Any]]:
    """The last line of each case by its number; empty where nothing was cut, or it was finished."""
    found: dict[int, dict[str, Any]] = {}
    with suppress(FileNotFoundError):
        for line in (folder / PROGRESS).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # the last one may be cut off
                entry = json.loads(line)
                found[int(entry["number"])] = {"stamp": entry["stamp"], "case": entry["case"]}
    return found


def begin_progress(folder: Path, kept: Mapping[int, Mapping[str, Any]]) -> None:
    """Write down what is kept, and nothing else: files of other cases are about to be replaced."""
    with atomic_path(folder / PROGRESS) as temporary:
        temporary.write_text("".join(_line(number, entry) for number, entry in kept.items()), "utf-8")


def add_progress(folder: Path, number: int, entry: Mapping[str, Any]) -> None:
    """Write down that a case is whole."""
    with (folder / PROGRESS).open("a", encoding="utf-8") as file:
        file.write(_line(number, entry))


def end_progress(folder: Path) -> None:
    """Forget it: the index tells from now on."""
    (folder / PROGRESS).unlink(missing_ok=True)


def _line(number: int, entry: Mapping[str, Any]) -> str:
    return json.dumps({"number": number, **entry}) + "\n"
