"""Predictions as files in the image's own grid.

Probabilities are a plain NumPy file of half floats, CASE.probabilities.npy (K, Z, Y, X), with a small JSON
beside it. Unlike nnU-Net's .npz it is written and read piece by piece through a memory map: neither side ever
holds all classes at full size.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samunet.data.geometry import Geometry
from samunet.data.readers import ENDINGS, write_segmentation
from samunet.errors import SamunetError
from samunet.planning.plan import Plan
from samunet.preprocessing.case import SpatialRecord
from samunet.preprocessing.restore import restore_probabilities, restore_segmentation
from samunet.records import atomic_path, read_record, write_json

if TYPE_CHECKING:
    from torch import Tensor

PROBABILITIES = ".probabilities.npy"
PROBABILITIES_RECORD = ".probabilities.json"


@dataclass(frozen=True, kw_only=True)
class ProbabilitiesRecord:
    """Content of CASE.probabilities.json.

    Attributes:
        class_names: per channel of the array; with background for softmax data.
        has_regions: channels are independent sigmoids, else they sum to one.
        geometry: of the image file.
    """

    class_names: tuple[str, ...]
    has_regions: bool
    geometry: Geometry


def export_case(
    logits: Tensor | np.ndarray,
    record: SpatialRecord,
    plan: Plan,
    path: Path,
    save_probabilities: bool = False,
) -> np.ndarray:
    """Restore logits (K, Z, Y, X) to the image's grid and write the segmentation, probabilities before it.

    Args:
        path: of the segmentation file; probabilities lie beside it.

    Returns:
        The segmentation (Z, Y, X) as written.

    Raises:
        SamunetError: the kind of file cannot hold it, or no space is left.
    """
    path = Path(path)
    if save_probabilities:
        segmentation = _write_probabilities(logits, record, plan, path)
    else:
        segmentation = restore_segmentation(logits, record, plan)
    write_segmentation(segmentation, record.geometry, path)
    return segmentation


def open_probabilities(segmentation: Path) -> tuple[np.ndarray, ProbabilitiesRecord]:
    """Memory map (K, Z, Y, X) and record of the probabilities beside a segmentation file.

    Raises:
        SamunetError: they were not saved.
    """
    array, record = probability_files(segmentation)
    if not array.is_file():
        raise SamunetError(f"There is no {array}. Predict again with --save_probabilities.")
    return np.load(array, mmap_mode="r", allow_pickle=False), read_record(ProbabilitiesRecord, record)


def probability_files(segmentation: Path) -> tuple[Path, Path]:
    """Names of the array and of its JSON beside a segmentation file CASE.ext."""
    name = segmentation.name
    endings = sorted(ENDINGS, key=len, reverse=True)
    ending = next((e for e in endings if name.lower().endswith(e)), segmentation.suffix)
    stem = name[: len(name) - len(ending)]
    return segmentation.with_name(stem + PROBABILITIES), segmentation.with_name(stem + PROBABILITIES_RECORD)


def _write_probabilities(
    logits: Tensor | np.ndarray, record: SpatialRecord, plan: Plan, path: Path
) -> np.ndarray:
    array_file, record_file = probability_files(path)
    shape = (plan.labels.num_outputs, *record.geometry.shape)
    with atomic_path(array_file) as temporary:
        mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        _reserve(temporary, array_file)
        segmentation = restore_probabilities(logits, record, plan, mapped)
        mapped.flush()
        del mapped  # Windows renames no file that is still mapped
    written = ProbabilitiesRecord(
        class_names=plan.labels.class_names, has_regions=plan.labels.has_regions, geometry=record.geometry
    )
    write_json(record_file, written)
    return segmentation


def _reserve(mapped: Path, wanted: Path) -> None:
    """Take the disk space of a mapped file now: a full disk under a memory map kills the process."""
    size = mapped.stat().st_size
    try:
        if hasattr(os, "posix_fallocate"):
            with mapped.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        elif shutil.disk_usage(mapped.parent).free < size:
            raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise SamunetError(
            f"No space is left for {wanted} ({size / 1e9:.2f} GB). Free some disk space, or predict without "
            "--save_probabilities."
        ) from error
