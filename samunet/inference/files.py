"""Prediction of a folder: case after case, files read and written in threads, faults kept to their case."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samunet.data.cases import Case
from samunet.data.geometry import Geometry
from samunet.errors import NoSpaceError, SamunetError
from samunet.inference.probabilities import Storage
from samunet.records import read_json, write_json
from samunet.workspace import ARGUMENTS_FILE

if TYPE_CHECKING:  # which asks what is finished, and so reads this
    from samunet.inference.postprocessing import Postprocessing

logger = logging.getLogger(__name__)

ChangeImage = Callable[[str, np.ndarray, Geometry], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How a folder is predicted.

    Attributes:
        save_probabilities: how to store the class probabilities beside the segmentation; True is fp16.
        skip_existing: leave cases alone whose segmentation is there (--continue_prediction).
        num_parts / part: predict every num_parts-th case, starting with number `part`.
        postprocessing: rules applied to each segmentation before it is written; probabilities stay as they
            are.
        change: what becomes of an image before anything else, for tests of robustness: (case, image
            (C, Z, Y, X), geometry) -> image of the same shape. The caller keeps account of it.
    """

    save_probabilities: Storage | bool = False
    skip_existing: bool = False
    num_parts: int = 1
    part: int = 0
    postprocessing: Postprocessing | None = None
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
        rate = f", {_shown(self.seconds / len(self.done))} a case" if self.done else ""
        lines = [f"Predicted {_cases(len(self.done))} into {self.output}{rate}."]
        if self.skipped:
            lines.append(f"Skipped {_cases(len(self.skipped))}: already there.")
        if self.failed:
            lines.append(f"Not predicted: {_cases(len(self.failed))}.")
            lines += [f"  {name}: {reason}" for name, reason in self.failed.items()]
        return "\n".join(lines)


def _shown(seconds: float) -> str:
    """Two figures, or whole seconds."""
    return f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds:.0f} s"


def _cases(count: int) -> str:
    return f"{count} case{'s' * (count != 1)}"


@dataclass(frozen=True, kw_only=True)
class CaseStages:
    """The three stages of one case; `prepare` and `export` run in threads beside `predict`."""

    prepare: Callable[[Case], Any]
    predict: Callable[[Any], Any]
    export: Callable[[Case, Any, Any], Any]


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
        Names that are done, and the reason per case that failed. Anything but a user's mistake (no memory,
        a defect) ends the run.

    Raises:
        NoSpaceError: the disk is full.
    """
    done: list[str] = []
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(1, "samunet-read") as reader, ThreadPoolExecutor(1, "samunet-write") as writer:
        written: tuple[Case, Future[Any]] | None = None
        for number, (case, prepared) in enumerate(_read_ahead(cases, stages.prepare, reader), start=1):
            try:
                ready = prepared.result()
                start = time.perf_counter()
                result = stages.predict(ready)
                seconds = time.perf_counter() - start
            except NoSpaceError:  # nor is there any for the others
                raise
            except SamunetError as fault:
                failed[case.name] = str(fault)
                logger.error(
                    "%s (%d of %d) cannot be predicted; the reason is below", case.name, number, len(cases)
                )
                continue
            except Exception:
                logger.error("Case %s ended the run; the cause is below", case.name)
                raise
            _settle(written, done, failed)
            written = (case, writer.submit(stages.export, case, result, ready))
            logger.info("%s (%d of %d): %s", case.name, number, len(cases), _shown(seconds))
        _settle(written, done, failed)
    return done, failed


def _read_ahead(
    cases: Sequence[Case], prepare: Callable[[Case], Any], reader: ThreadPoolExecutor
) -> Iterator[tuple[Case, Future[Any]]]:
    """Each case with its preparation; the next one is being prepared while this one is used."""
    upcoming = reader.submit(prepare, cases[0]) if cases else None
    for index, case in enumerate(cases):
        current = upcoming
        assert current is not None
        current.exception()  # waits, so that only one case is prepared at a time
        upcoming = reader.submit(prepare, cases[index + 1]) if index + 1 < len(cases) else None
        yield case, current


def _settle(written: tuple[Case, Future[Any]] | None, done: list[str], failed: dict[str, str]) -> None:
    """Wait until a case is written and note what became of it."""
    if written is None:
        return
    case, future = written
    try:
        future.result()
        done.append(case.name)
    except NoSpaceError:
        raise
    except SamunetError as fault:
        failed[case.name] = str(fault)
        logger.error("%s cannot be written; the reason is below", case.name)
    except Exception:
        logger.error("Case %s ended the run; the cause is below", case.name)
        raise


def single_model_arguments(folder: Path) -> dict[str, Any]:
    """How a folder was predicted by one model: predict_args.json with the model's own keys among the others.

    Raises:
        SamunetError: there is no such file, or several models were averaged.
    """
    file = folder / ARGUMENTS_FILE
    return flat_arguments(read_json(file), str(file))


def flat_arguments(arguments: Mapping[str, Any], where: str = ARGUMENTS_FILE) -> dict[str, Any]:
    """The same of arguments that are not written yet."""
    models = arguments.get("models", [])
    if len(models) != 1:
        raise SamunetError(
            f"{where} is not of a prediction by one model; predict again with one, or validate again (--val)."
        )
    return {**{key: value for key, value in arguments.items() if key != "models"}, **models[0]}


def check_arguments(folder: Path, arguments: dict[str, Any], *, continuing: bool) -> None:
    """Write down how a folder was predicted; continuing with other arguments is refused.

    Where a model lies is no argument: it may have been moved, or mounted elsewhere.

    Raises:
        SamunetError: the predictions that are to be kept were made differently; names the keys.
    """
    file = folder / ARGUMENTS_FILE
    if continuing and file.exists():
        try:
            before = read_json(file)
        except SamunetError as fault:
            raise SamunetError(
                f"{fault} Leave out --continue_prediction to predict the folder anew."
            ) from fault
        then, now = dict(_leaves(before)), dict(_leaves(arguments))
        # A model that was moved is the same: what it was trained to is among the other keys.
        changed = [k for k in {**then, **now} if then.get(k) != now.get(k) and not k.endswith("].model")]
        if changed:
            told = "; ".join(f"{key} was {then.get(key)}, is {now.get(key)}" for key in changed)
            if all(".trained." in key for key in changed):
                told = f"the model has been trained again since: {told}"
            raise SamunetError(
                f"{folder} holds predictions made with other arguments ({told}). Give the same ones, "
                "another output folder, or leave out --continue_prediction."
            )
    write_json(file, arguments)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(path of the key, value) of everything in JSON data that is no object and no list of objects."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{key}[{number}]")
    else:
        yield key, value
