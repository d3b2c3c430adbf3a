"""Fingerprint: what was measured on a raw dataset. No decisions; the planner makes those from it."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samunet.data.groups import Origins
from samunet.data.labels import LabelSet
from samunet.data.workers import map_in_workers, worker_count
from samunet.errors import SamunetError
from samunet.planning.plan import IntensityProperties
from samunet.progress import Progress
from samunet.records import content_hash, read_record, write_json

if TYPE_CHECKING:
    from samunet.data.dataset import Case, RawDataset
    from samunet.planning.case_measurement import MeasuredCase

logger = logging.getLogger(__name__)

FINGERPRINT_VERSION = 1
FOREGROUND_VALUES = 10_000_000
"""Foreground intensities kept per channel over the whole dataset."""
NATURAL_ENDINGS = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Intensities of one channel of one case, stored units."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One training case; axes are the file's (z, y, x).

    Attributes:
        content: hash of the files' bytes.
        shape / shape_after_crop: voxels before and after the crop to the nonzero box.
        direction: SimpleITK's row-major 3 x 3 direction cosines (x, y, z).
        relative_size: voxels after the crop over voxels before.
        channels: over the crop; `channels_in_mask`: over its nonzero voxels (holes filled).
        class_voxels / class_components: per foreground class or region; 26-neighbourhood (8 in a plane).
    """

    name: str
    content: str
    shape: tuple[int, int, int]
    shape_after_crop: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    direction: tuple[float, ...]
    is_2d: bool
    relative_size: float
    channels: tuple[ChannelStatistics, ...]
    channels_in_mask: tuple[ChannelStatistics, ...]
    class_voxels: dict[str, int]
    class_components: dict[str, int]

    @property
    def empty(self) -> bool:
        """Whether the case has no foreground."""
        return not any(self.class_voxels.values())


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything the planner knows about a dataset.

    Attributes:
        data_hash: identifies the content of the cases, channels, labels and file ending; a plan keeps it.
        stamp: identifies names, sizes and times of the files, groups, and the dataset's name: cheap to
            compare, differs after a copy.
        intensity: per channel, statistics over the foreground in which every case weighs alike.
        laterality_pairs: (left, right) label names.
        groups / patients: of the cases, where declared.
        natural_image: planes from picture files (PNG and the like).
    """

    version: int = FINGERPRINT_VERSION
    dataset: str
    data_hash: str
    stamp: str
    file_ending: str
    channel_names: tuple[str, ...]
    labels: LabelSet
    cases: tuple[CaseFingerprint, ...]
    intensity: tuple[IntensityProperties, ...]
    laterality_pairs: tuple[tuple[str, str], ...]
    groups: dict[str, str]
    natural_image: bool
    patients: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Fingerprint:
        """Read a fingerprint file.

        Raises:
            SamunetError: no such file, another version, unknown or missing keys (with their path).
        """
        fingerprint = read_record(cls, path)
        if fingerprint.version != FINGERPRINT_VERSION:
            raise SamunetError(
                f"{path} has fingerprint version {fingerprint.version}; this samunet reads version "
                f"{FINGERPRINT_VERSION}. Measure again: samunet_extract_fingerprint -d {fingerprint.dataset}."
            )
        return fingerprint

    def describes(self, data_hash: str) -> bool:
        """Whether a plan that keeps this hash was made from these data.

        Hashes of earlier versions hold the dataset's name and its groups too, which say nothing of what a
        model was trained on; they are known again, also where groups were declared since.
        """
        told = [self.dataset, self.channel_names, self.labels, self.file_ending]
        earlier = [_identity([*told, groups], self.cases) for groups in ({}, self.groups)]
        return data_hash == self.data_hash or data_hash in earlier

    @property
    def origins(self) -> Origins:
        """Groups and patients of the cases."""
        return Origins(groups=self.groups, patients=self.patients)

    @property
    def spacings_mm(self) -> list[tuple[float, float, float]]:
        return [case.spacing_mm for case in self.cases]

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Shapes after the crop."""
        return [case.shape_after_crop for case in self.cases]

    @property
    def median_relative_size(self) -> float:
        return float(np.median([case.relative_size for case in self.cases]))


