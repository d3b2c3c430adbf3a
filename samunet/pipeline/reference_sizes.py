"""Voxels of a reference by class: how it is noticed that a label was corrected between two validations."""

from __future__ import annotations

from collections.abc import Mapping

from samunet.data.dataset import RawDataset
from samunet.data.readers import read_label
from samunet.evaluation.case_scores import class_counts, joint_histogram, to_indices
from samunet.evaluation.scores import Scores

Sizes = dict[str, float]
"""Class or region -> voxels of the reference, ignored ones not counted."""


def scored_sizes(scores: Mapping[str, Scores]) -> Sizes:
    """Of the reference that a case (class -> metric -> value) was scored against."""
    return {name: metrics["n_ref"] for name, metrics in scores.items()}


def label_sizes(raw: RawDataset, case: str) -> Sizes:
    """As the evaluation counts them, in the label file as it is.

    Raises:
        SamunetError: the file cannot be read.
    """
    file = raw.case(case).label
    assert file is not None
    indices = to_indices(read_label(file)[0], raw.labels)
    counts = class_counts(joint_histogram(indices, indices), raw.labels)
    return {name: float(count.num_reference) for name, count in counts.items()}
