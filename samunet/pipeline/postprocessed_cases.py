"""Out-of-fold cases as they would be had the learned rules followed their prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from samunet.data.readers import read_header, read_label
from samunet.data.workers import map_in_workers, worker_count
from samunet.evaluation.case_scores import Pair, class_counts, joint_histogram, to_indices
from samunet.inference.case_features import class_features
from samunet.inference.postprocessing import BYTES_PER_VOXEL, Postprocessing
from samunet.pipeline.out_of_fold import OutOfFoldCase


@dataclass(frozen=True, kw_only=True)
class RulesAfter:
    """Rules that follow every prediction, and the maps on which their effect is seen.

    Attributes:
        pairs: case -> reference and out-of-fold prediction (label files, without the rules).
        workers: processes.
    """

    postprocessing: Postprocessing
    pairs: Mapping[str, Pair]
    workers: int | None = 1

    def apply(self, cases: Sequence[OutOfFoldCase]) -> list[OutOfFoldCase]:
        """The cases with volume, components and Dice of the maps after the rules.

        What single passes of the networks say of themselves stays: it is measured before the rules in a
        prediction too.
        """
        pairs = [self.pairs[case.name] for case in cases]
        headers = [read_header(prediction, is_label=True) for _, prediction in pairs]
        voxels = max((int(np.prod(header.geometry.shape)) for header in headers), default=0)
        return map_in_workers(
            partial(_after, postprocessing=self.postprocessing),
            list(zip(cases, pairs)),
            worker_count(self.workers, BYTES_PER_VOXEL * voxels, len(pairs)),
            name=lambda item: item[0].name,
        )


def _after(item: tuple[OutOfFoldCase, Pair], postprocessing: Postprocessing) -> OutOfFoldCase:
    case, (reference, prediction) = item
    labels = postprocessing.labels
    label_map, geometry = read_label(prediction)
    label_map = postprocessing.apply(label_map, geometry, str(prediction))
    joint = joint_histogram(to_indices(read_label(reference)[0], labels), to_indices(label_map, labels))
    counts = class_counts(joint, labels)
    passes = {name: found.passes for name, found in case.features.classes.items()}
    classes = class_features(label_map, geometry, labels, passes)
    return replace(
        case,
        features=replace(case.features, classes=classes),
        dice={name: float(c.dice) for name, c in counts.items()},
        missed={name: c.num_reference > 0 == c.num_prediction for name, c in counts.items()},
    )
