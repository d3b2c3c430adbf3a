"""Features of a predicted case: what can be known of it without a reference. One small JSON file a case.

They are written wherever a folder is predicted, so an out-of-fold case of the validation and a new case have
the same features from the same code. What follows from them (flags, predicted Dice) is in `envelope` and in
`samunet.pipeline.qc.predictions`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samunet.data.cases import Case, FilesStamp
from samunet.data.geometry import Geometry, bounding_box, in_all_channels, voxel_volume_mm3
from samunet.data.labels import LabelSet
from samunet.inference.finished import features_file, prediction_hash
from samunet.inference.pass_statistics import PassFigures
from samunet.planning.fingerprint import ChannelStatistics
from samunet.planning.plan import Plan
from samunet.preprocessing.case import SpatialRecord
from samunet.records import write_json

FEATURES_VERSION = 1
SAMPLED_VALUES = 1_000_000
"""Intensities looked at per channel; an even draw of larger images is as good for percentiles."""


@dataclass(frozen=True, kw_only=True)
class InputFacts:
    """The image as read; axes are the file's z, y, x.

    Attributes:
        shape_after_crop: voxels of the box around the nonzero voxels.
        direction: SimpleITK's row-major 3 x 3 direction cosines (x, y, z).
        channels: intensities in the box, stored units, as the fingerprint has them.
    """

    shape: tuple[int, int, int]
    shape_after_crop: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    direction: tuple[float, ...]
    is_2d: bool
    channels: tuple[ChannelStatistics, ...]


@dataclass(frozen=True, kw_only=True)
class ClassFeatures:
    """One class or region; None where it is not defined.

    Attributes:
        volume_ml: in the segmentation as written; of a 2D image the area times 1 mm.
        components: connected pieces, 26-neighbourhood (8 in a plane).
        largest_share: voxels of the largest piece over all; None without voxels.
        passes: what the single passes of the networks say.
    """

    volume_ml: float
    components: int
    largest_share: float | None
    passes: PassFigures


@dataclass(frozen=True, kw_only=True)
class CaseFeatures:
    """Content of qc_features/CASE.json.

    Attributes:
        arguments_hash: of the prediction's arguments (predict_args.json): cases of one prediction agree.
        classes: class or region name -> features.
        source: the images that were predicted; None in files of earlier versions.
    """

    version: int = FEATURES_VERSION
    case: str
    arguments_hash: str
    input: InputFacts
    classes: dict[str, ClassFeatures]
    source: FilesStamp | None = None


class FeatureWriter:
    """Measures the cases of a folder while it is predicted; reading and writing threads may call it.

    An image is measured when it is read and forgotten; its facts wait here until the case is written.
    """

    def __init__(self, plan: Plan, folder: Path, arguments: Mapping[str, Any]) -> None:
        self.plan = plan
        self.folder = folder
        self.arguments_hash = prediction_hash(arguments)
        self._inputs: dict[str, tuple[InputFacts, FilesStamp]] = {}

    def measure(self, case: Case, image: np.ndarray, record: SpatialRecord) -> None:
        """Measure the image (C, Z, Y, X) as read of a case that was preprocessed as `record` says."""
        self._inputs[case.name] = input_facts(image, record, self.plan), FilesStamp.of(case)

    def write(
        self, case: str, segmentation: np.ndarray, geometry: Geometry, passes: Mapping[str, PassFigures]
    ) -> None:
        """Write the features of a measured case whose segmentation (Z, Y, X) is there now."""
        facts, source = self._inputs.pop(case)
        features = CaseFeatures(
            case=case,
            arguments_hash=self.arguments_hash,
            input=facts,
            classes=class_features(segmentation, geometry, self.plan.labels, passes),
            source=source,
        )
        write_json(features_file(self.folder, case), features)


def input_facts(image: np.ndarray, record: SpatialRecord, plan: Plan) -> InputFacts:
    """Facts about an image (C, Z, Y, X) as read and its crop."""
    order, geometry = plan.transpose_forward, record.geometry
    turned = image.transpose(0, *(axis + 1 for axis in order))
    crop = turned[in_all_channels(record.crop_box.slices)]
    z, y, x = (record.crop_box.shape[axis] for axis in plan.transpose_backward)
    return InputFacts(
        shape=geometry.shape,
        shape_after_crop=(z, y, x),
        spacing_mm=geometry.spacing_mm,
        direction=geometry.direction,
        is_2d=geometry.is_2d,
        channels=tuple(_statistics(channel) for channel in crop),
    )


def _statistics(channel: np.ndarray) -> ChannelStatistics:
    values = channel.ravel()[:: even_step(channel.shape, SAMPLED_VALUES)]
    low, high = np.percentile(values, (0.5, 99.5))
    return ChannelStatistics(
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
    )


def even_step(shape: Sequence[int], most: int) -> int:
    """Every so many-th voxel of a volume (Z, Y, X) gives at most `most`, from all rows and columns alike.

    A step that has a divisor in common with the length of a row would come back to the same few columns.
    """
    size = math.prod(shape)
    step = max(1, -(-size // most))
    while math.gcd(step, size) > 1:
        step += 1
    return step


def class_features(
    segmentation: np.ndarray, geometry: Geometry, labels: LabelSet, passes: Mapping[str, PassFigures]
) -> dict[str, ClassFeatures]:
    """Features of every foreground class or region of a segmentation (Z, Y, X) in dataset.json's values."""
    voxel_ml = voxel_volume_mm3(geometry.spacing_mm, geometry.is_2d) / 1000
    result = {}
    for name in labels.foreground:
        values = labels.labels[name]
        mask = segmentation == values[0] if len(values) == 1 else np.isin(segmentation, values)
        sizes = component_sizes(mask)
        voxels = int(sizes.sum())
        result[name] = ClassFeatures(
            volume_ml=voxels * voxel_ml,
            components=len(sizes),
            largest_share=float(sizes.max() / voxels) if voxels else None,
            passes=passes[name],
        )
    return result


def component_sizes(mask: np.ndarray) -> np.ndarray:
    """Voxels of each connected piece of a (Z, Y, X) mask, 26-neighbourhood; empty without any."""
    from scipy.ndimage import label as connected

    if not mask.any():
        return np.zeros(0, np.int64)
    pieces, _ = connected(mask[bounding_box(mask).slices], np.ones((3, 3, 3), bool))
    return np.bincount(pieces.ravel())[1:]
