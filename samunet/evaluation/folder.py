"""Compare predicted label files with reference label files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samunet.data.groups import Origins
from samunet.data.labels import LabelSet
from samunet.data.names import files_with_ending
from samunet.data.readers import read_header, segmentation_ending
from samunet.data.workers import map_in_workers, worker_count
from samunet.errors import SamunetError
from samunet.evaluation.case_scores import Pair, PairScores, score_pair, shape_fault
from samunet.evaluation.metrics import DEFAULT_TOLERANCE_MM
from samunet.evaluation.scores import CaseScores, Evaluation
from samunet.listing import listed
from samunet.progress import Progress

logger = logging.getLogger(__name__)

BYTES_PER_VOXEL = 40
"""Memory of one case in work: two label maps as read and as indices, masks, sorted copies."""


def evaluate_cases(
    pairs: Mapping[str, Pair],
    labels: LabelSet,
    *,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    origins: Origins | None = None,
    workers: int | None = 1,
    progress: Progress | None = None,
) -> Evaluation:
    """Score pairs of label files.

    Args:
        pairs: case -> (reference, prediction).
        labels: classes or regions to score, and the ignore label whose voxels do not count.
        tolerance_mm: of the surface Dice.
        origins: groups and patients of the cases.
        workers: processes; None takes as many as cores and memory allow.
        progress: called with (cases done, all cases).

    Raises:
        SamunetError: a file is missing or unreadable, or the two of a pair differ in shape (all are listed).
    """
    if not pairs:
        raise SamunetError("There is nothing to evaluate: no pair of a reference and a prediction was given.")
    if not tolerance_mm >= 0:
        raise SamunetError(f"The tolerance of the surface Dice must be 0 mm or more, not {tolerance_mm}.")
    names = sorted(pairs)
    files = [(Path(pairs[name][0]), Path(pairs[name][1])) for name in names]
    absent = [str(path) for pair in files for path in pair if not path.is_file()]
    if absent:
        raise SamunetError(f"{len(absent)} label file(s) to compare do not exist: {', '.join(absent)}.")
    voxels = _largest(files)
    scored = map_in_workers(
        partial(score_pair, labels=labels, tolerance_mm=tolerance_mm),
        files,
        worker_count(workers, BYTES_PER_VOXEL * voxels, len(files)),
        name=lambda pair: pair[0].name,
        progress=progress,
    )
    known = origins or Origins()
    cases = tuple(case_scores(*case, origins=known) for case in zip(names, files, scored))
    return Evaluation(labels, tolerance_mm, cases)


def case_scores(name: str, pair: Pair, found: PairScores, *, origins: Origins) -> CaseScores:
    """The scores of a pair as those of a case; remarks become warnings.

    Args:
        name: of the case.
        pair: (reference, prediction).
        found: by `score_pair`.
        origins: groups and patients of the cases.
    """
    for remark in found.remarks:
        logger.warning("%s", remark)
    return CaseScores(
        name=name,
        reference_file=str(pair[0]),
        prediction_file=str(pair[1]),
        group=origins.groups.get(name),
        patient=origins.patients.get(name),
        metrics=found.metrics,
        reference_digest=found.reference_digest,
    )


def _largest(pairs: Sequence[Pair]) -> int:
    """Voxels of the largest case, by the headers.

    Raises:
        SamunetError: every file that cannot be read and every pair that differs in shape.
    """
    faults, largest = [], 0
    for pair in pairs:
        try:
            reference, prediction = (read_header(path, is_label=True).geometry.shape for path in pair)
        except SamunetError as fault:
            faults.append(str(fault))
            continue
        differing = shape_fault(pair, (reference, prediction))
        if differing is not None:
            faults.append(differing)
        largest = max(largest, int(np.prod(reference)))
    if faults:
        raise SamunetError("\n".join(faults))
    return largest


def evaluate_folder(
    reference_folder: Path,
    prediction_folder: Path,
    labels: LabelSet,
    file_ending: str,
    *,
    chill: bool = False,
    **settings: Any,
) -> Evaluation:
    """Score the predictions of a folder.

    Args:
        reference_folder: label files.
        prediction_folder: predicted files of the same names.
        labels: see `evaluate_cases`.
        file_ending: of the dataset.
        chill: leave references without a prediction out instead of refusing.
        settings: keyword arguments of `evaluate_cases`.

    Raises:
        SamunetError: predictions are missing (all are listed), or what `evaluate_cases` refuses.
    """
    pairs, skipped = pair_files(Path(reference_folder), Path(prediction_folder), file_ending, chill)
    scores = evaluate_cases(pairs, labels, **settings)
    return Evaluation(scores.labels, scores.tolerance_mm, scores.cases, skipped)


def _seen(folder: Path) -> str:
    """What a folder holds."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return f"It holds {listed(names, 3)}." if names else "It is empty."


def pair_files(
    reference_folder: Path, prediction_folder: Path, file_ending: str, chill: bool = False
) -> tuple[dict[str, Pair], tuple[str, ...]]:
    """Case -> pair of files of equal names; and the names of the references that were left out.

    Raises:
        SamunetError: a folder is missing or holds no such file, or predictions are missing.
    """
    ending = segmentation_ending(file_ending)
    references = _files(reference_folder, ending)
    predictions = _files(prediction_folder, ending)
    if not references:
        raise SamunetError(
            f"{reference_folder} holds no label maps with the ending {ending}. {_seen(reference_folder)}"
        )
    missing = sorted(set(references) - set(predictions))
    surplus = sorted(set(predictions) - set(references))
    if missing and (not chill or len(missing) == len(references)):
        raise SamunetError(
            f"{prediction_folder} lacks {len(missing)} of {len(references)} predictions: "
            f"{', '.join(missing)}. "
            f"Predict them, or leave them out with --chill (some must be there; it holds {len(predictions)} "
            f"files with the ending {ending})."
        )
    for names, words in ((missing, "have no prediction"), (surplus, "have no reference")):
        if names:
            logger.warning("%d file(s) %s and are left out: %s.", len(names), words, listed(names, 10))
    both = sorted(set(references) & set(predictions))
    return {n.removesuffix(ending): (references[n], predictions[n]) for n in both}, tuple(missing)


def _files(folder: Path, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise SamunetError(f"There is no folder {folder}.")
    return {path.name: path for path in files_with_ending(folder, ending)}