def load_or_extract(
    dataset: RawDataset,
    file: Path,
    workers: int | None = None,
    clean: bool = False,
    progress: Progress | None = None,
) -> Fingerprint:
    """The dataset's fingerprint from `file`, measured and written there when absent or out of date.

    Args:
        workers: processes, None for as many as cores and free memory allow.
        clean: measure in any case.
    """
    stamp = dataset_stamp(dataset)
    known = None if clean else read_known(file)
    if known is not None and known.stamp == stamp:
        return known
    if known is not None:
        logger.info(
            "The files of %s have changed since %s was made; measuring again", dataset.name, file.name
        )
    fingerprint = extract_fingerprint(dataset, workers, progress)
    write_json(file, fingerprint)
    return fingerprint


def read_known(file: Path) -> Fingerprint | None:
    """The fingerprint in `file`; None, with a warning, where it cannot be used."""
    if not file.exists():
        return None
    try:
        return Fingerprint.load(file)
    except SamunetError as fault:
        logger.warning("%s It cannot be used; measuring again.", fault)
        return None


def dataset_stamp(dataset: RawDataset) -> str:
    """Hash over dataset.json's meaning and over name, size and time of every file, without reading images."""
    files = []
    for case in dataset.cases:
        for path in case.files:
            status = path.stat()
            files.append([case.name, path.name, status.st_size, status.st_mtime_ns])
    origins = dataset.origins
    declared = [origins.groups, *([origins.patients] if origins.patients else [])]
    return content_hash([[dataset.name, *_meaning(dataset), *declared], files])


def _meaning(dataset: RawDataset) -> list[object]:
    """What of dataset.json decides whether a model fits the data: neither their name nor their groups."""
    labels = dataset.labels
    return [dataset.channel_names, labels, dataset.file_ending, *labels.regions_in_order]


def _identity(meaning: list[object], cases: Sequence[CaseFingerprint]) -> str:
    return content_hash([meaning, [[case.name, case.content] for case in cases]])


def extract_fingerprint(
    dataset: RawDataset, workers: int | None = None, progress: Progress | None = None
) -> Fingerprint:
    """Measure every case of a dataset.

    Raises:
        SamunetError: cases cannot be read, hold NaN or infinity, or have undeclared label values; names
            every such file.
    """
    from samunet.data.cases import largest_reading_bytes
    from samunet.data.laterality import left_right_pairs
    from samunet.planning.case_measurement import measure_case, pool_intensities

    if not dataset.cases:
        raise SamunetError(f"{dataset.folder} has no training cases. imagesTr and labelsTr must be filled.")
    stamp = dataset_stamp(dataset)  # before: what changes while it is measured has to be noticed next time
    # Sent to every worker, so without what it does not need.
    slim = dataclasses.replace(dataset, cases=(), origins=Origins(), json={})
    keep = max(1, FOREGROUND_VALUES // len(dataset.cases))
    found = map_in_workers(
        functools.partial(_measured, measure=functools.partial(measure_case, dataset=slim, keep=keep)),
        dataset.cases,
        worker_count(workers, largest_reading_bytes(dataset.cases), len(dataset.cases)),
        lambda case: case.name,
        progress,
    )
    faults = [one for one in found if isinstance(one, str)]
    if faults:
        raise SamunetError("\n".join(faults))
    measured = [one for one in found if not isinstance(one, str)]
    cases = tuple(one.fingerprint for one in measured)
    flat = all(case.is_2d for case in cases)
    return Fingerprint(
        dataset=dataset.name,
        data_hash=_identity(_meaning(dataset), cases),
        stamp=stamp,
        file_ending=dataset.file_ending,
        channel_names=dataset.channel_names,
        labels=dataset.labels,
        cases=cases,
        intensity=pool_intensities([one.foreground for one in measured], dataset.channel_names),
        laterality_pairs=left_right_pairs(dataset.labels.foreground),
        groups=dict(dataset.origins.groups),
        patients=dict(dataset.origins.patients),
        natural_image=flat and dataset.file_ending.lower() in NATURAL_ENDINGS,
    )


def _measured(case: Case, measure: Callable[[Case], MeasuredCase]) -> MeasuredCase | str:
    """A measured case, or what is wrong with it, so that all such cases are told at once."""
    try:
        return measure(case)
    except SamunetError as fault:
        return str(fault)
