"""What removing components or filling holes would do to the Dice of a case, for many rules at once.

The components of a part are numbered once and sorted by size into bins between the minimum sizes; the voxels
of each bin by (reference, prediction) then give the counts after every rule, exactly, without applying it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samunet.data.labels import LabelSet
from samunet.data.readers import read_label
from samunet.evaluation.case_scores import (
    Indices,
    Pair,
    class_counts,
    joint_histogram,
    pair_geometry,
    to_indices,
)
from samunet.inference.postprocessing import (
    Rule,
    apply_rules,
    fill_index,
    holes,
    masked_box,
    number_components,
    part_indices,
    voxel_mm3,
)


@dataclass(frozen=True, kw_only=True)
class RuleScores:
    """Dice of one case, NaN where a class is in neither map.

    Attributes:
        before: (K,) as it is.
        after: (R, K) under each rule alone.
        present: (K,) whether the reference holds the class.
    """

    before: np.ndarray
    after: np.ndarray
    present: np.ndarray


def score_rules(pair: Pair, labels: LabelSet, settled: Sequence[Rule], tried: Sequence[Rule]) -> RuleScores:
    """Score each rule of `tried`, alone, on a prediction to which the `settled` ones were applied.

    Args:
        pair: reference and predicted label file.
        labels: of the dataset.
        settled: applied first.
        tried: any rules; component rules of one target share the work.
    """
    reference, geometry = read_label(pair[0])
    prediction, predicted_geometry = read_label(pair[1])
    sought, found = to_indices(reference, labels), to_indices(prediction, labels)
    voxel = voxel_mm3(pair_geometry(pair, geometry, predicted_geometry))
    apply_rules(found.array, settled, labels, voxel)
    joint = joint_histogram(sought, found)
    changes: dict[Rule, np.ndarray] = {}
    for target in dict.fromkeys(rule.target for rule in tried):
        rules = [rule for rule in tried if rule.target == target]
        changes |= _changes(sought, found, labels, rules, voxel)
    counted = [_count(joint + changes[rule], labels) for rule in tried]
    before, present = _count(joint, labels)
    return RuleScores(
        before=before,
        after=np.array([dice for dice, _ in counted]).reshape(len(tried), len(before)),
        present=present,
    )


def _count(joint: np.ndarray, labels: LabelSet) -> tuple[np.ndarray, np.ndarray]:
    """Dice per class, and whether the reference holds it; ignored voxels count nowhere."""
    counts = class_counts(joint, labels).values()
    return np.array([c.dice for c in counts]), np.array([c.num_reference > 0 for c in counts])


def _changes(
    reference: Indices, prediction: Indices, labels: LabelSet, rules: Sequence[Rule], voxel: float
) -> dict[Rule, np.ndarray]:
    """Change of the joint histogram under each rule; all have one target."""
    target, size = rules[0].target, reference.other + 1
    box, mask = masked_box(prediction.array, part_indices(labels, target))
    sought, found = reference.array[box.slices], prediction.array[box.slices]
    changes = {rule: np.zeros((size, size), np.int64) for rule in rules}
    if not mask.any():
        return changes
    sized = [rule for rule in rules if rule.kind == "minimum_size"]
    components, sizes = number_components(mask)
    bins = _bins(sizes, [rule.minimum_mm3 or 0 for rule in sized], voxel)[components[mask]]
    voxels = _histogram(bins, sought[mask], found[mask], 2 * len(sized) + 2, size)
    small, large = voxels[0::2], voxels[1::2]  # of each bin: the largest component's voxels apart
    for rule in rules:
        if rule.kind == "fill_holes":
            assert target is not None
            gained = np.bincount(sought[holes(components, found, prediction.array.shape)], minlength=size)
            changes[rule][:, 0] -= gained
            changes[rule][:, fill_index(labels, target)] += gained
            continue
        if rule.kind == "largest_component":
            removed = small.sum(axis=0)
        else:
            lower = sized.index(rule) + 1
            removed = small[:lower].sum(axis=0) + large[:lower].sum(axis=0)
        changes[rule] -= removed
        changes[rule][:, 0] += removed.sum(axis=1)
    return changes


def _bins(sizes: np.ndarray, minimums_mm3: Sequence[float], voxel: float) -> np.ndarray:
    """Per component twice the number of minimum sizes (ascending) that it reaches, 1 more if largest."""
    reached = np.searchsorted(np.asarray(minimums_mm3, float), sizes * voxel, side="right")
    return np.asarray(2 * reached + (sizes == sizes[1:].max()))


def _histogram(
    bins: np.ndarray, reference: np.ndarray, prediction: np.ndarray, number: int, size: int
) -> np.ndarray:
    """Voxels by (bin, reference index, predicted index)."""
    joint = (bins * size + reference) * size + prediction
    return np.bincount(joint, minlength=number * size * size).reshape(number, size, size)
