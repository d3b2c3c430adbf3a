"""Ensembles from files: saved probabilities of several predictions of a case, averaged slab by slab."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from samunet.data.geometry import grid_differences, in_all_channels
from samunet.data.labels import LabelSet
from samunet.data.names import files_with_ending
from samunet.data.readers import segmentation_ending
from samunet.errors import NoSpaceError, SamunetError
from samunet.inference.export import write_case
from samunet.inference.finished import unfinished_cases
from samunet.inference.output_folder import check_output, refuse_foreign_files
from samunet.inference.probabilities import (
    Probabilities,
    ProbabilitiesRecord,
    Storage,
    open_probabilities,
    probability_ending,
    slabs,
)
from samunet.preprocessing.restore import SLAB_BYTES, Writable, decide_labels, empty_segmentation
from samunet.records import read_json, write_json
from samunet.whole_files import remove_partials
from samunet.workspace import ARGUMENTS_FILE, ENSEMBLE_ARGUMENTS_FILE

logger = logging.getLogger(__name__)

Opened = tuple[Probabilities, ProbabilitiesRecord]


def average_probabilities(
    segmentations: Sequence[Path],
    labels: LabelSet,
    target: Path,
    *,
    save_probabilities: Storage | bool = False,
) -> np.ndarray:
    """Average the probabilities beside several segmentations of one case and write what they decide.

    Args:
        segmentations: files CASE.ext with CASE.probabilities.npy beside them, of any storage.
        labels: of the dataset; softmax data take the class with the largest mean (of equal ones the one with
            the smallest value), regions are painted where their mean is above one half.
        target: segmentation file to write, with the geometry of the probabilities.
        save_probabilities: how to store the mean beside it; True is fp16.

    Returns:
        The segmentation (Z, Y, X).

    Raises:
        SamunetError: probabilities are missing, belong to other classes, or lie on different grids; names
            both files.
    """
    import torch

    opened = [open_probabilities(Path(path)) for path in segmentations]
    _check_alike(opened, labels)
    first = opened[0][1]

    def fill(out: Writable | None) -> np.ndarray:
        segmentation = empty_segmentation(first.geometry.shape, labels)
        for where in slabs(first.shape, SLAB_BYTES):
            mean = _mean([probabilities for probabilities, _ in opened], where)
            segmentation[where] = decide_labels(torch.from_numpy(mean), labels, threshold=0.5)
            if out is not None:
                out[in_all_channels(where)] = mean
        return segmentation

    return write_case(target, labels, first.geometry, save_probabilities, fill)


def _mean(members: Sequence[Probabilities], where: tuple[slice, ...]) -> np.ndarray:
    mean = members[0][in_all_channels(where)]
    for member in members[1:]:
        mean += member[in_all_channels(where)]
    mean /= len(members)
    return mean


def _check_alike(opened: Sequence[Opened], labels: LabelSet) -> None:
    """All must have the dataset's classes and lie on one grid.

    Raises:
        SamunetError: names every file that differs, and the one it differs from.
    """
    if not opened:
        raise SamunetError("There is nothing to average: no prediction was given.")
    first_file, first = opened[0][0].file, opened[0][1]
    faults: list[str] = []
    for probabilities, record in opened:
        if (record.class_names, record.has_regions) != (labels.class_names, labels.has_regions):
            faults.append(
                f"{probabilities.file} holds {_classes(record.class_names, record.has_regions)}, the dataset "
                f"has {_classes(labels.class_names, labels.has_regions)}"
            )
        told = grid_differences(record.geometry, first.geometry)
        if told:
            faults.append(f"{probabilities.file} lies on another grid than {first_file}: {'; '.join(told)}")
    if faults:
        files = ", ".join(str(probabilities.file) for probabilities, _ in opened)
        raise SamunetError(
            f"{files} cannot be averaged: {'; '.join(faults)}. Predict the same images with models of one "
            "dataset."
        )


def _classes(names: Sequence[str], has_regions: bool) -> str:
    return f"the {'regions' if has_regions else 'classes'} {', '.join(names)}"


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions:
    """How folders are averaged.

    Attributes:
        labels: of the dataset.
        file_ending: of its images.
        save_probabilities: how to store the means; False keeps none.
        workers: cases averaged at once, in threads.
    """

    labels: LabelSet
    file_ending: str
    save_probabilities: Storage | bool = False
    workers: int = 2


@dataclass(frozen=True, kw_only=True)
class EnsembleOutcome:
    """What became of each case.

    Attributes:
        output: folder of the results.
        done: cases that were averaged.
        missing: case -> folders that lack its probabilities; these cases are left out.
        unfinished: case -> folders where its probabilities are not of the prediction that the folder says it
            is of; left out too.
        failed: case -> reason.
        seconds: wall-clock time.
    """

    output: Path
    done: tuple[str, ...]
    missing: dict[str, tuple[Path, ...]]
    unfinished: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unfinished or self.failed)

    def text(self) -> str:
        """The outcome in plain words, the faults one a line."""
        lines = [f"Averaged {len(self.done)} case{'s' * (len(self.done) != 1)} into {self.output}."]
        if self.missing:
            lines.append(f"Left out: {len(self.missing)} of which probabilities are missing.")
            lines += [f"  {name}: none in {', '.join(map(str, at))}" for name, at in self.missing.items()]
        if self.unfinished:
            lines.append(
                f"Left out: {len(self.unfinished)} with probabilities left by an earlier prediction, or "
                f"by one that did not finish ({ARGUMENTS_FILE} does not hold for them); predict these again."
            )
            lines += [f"  {name}: in {', '.join(map(str, at))}" for name, at in self.unfinished.items()]
        if self.failed:
            lines.append(f"Not averaged: {len(self.failed)}.")
            lines += [f"  {name}: {reason}" for name, reason in self.failed.items()]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A folder that was averaged.

    Attributes:
        folder: where it lay.
        made_by: content of its predict_args.json, or of its ensemble_args.json where it is a mean itself;
            None without either.
    """

    folder: str
    made_by: dict[str, Any] | None

    @classmethod
    def of(cls, folder: Path) -> Member:
        """What a folder of predictions says of itself.

        Raises:
            SamunetError: its record is not JSON.
        """
        files = [folder / name for name in (ARGUMENTS_FILE, ENSEMBLE_ARGUMENTS_FILE)]
        made_by = next((read_json(file) for file in files if file.is_file()), None)
        return cls(folder=str(folder.resolve()), made_by=made_by)


