"""Predictions as files in the image's own grid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samunet.data.readers import write_segmentation
from samunet.inference.probabilities import (
    ProbabilitiesRecord,
    Storage,
    new_probabilities,
    open_probabilities,
    probability_files,
    storage_of,
)
from samunet.planning.plan import Plan
from samunet.preprocessing.case import SpatialRecord
from samunet.preprocessing.restore import restore_probabilities, restore_segmentation

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ProbabilitiesRecord", "export_case", "open_probabilities", "probability_files"]


def export_case(
    logits: Tensor | np.ndarray,
    record: SpatialRecord,
    plan: Plan,
    path: Path,
    save_probabilities: Storage | bool = False,
) -> np.ndarray:
    """Restore logits (K, Z, Y, X) to the image's grid and write the segmentation, probabilities before it.

    Args:
        path: of the segmentation file; probabilities lie beside it.
        save_probabilities: how to store them; True is fp16.

    Returns:
        The segmentation (Z, Y, X) as written.

    Raises:
        SamunetError: the kind of file cannot hold it, or no space is left.
    """
    path, storage = Path(path), storage_of(save_probabilities)
    if storage is None:
        segmentation = restore_segmentation(logits, record, plan)
    else:
        written = ProbabilitiesRecord(
            class_names=plan.labels.class_names,
            has_regions=plan.labels.has_regions,
            geometry=record.geometry,
            storage=storage,
        )
        with new_probabilities(path, written) as out:
            segmentation = restore_probabilities(logits, record, plan, out)
    write_segmentation(segmentation, record.geometry, path)
    return segmentation
