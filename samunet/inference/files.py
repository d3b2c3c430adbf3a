"""Prediction of a folder: case after case, files read and written in threads, faults kept to their case."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samunet.data.cases import Case
from samunet.errors import SamunetError
from samunet.records import read_json, write_json

if TYPE_CHECKING:
    import numpy as np

    from samunet.data.geometry import Geometry
    from samunet.preprocessing.case import PreprocessedCase

logger = logging.getLogger(__name__)

ChangeImage = Callable[[str, "np.ndarray", "Geometry"], "np.ndarray"]
ARGUMENTS_FILE = "predict_args.json"


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How a folder is predicted.

    Attributes:
        save_probabilities: write the class probabilities beside the segmentation.
        skip_existing: leave cases alone whose segmentation is there (--continue_prediction).
        num_parts / part: predict every num_parts-th case, starting with number `part`.
        change: what becomes of an image before anything else, for tests of robustness: (case, image
            (C, Z, Y, X), geometry) -> image of the same shape. The caller keeps account of it.
    """

    save_probabilities: bool = False
    skip_existing: bool = False
    num_parts: int = 1
    part: int = 0
    change: ChangeImage | None = None


@dataclass(frozen=True, kw_only=True)
class FilesOutcome:
    """What became of each case; `failed` maps the case to the reason."""

    output: Path
    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def text(self) -> str:
        """The outcome in plain words, the faults one a line."""
        rate = f", {self.seconds / len(self.done):.2g} s a case" if self.done else ""
        lines = [f"Predicted {_cases(len(self.done))} into {self.output}{rate}."]
        if self.skipped:
            lines.append(f"Skipped {_cases(len(self.skipped))} that were there already.")
        if self.failed:
            lines.append(f"Not predicted: {_cases(len(self.failed))}.")
            lines += [f"  {name}: {reason}" for name, reason in self.failed.items()]
        return "\n".join(lines)


def _cases(count: int) -> str:
    return f"{count} case{'s' * (count != 1)}"


@dataclass(frozen=True, kw_only=True)
class CaseStages:
    """The three stages of one case; `prepare` and `export` run in threads beside `predict`."""

    prepare: Callable[[Case], PreprocessedCase]
    predict: Callable[[PreprocessedCase], Any]
    export: Callable[[Case, Any, PreprocessedCase], None]


def select_part(cases: Sequence[Case], options: FileOptions) -> tuple[Case, ...]:
    """The cases of this part.

    Raises:
        SamunetError: there is no such part.
    """
    if not 0 <= options.part < options.num_parts:
        raise SamunetError(f"Part {options.part} of {options.num_parts} does not exist: parts count from 0.")
    return tuple(cases[options.part :: options.num_parts])


def run_cases(cases: Sequence[Case], stages: CaseStages) -> tuple[list[str], dict[str, str]]:
    """Predict cases in order, at most three in memory; the fault of one leaves the others alone.

    Returns:
        Names that are done, and the reason per case that failed. Anything but a user's mistake (no space,
        no memory) ends the run.
    """
    done: list[str] = []
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(1, "samunet-read") as reader, ThreadPoolExecutor(1, "samunet-write") as writer:
        written: tuple[Case, Future[None]] | None = None
        for number, (case, prepared) in enumerate(_read_ahead(cases, stages.prepare, reader), start=1):
            try:
                ready = prepared.result()
                start = time.perf_counter()
                result = stages.predict(ready)
                seconds = time.perf_counter() - start
            except SamunetError as fault:
                failed[case.name] = str(fault)
                logger.error(
                    "%s (%d of %d) cannot be predicted; the reason is below", case.name, number, len(cases)
                )
                continue
            _settle(written, done, failed)
            written = (case, writer.submit(stages.export, case, result, ready))
            logger.info("%s (%d of %d): %.2g s", case.name, number, len(cases), seconds)
        _settle(written, done, failed)
    return done, failed


def _read_ahead(
    cases: Sequence[Case], prepare: Callable[[Case], PreprocessedCase], reader: ThreadPoolExecutor
) -> Iterator[tuple[Case, Future[PreprocessedCase]]]:
    """Each case with its preparation; the next one is being prepared while this one is used."""
    upcoming = reader.submit(prepare, cases[0]) if cases else None
    for index, case in enumerate(cases):
        current = upcoming
        assert current is not None
        current.exception()  # waits, so that only one case is prepared at a time
        upcoming = reader.submit(prepare, cases[index + 1]) if index + 1 < len(cases) else None
        yield case, current


def _settle(written: tuple[Case, Future[None]] | None, done: list[str], failed: dict[str, str]) -> None:
    """Wait until a case is written and note what became of it."""
    if written is None:
        return
    case, future = written
    try:
        future.result()
        done.append(case.name)
    except SamunetError as fault:
        failed[case.name] = str(fault)
        logger.error("%s cannot be written; the reason is below", case.name)


def check_arguments(folder: Path, arguments: dict[str, Any], *, continuing: bool) -> None:
    """Write down how a folder was predicted; continuing with other arguments is refused.

    Raises:
        SamunetError: the predictions that are to be kept were made differently; names the keys.
    """
    file = folder / ARGUMENTS_FILE
    if continuing and file.exists():
        before = read_json(file)
        changed = [key for key, value in arguments.items() if before.get(key) != value]
        if changed:
            told = "; ".join(f"{key} was {before.get(key)}, is {arguments[key]}" for key in changed)
            raise SamunetError(
                f"{folder} holds predictions made with other arguments ({told}). Give the same ones, "
                "another output folder, or leave out --continue_prediction."
            )
    write_json(file, arguments)
