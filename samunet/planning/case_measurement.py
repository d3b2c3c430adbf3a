"""Measuring one case (in a worker process), and pooling the foreground intensities of all cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from samunet.data.geometry import Geometry, bounding_box, in_all_channels, nonzero_mask
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.planning.fingerprint import CaseFingerprint, ChannelStatistics
from samunet.planning.plan import IntensityProperties
from samunet.records import hash_files

if TYPE_CHECKING:
    from samunet.data.dataset import Case, RawDataset

SEED = 1234


@dataclass(frozen=True, kw_only=True)
class ForegroundSample:
    """Foreground intensities of one channel of one case: all of them, or an even draw of many.

    Attributes:
        values: float32; empty when the case has no foreground.
        lowest / highest: over all foreground voxels of the case.
    """

    values: np.ndarray
    lowest: float
    highest: float


@dataclass(frozen=True, kw_only=True)
class MeasuredCase:
    """What a worker hands back; `foreground` has one sample per channel."""

    fingerprint: CaseFingerprint
    foreground: tuple[ForegroundSample, ...]


def measure_case(case: Case, *, dataset: RawDataset, keep: int) -> MeasuredCase:
    """Read, check and measure one training case.

    Args:
        dataset: whose channels and labels the case must have (its own list of cases is not used).
        keep: largest number of foreground values kept per channel.

    Raises:
        SamunetError: not readable, NaN or infinite values, image and label on different grids, no label,
            undeclared label values; names the file.
    """
    loaded = dataset.read(case)
    if case.label is None or loaded.label is None:
        raise SamunetError(f"Case {case.name} has no label. Every training case needs a file in labelsTr.")
    arrays = CaseArrays(
        name=case.name,
        content=hash_files(case.files),
        image=loaded.image,
        indices=dataset.labels.encode(loaded.label, where=str(case.label)),
        geometry=loaded.geometry,
    )
    return measure_arrays(arrays, dataset.labels, keep)


@dataclass(frozen=True, kw_only=True)
class CaseArrays:
    """A case in memory: image float32 (C, Z, Y, X), label class indices (Z, Y, X)."""

    name: str
    content: str
    image: np.ndarray
    indices: np.ndarray
    geometry: Geometry


def measure_arrays(case: CaseArrays, labels: LabelSet, keep: int) -> MeasuredCase:
    """Measure a case in memory; `keep` is the largest number of foreground values kept per channel."""
    mask = nonzero_mask(case.image)
    box = bounding_box(mask)
    region = in_all_channels(box.slices)
    image, indices, mask = case.image[region], case.indices[box.slices], mask[box.slices]
    channels = tuple(_statistics(channel) for channel in image)
    in_mask = channels if mask.all() else tuple(_statistics(channel[mask]) for channel in image)
    voxels, components = _class_sizes(indices, labels)
    foreground = indices > 0
    if labels.ignore_index is not None:
        foreground &= indices != labels.ignore_index
    z, y, x = (int(n) for n in box.shape)
    fingerprint = CaseFingerprint(
        name=case.name,
        content=case.content,
        shape=case.geometry.shape,
        shape_after_crop=(z, y, x),
        spacing_mm=case.geometry.spacing_mm,
        direction=case.geometry.direction,
        is_2d=case.geometry.is_2d,
        relative_size=float(np.prod(box.shape) / np.prod(case.geometry.shape)),
        channels=channels,
        channels_in_mask=in_mask if mask.any() else channels,
        class_voxels=voxels,
        class_components=components,
    )
    samples = tuple(_draw(channel[foreground], keep) for channel in image)
    return MeasuredCase(fingerprint=fingerprint, foreground=samples)


def _statistics(values: np.ndarray) -> ChannelStatistics:
    if values.size == 0:
        return ChannelStatistics(mean=0.0, std=0.0, percentile_00_5=0.0, percentile_99_5=0.0)
    low, high = np.percentile(values, (0.5, 99.5))
    return ChannelStatistics(
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
    )


def _class_sizes(indices: np.ndarray, labels: LabelSet) -> tuple[dict[str, int], dict[str, int]]:
    """Voxels and connected components of each foreground class or region."""
    from scipy.ndimage import label as connected

    neighbours = np.ones((3, 3, 3), bool)
    counts = np.bincount(indices.ravel(), minlength=len(labels.values) + 1)
    voxels, components = {}, {}
    for name, members in labels.foreground.items():
        voxels[name] = int(sum(counts[index] for index in members))
        components[name] = 0
        if voxels[name]:
            region = np.isin(indices, members) if len(members) > 1 else indices == members[0]
            components[name] = int(connected(region[bounding_box(region).slices], neighbours)[1])
    return voxels, components


def _draw(values: np.ndarray, keep: int) -> ForegroundSample:
    if values.size == 0:
        return ForegroundSample(values=values.astype(np.float32), lowest=np.inf, highest=-np.inf)
    lowest, highest = float(values.min()), float(values.max())
    if values.size > keep:
        values = values[np.random.default_rng(SEED).integers(0, values.size, keep)]
    return ForegroundSample(values=values.astype(np.float32, copy=False), lowest=lowest, highest=highest)


def pool_intensities(
    samples: Sequence[Sequence[ForegroundSample]], channel_names: Sequence[str]
) -> tuple[IntensityProperties, ...]:
    """Foreground statistics of every channel over all cases.

    nnU-Net draws the same number of voxels from every case, with replacement. Weighing each case's voxels
    so that every case with foreground counts alike is the expectation of that, without the draw.

    Args:
        samples: per case, one sample per channel.
    """
    return tuple(_pool([case[number] for case in samples]) for number in range(len(channel_names)))


def _pool(samples: Sequence[ForegroundSample]) -> IntensityProperties:
    filled = [sample for sample in samples if sample.values.size]
    if not filled:
        return IntensityProperties(
            mean=0.0, median=0.0, std=1.0, min=0.0, max=0.0, percentile_00_5=0.0, percentile_99_5=0.0
        )
    means = [float(sample.values.mean(dtype=np.float64)) for sample in filled]
    mean = float(np.mean(means))
    variance = float(np.mean([np.mean((s.values.astype(np.float64) - mean) ** 2) for s in filled]))
    low, median, high = _weighted_percentiles([sample.values for sample in filled], (0.5, 50.0, 99.5))
    return IntensityProperties(
        mean=mean,
        median=median,
        std=float(np.sqrt(variance)),
        min=min(sample.lowest for sample in filled),
        max=max(sample.highest for sample in filled),
        percentile_00_5=low,
        percentile_99_5=high,
    )


def _weighted_percentiles(parts: Sequence[np.ndarray], percents: Sequence[float]) -> list[float]:
    """Percentiles of a mixture in which every part weighs the same, whatever its length."""
    values = np.concatenate(parts)
    weights = np.concatenate([np.full(part.size, 1.0 / part.size, np.float32) for part in parts])
    order = np.argsort(values, kind="stable")
    position = np.cumsum(weights[order], dtype=np.float64)
    position = (position - weights[order] / 2) / position[-1]
    return [float(v) for v in np.interp(np.asarray(percents) / 100, position, values[order])]
