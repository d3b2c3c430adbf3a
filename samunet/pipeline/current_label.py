"""What a label file holds now, to tell which of two validations were scored before it was corrected."""

from __future__ import annotations

from samunet.data.dataset import RawDataset
from samunet.data.readers import read_label
from samunet.evaluation.case_scores import class_counts, joint_histogram, to_indices
from samunet.evaluation.scores import ReferenceContent


def current_label(raw: RawDataset, case: str) -> ReferenceContent:
    """As the evaluation sees it.

    Raises:
        SamunetError: the file cannot be read.
    """
    file = raw.case(case).label
    assert file is not None
    indices = to_indices(read_label(file)[0], raw.labels)
    counts = class_counts(joint_histogram(indices, indices), raw.labels)
    voxels = {name: float(count.num_reference) for name, count in counts.items()}
    return ReferenceContent(voxels=voxels, digest=indices.digest)