@dataclass(frozen=True, kw_only=True)
class EnsembleArguments:
    """Content of ensemble_args.json: what was averaged, and of which cases; it speaks of no others."""

    version: Literal[1] = 1
    members: tuple[Member, ...]
    cases: tuple[str, ...] = ()


def ensemble_folders(folders: Sequence[Path], output: Path, options: EnsembleOptions) -> EnsembleOutcome:
    """Average the cases of several prediction folders; a bad case is reported and the others finish.

    Args:
        folders: each with CASE.probabilities.npy of the cases; cases that one of them lacks, or has not
            finished, are left out.
        output: folder for CASE.ext and ensemble_args.json.
        options: labels and what to keep.

    Raises:
        SamunetError: fewer than two folders, one that does not exist or is the output, no case that all
            have, or an output that is of a raw dataset, or holds another command's results or label maps that
            it would replace.
        NoSpaceError: the disk is full.
    """
    folders, output = [Path(folder) for folder in folders], Path(output)
    _check_folders(folders, output)
    check_output(output, "samunet_ensemble")
    ending = segmentation_ending(options.file_ending)
    kept = probability_ending(ending)
    found = [{f.name.removesuffix(kept) for f in files_with_ending(folder, kept)} for folder in folders]
    old = [set(unfinished_cases(folder, kept)) for folder in folders]
    every = sorted(set().union(*found))
    missing = _places(every, [(folder, set(every) - names) for folder, names in zip(folders, found)])
    unfinished = _places([name for name in every if name not in missing], list(zip(folders, old)))
    common = [name for name in every if name not in missing and name not in unfinished]
    if not common:
        counts = ", ".join(f"{folder}: {len(n - o)}" for folder, n, o in zip(folders, found, old))
        raise SamunetError(
            f"No case has its probabilities in every folder ({counts}; those that {ARGUMENTS_FILE} does not "
            "hold for are not counted). Predict with --save_probabilities."
        )
    refuse_foreign_files(output, [output / f"{name}{ending}" for name in common], ENSEMBLE_ARGUMENTS_FILE)
    record, start = EnsembleArguments(members=tuple(map(Member.of, folders))), time.perf_counter()
    remove_partials(output)
    write_json(output / ENSEMBLE_ARGUMENTS_FILE, record)  # an interruption leaves no word on replaced cases
    failed = _average_cases(common, folders, output, options)
    done = tuple(name for name in common if name not in failed)
    write_json(output / ENSEMBLE_ARGUMENTS_FILE, replace(record, cases=done))
    return EnsembleOutcome(
        output=output,
        done=done,
        missing=missing,
        unfinished=unfinished,
        failed={name: failed[name] for name in sorted(failed)},
        seconds=time.perf_counter() - start,
    )


def _places(names: Sequence[str], faulty: Sequence[tuple[Path, Set[str]]]) -> dict[str, tuple[Path, ...]]:
    """Case -> the folders in which it is faulty, for every case that is so in one."""
    found = {name: tuple(folder for folder, cases in faulty if name in cases) for name in names}
    return {name: at for name, at in found.items() if at}


def _average_cases(
    names: Sequence[str], folders: Sequence[Path], output: Path, options: EnsembleOptions
) -> dict[str, str]:
    """Average cases that all folders have, in threads; returns those that failed, with the reason."""
    ending = segmentation_ending(options.file_ending)
    failed: dict[str, str] = {}

    def average(name: str) -> None:
        sources = [folder / f"{name}{ending}" for folder in folders]
        try:
            average_probabilities(
                sources,
                options.labels,
                output / f"{name}{ending}",
                save_probabilities=options.save_probabilities,
            )
        except NoSpaceError:  # nor is there any for the others
            raise
        except SamunetError as fault:
            failed[name] = str(fault)

    with ThreadPoolExecutor(max(1, options.workers), "samunet-ensemble") as pool:
        list(pool.map(average, names))
    return failed


def _check_folders(folders: Sequence[Path], output: Path) -> None:
    if len(folders) < 2:
        raise SamunetError("An ensemble needs two folders or more (-i FOLDER1 FOLDER2).")
    absent = [str(folder) for folder in folders if not folder.is_dir()]
    if absent:
        raise SamunetError(f"There is no folder {', '.join(absent)}.")
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise SamunetError(f"A folder is given twice: {', '.join(map(str, folders))}.")
    if output.resolve() in resolved:
        raise SamunetError(f"{output} is one of the folders to average; the ensemble needs one of its own.")
