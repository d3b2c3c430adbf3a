"""What the probabilities that samunet_run_all keeps for ensembles will take on the disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from samunet.data.dataset import Case, RawDataset
from samunet.data.readers import read_header
from samunet.data.splits import Split
from samunet.inference.probabilities import KINDS, Storage, probability_files
from samunet.pipeline.run_all.folds import DONE, Training
from samunet.planning.fingerprint import Fingerprint
from samunet.whole_files import check_room, shown_bytes
from samunet.workspace import Fold, Workspace, validation_folder

logger = logging.getLogger(__name__)

STORAGE: Storage = "fp16"
"""How they are kept: what `save_probabilities=True` of a training means."""
ADVICE = (
    "Free some space, set another --workspace, or give --no_ensembles: no probabilities are kept then, and "
    "no ensembles tried."
)


def check_probability_room(
    workspace: Workspace, raw: RawDataset, trainings: Sequence[Training], cases: Mapping[Fold, Split]
) -> None:
    """Say what the probabilities of the validation cases will take, and refuse it where the disk has not the
    room; nothing is written.

    Args:
        trainings: of the run; those that are done and cases whose probabilities are there are not counted.
        cases: of every fold.

    Raises:
        SamunetError: too little room; says what is needed and free.
    """
    wanted = list(_to_come(raw, trainings, cases))
    if not wanted:
        return
    voxels = _voxels(workspace, raw, dict.fromkeys(wanted))
    each = len(raw.labels.class_names) * np.dtype(KINDS[STORAGE]).itemsize
    needed = each * sum(voxels[name] for name in wanted)
    logger.info(
        "Class probabilities of %d validation predictions are kept for ensembles: about %s in %s, besides "
        "preprocessed cases and caches.",
        len(wanted),
        shown_bytes(needed),
        workspace.results,
    )
    check_room(
        workspace.results, needed, "The class probabilities of the validation cases need about", ADVICE
    )


def _to_come(raw: RawDataset, trainings: Sequence[Training], cases: Mapping[Fold, Split]) -> Iterator[str]:
    """Names of the cases whose probabilities will be written, once for every training."""
    for training in trainings:
        if training.fold == "all" or training.state == DONE:
            continue
        folder = validation_folder(training.model_folder, training.fold)
        for name in cases[training.fold].val:
            if not probability_files(folder / f"{name}{raw.label_ending}")[0].is_file():
                yield name


def _voxels(workspace: Workspace, raw: RawDataset, names: Mapping[str, None]) -> dict[str, int]:
    """Case -> voxels of its image, as measured; of cases that the fingerprint lacks, by their headers."""
    file: Path = workspace.fingerprint_file(raw.name)
    measured = Fingerprint.load(file).cases if file.is_file() else ()
    known = {case.name: case.shape for case in measured}
    return {name: math.prod(known.get(name) or _shape(raw.case(name))) for name in names}


def _shape(case: Case) -> tuple[int, ...]:
    return read_header(case.images[0]).geometry.shape
