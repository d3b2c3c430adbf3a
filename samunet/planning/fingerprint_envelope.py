"""The envelope of a fingerprint: ranges over the training cases, without anything of a single case.

It is what a model may carry to others: enough to see whether a new image is like those of the training.
Left out are names, content hashes, groups (patients, sites) and the figures of single cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from samunet.data.geometry import voxel_volume_mm3
from samunet.planning.fingerprint import CaseFingerprint, ChannelStatistics, Fingerprint
from samunet.planning.plan import IntensityProperties


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Smallest, median and largest value over the cases, and their mean and standard deviation."""

    min: float
    median: float
    max: float
    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class ChannelSpread:
    """Statistics of a channel of each case (over the crop, stored units), spread over the cases.

    Attributes:
        low_in_std / high_in_std: the percentiles in standard deviations from the case's own mean: what is
            left to compare where each case is normalised by itself.
    """

    name: str
    mean: Spread
    std: Spread
    percentile_00_5: Spread
    percentile_99_5: Spread
    low_in_std: Spread
    high_in_std: Spread


@dataclass(frozen=True, kw_only=True)
class ClassSpread:
    """A class or region: cases that have it, and its volume in them in ml (1000 mm² for planes)."""

    cases: int
    volume: Spread | None


@dataclass(frozen=True, kw_only=True)
class FingerprintEnvelope:
    """Ranges of a fingerprint; axes are the file's z, y, x.

    Attributes:
        cases: number of training cases.
        planes: how many of the cases are planes; the others are volumes.
        orientations: where the axes of the volumes run to (`orientation`), each that occurs once.
        spacing_mm: voxel size per axis; `shape` voxels, `extent_mm` their product, after the crop to the
            nonzero box.
        channels: in the order of the images.
        intensity: per channel, pooled over the foreground of all cases.
        classes: of the foreground.
        laterality_pairs: (left, right) label names.
    """

    dataset: str
    file_ending: str
    cases: int
    planes: int
    orientations: tuple[str, ...]
    natural_image: bool
    spacing_mm: tuple[Spread, Spread, Spread]
    shape: tuple[Spread, Spread, Spread]
    extent_mm: tuple[Spread, Spread, Spread]
    channels: tuple[ChannelSpread, ...]
    intensity: tuple[IntensityProperties, ...]
    classes: dict[str, ClassSpread]
    laterality_pairs: tuple[tuple[str, str], ...]

    @property
    def is_2d(self) -> bool:
        """Whether all images are planes."""
        return self.planes == self.cases


def envelope_of(fingerprint: Fingerprint) -> FingerprintEnvelope:
    """The ranges of a fingerprint's cases."""
    cases = fingerprint.cases
    return FingerprintEnvelope(
        dataset=fingerprint.dataset,
        file_ending=fingerprint.file_ending,
        cases=len(cases),
        planes=sum(case.is_2d for case in cases),
        orientations=tuple(sorted({orientation(case.direction) for case in cases if not case.is_2d})),
        natural_image=fingerprint.natural_image,
        spacing_mm=_by_axis([case.spacing_mm for case in cases]),
        shape=_by_axis([case.shape_after_crop for case in cases]),
        extent_mm=_by_axis(
            [[n * mm for n, mm in zip(case.shape_after_crop, case.spacing_mm)] for case in cases]
        ),
        channels=tuple(
            _channel_spread(name, [case.channels[index] for case in cases])
            for index, name in enumerate(fingerprint.channel_names)
        ),
        intensity=fingerprint.intensity,
        classes={name: _class_spread(name, cases) for name in fingerprint.labels.foreground},
        laterality_pairs=fingerprint.laterality_pairs,
    )


def _channel_spread(name: str, found: Sequence[ChannelStatistics]) -> ChannelSpread:
    return ChannelSpread(
        name=name,
        mean=_spread(one.mean for one in found),
        std=_spread(one.std for one in found),
        percentile_00_5=_spread(one.percentile_00_5 for one in found),
        percentile_99_5=_spread(one.percentile_99_5 for one in found),
        low_in_std=_spread((one.percentile_00_5 - one.mean) / (one.std or 1.0) for one in found),
        high_in_std=_spread((one.percentile_99_5 - one.mean) / (one.std or 1.0) for one in found),
    )


def orientation(direction: Sequence[float]) -> str:
    """Where the image's x, y and z axes run to in the patient: `LPS` for an identity in SimpleITK's frame."""
    matrix = np.asarray(direction).reshape(3, 3)
    letters = ("RL", "AP", "IS")
    nearest = [int(np.argmax(np.abs(column))) for column in matrix.T]
    return "".join(letters[row][int(matrix[row, axis] > 0)] for axis, row in enumerate(nearest))


def _by_axis(rows: list) -> tuple[Spread, Spread, Spread]:
    z, y, x = (_spread(row[axis] for row in rows) for axis in range(3))
    return z, y, x


def _class_spread(name: str, cases: tuple[CaseFingerprint, ...]) -> ClassSpread:
    volumes = [_volume(case, name) for case in cases if case.class_voxels[name]]
    return ClassSpread(cases=len(volumes), volume=_spread(volumes) if volumes else None)


def _volume(case: CaseFingerprint, name: str) -> float:
    return case.class_voxels[name] * voxel_volume_mm3(case.spacing_mm, case.is_2d) / 1000


def _spread(values: Iterable[float]) -> Spread:
    known = np.array(list(values), float)
    return Spread(
        min=float(known.min()),
        median=float(np.median(known)),
        max=float(known.max()),
        mean=float(known.mean()),
        std=float(known.std(ddof=1)) if len(known) > 1 else 0.0,
    )
