"""Predictions as files in the image's own grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from samunet.data.geometry import Geometry
from samunet.data.labels import LabelSet
from samunet.data.readers import write_segmentation
from samunet.inference.postprocessing import Postprocessing
from samunet.inference.probabilities import (
    ProbabilitiesRecord,
    Storage,
    new_probabilities,
    probability_files,
    storage_of,
)
from samunet.planning.plan import Plan
from samunet.preprocessing.case import SpatialRecord
from samunet.preprocessing.restore import (
    LogitArray,
    Writable,
    restore_probabilities,
    restore_segmentation,
)

Fill = Callable[[Writable | None], np.ndarray]
"""Is given room for the probabilities, or None, and returns the segmentation (Z, Y, X)."""


def export_case(
    logits: LogitArray | np.ndarray,
    record: SpatialRecord,
    plan: Plan,
    path: Path,
    save_probabilities: Storage | bool = False,
    postprocessing: Postprocessing | None = None,
) -> np.ndarray:
    """Restore logits (K, Z, Y, X) to the image's grid and write the segmentation, probabilities before it.

    Args:
        path: of the segmentation file; probabilities lie beside it.
        save_probabilities: how to store them; True is fp16.
        postprocessing: rules that the segmentation goes through; the probabilities stay as they are.

    Returns:
        The segmentation (Z, Y, X) as written.

    Raises:
        SamunetError: the kind of file cannot hold it, or no space is left.
    """

    def fill(out: Writable | None) -> np.ndarray:
        if out is None:
            return restore_segmentation(logits, record, plan)
        return restore_probabilities(logits, record, plan, out)

    return write_case(
        path,
        plan.labels,
        record.geometry,
        save_probabilities,
        finished(fill, record.geometry, postprocessing),
    )


def finished(fill: Fill, geometry: Geometry, postprocessing: Postprocessing | None) -> Fill:
    """`fill` with the rules applied to the segmentation that it returns."""
    if postprocessing is None:
        return fill
    return lambda out: postprocessing.apply(fill(out), geometry, "the prediction")


def write_case(
    path: Path,
    labels: LabelSet,
    geometry: Geometry,
    save_probabilities: Storage | bool,
    fill: Fill,
) -> np.ndarray:
    """Write a segmentation, and before it its probabilities where they are to be kept.

    What an earlier prediction left is removed, so that a segmentation never lies beside another's
    probabilities.

    Args:
        path: of the segmentation file.
        labels: of the dataset.
        geometry: of the file.
        save_probabilities: how to store them; True is fp16.
        fill: gives the segmentation.

    Returns:
        The segmentation.

    Raises:
        SamunetError: the kind of file cannot hold it, or no space is left.
    """
    path, storage = Path(path), storage_of(save_probabilities)
    if storage is None:
        segmentation = fill(None)
        for earlier in probability_files(path):
            earlier.unlink(missing_ok=True)
    else:
        record = ProbabilitiesRecord(
            class_names=labels.class_names,
            has_regions=labels.has_regions,
            geometry=geometry,
            storage=storage,
        )
        with new_probabilities(path, record) as out:
            segmentation = fill(out)
            path.unlink(missing_ok=True)
    write_segmentation(segmentation, geometry, path)
    return segmentation
