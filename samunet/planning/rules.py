"""nnU-Net's planning rules as pure functions of numbers (default planner of nnunetv2 2.8.1).

Axes are the file's (z, y, x) unless a name says `transposed`. Source: Isensee et al., Nature Methods 2021,
supplementary note 2; the numbers are pinned by golden vectors in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samunet.data.geometry import resampled_shape, slice_axis, slices_first
from samunet.networks.unet_topology import MIN_EDGE, UNetTopology, unet_cost, unet_topology
from samunet.planning.plan import Normalization

ANISOTROPY = 3.0
"""Spacing ratio above which an axis is treated as coarse."""
MASKED_NORM_BELOW = 0.75
"""Normalise inside the nonzero mask when cropping leaves less than this share of the voxels."""
LOW_RESOLUTION_BELOW = 0.25
"""nnU-Net adds a low-resolution stage when a patch covers less than this share of the median case."""
REFERENCE_GB = 8.0
MIN_BATCH = 2
MAX_BATCH_2D = {"cuda": 64, "mps": 64, "cpu": 12}
"""Our cap on 2D batches: nnU-Net's rule reaches several hundred on small slices. On a CPU, where the hours
limit the steps, nnU-Net's reference batch of 12 makes the most of them."""
MAX_SHARE_OF_DATASET = 0.05
_START_EDGE = {2: 2048, 3: 256}
_REFERENCE_ELEMENTS = {2: 85e6, 3: 560e6}
_REFERENCE_BATCH = {2: 12, 3: 2}
_SCHEMES: dict[str, Normalization] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}


def target_spacing(
    spacings_mm: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]
) -> tuple[float, ...]:
    """Median spacing per axis; a coarse axis with few slices takes the 10th percentile instead.

    Args:
        spacings_mm: one (z, y, x) per case.
        shapes: voxels after the crop, one (z, y, x) per case.
    """
    spacings = np.asarray(spacings_mm, np.float64)
    target = np.percentile(spacings, 50, axis=0)
    size = np.percentile(np.asarray(shapes, np.float64), 50, axis=0)
    worst = int(np.argmax(target))
    finer = max(np.delete(target, worst))
    coarse = target[worst] > ANISOTROPY * finer
    few_slices = size[worst] * ANISOTROPY < min(np.delete(size, worst))
    if coarse and few_slices:
        low = float(np.percentile(spacings[:, worst], 10))
        target[worst] = low if low >= finer else finer + 1e-5
    return tuple(float(t) for t in target)


def transpose_axes(
    target_mm: Sequence[float], median_shape: Sequence[float]
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Forward and backward axis order that puts the coarsest axis first.

    Ours, not nnU-Net's: an axis of one voxel in the median case stands before coarser ones. The slices of a
    volume file with one thin slice would be lines else.
    """
    forward = slices_first(slice_axis(target_mm, median_shape))
    backward = [forward.index(axis) for axis in range(3)]
    return forward, (backward[0], backward[1], backward[2])


def resampled_shapes(
    spacings_mm: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]], target_mm: Sequence[float]
) -> np.ndarray:
    """Shape of every case at the target spacing, (cases, axes) int."""
    return np.asarray([resampled_shape(n, s, target_mm) for s, n in zip(spacings_mm, shapes)])


def normalization_scheme(channel_name: str) -> Normalization:
    """Scheme that a channel's name asks for (case does not matter); z-score for every other name."""
    return _SCHEMES.get(channel_name.casefold(), "zscore")


def masked_normalization(schemes: Sequence[Normalization], median_relative_size: float) -> tuple[bool, ...]:
    """Per channel, whether z-scores use the voxels inside the nonzero mask only."""
    return tuple(scheme == "zscore" and median_relative_size < MASKED_NORM_BELOW for scheme in schemes)


@dataclass(frozen=True, kw_only=True)
class UNetRequest:
    """What patch and batch depend on.

    Attributes:
        spacing_mm / median_shape: of the data configuration (two or three axes).
        num_inputs: channels.
        num_labels: names under `labels` in dataset.json, background and ignore counted as nnU-Net does.
        dataset_voxels: median case voxels (always of the 3D shape) times the number of cases.
        memory_gb: target GPU memory.
        max_batch: upper limit of the batch, or None.
    """

    spacing_mm: tuple[float, ...]
    median_shape: tuple[float, ...]
    num_inputs: int
    num_labels: int
    dataset_voxels: float
    memory_gb: float = REFERENCE_GB
    max_batch: int | None = None


@dataclass(frozen=True, kw_only=True)
class UNetPatch:
    """Patch, batch and topology of a U-Net.

    Attributes:
        uncapped_batch: what memory alone would allow; `limit` says what held the batch down, if anything.
    """

    topology: UNetTopology
    batch_size: int
    uncapped_batch: int
    limit: str

    @property
    def patch_size(self) -> tuple[int, ...]:
        return self.topology.patch_size

    @property
    def too_small(self) -> str:
        """Why no U-Net can be built for it; empty where one can."""
        if len(self.topology.strides) > 1:
            return ""
        size = " x ".join(map(str, self.patch_size))
        return (
            f"The cases are so small that patches have {size} voxels, and a U-Net has to halve them. Plan "
            "with a finer spacing (-overwrite_target_spacing)."
        )


def plan_unet_patch(request: UNetRequest) -> UNetPatch:
    """Largest patch whose cost at batch 2 stays within the memory, then the batch that fills it."""
    dimension = len(request.spacing_mm)
    reference = _REFERENCE_ELEMENTS[dimension] * request.memory_gb / REFERENCE_GB
    reference_batch = _REFERENCE_BATCH[dimension]
    topology = unet_topology(request.spacing_mm, _start_patch(request))
    while (cost := _elements(topology, request)) / reference_batch * 2 > reference:
        smaller = _shrink(topology, request)
        if smaller.patch_size == topology.patch_size:
            break
        topology = smaller
    fills = round(reference / cost * reference_batch)
    share = round(request.dataset_voxels * MAX_SHARE_OF_DATASET / math.prod(topology.patch_size))
    caps = [(share, "5 % of the dataset's voxels")]
    if request.max_batch is not None:
        caps.append((request.max_batch, f"the cap of {request.max_batch} for slices"))
    cap, name = min(caps)
    batch, uncapped = max(min(fills, cap), MIN_BATCH), max(fills, MIN_BATCH)
    return UNetPatch(
        topology=topology,
        batch_size=batch,
        uncapped_batch=uncapped,
        limit=name if batch < uncapped else "",
    )


def _elements(topology: UNetTopology, request: UNetRequest) -> int:
    return unet_cost(topology, request.num_inputs, request.num_labels).elements


def _start_patch(request: UNetRequest) -> list[float]:
    dimension = len(request.spacing_mm)
    aspect = 1 / np.asarray(request.spacing_mm, np.float64)
    volume = float(_START_EDGE[dimension] ** dimension)
    start = [round(float(a)) for a in aspect * (volume / np.prod(aspect)) ** (1 / dimension)]
    return [min(s, m) for s, m in zip(start, request.median_shape)]


def _shrink(topology: UNetTopology, request: UNetRequest) -> UNetTopology:
    """Shorten the axis that is largest relative to the median case by one step of the pooling; the next one
    where it is as short as it may be, and none where all are."""
    patch = topology.patch_size
    ratios = [(n / m, axis) for axis, (n, m) in enumerate(zip(patch, request.median_shape))]
    for _, axis in sorted(ratios, reverse=True):
        # The divisor falls with the size, so it is taken from the shortened patch: no valid size is skipped.
        tentative = [n - topology.divisor[a] * (a == axis) for a, n in enumerate(patch)]
        step = unet_topology(request.spacing_mm, tentative).divisor[axis]
        # A few slices, which no pooling halves, may become one, as in nnU-Net.
        least = 1 if request.median_shape[axis] < 2 * MIN_EDGE else MIN_EDGE
        if patch[axis] - step >= least:
            return unet_topology(request.spacing_mm, [n - step * (a == axis) for a, n in enumerate(patch)])
    return topology


def needs_low_resolution(request: UNetRequest, patch: UNetPatch) -> bool:
    """Whether nnU-Net would add a low-resolution 3D stage (and so take batch Dice for full resolution).

    It grows the spacing by 3 % a step, coarse axes last, until a patch covers a quarter of the median case,
    and drops the stage again when that shrinks the case by less than half.
    """
    full_spacing = np.asarray(request.spacing_mm, np.float64)
    full_shape = np.asarray(request.median_shape, np.float64)
    full_voxels = voxels = float(np.prod(full_shape))
    spacing, patch_voxels, grown = full_spacing.copy(), math.prod(patch.patch_size), False
    while patch_voxels / voxels < LOW_RESOLUTION_BELOW:
        finer = max(spacing) / spacing > 2
        spacing[finer if finer.any() else slice(None)] *= 1.03
        shape = full_spacing / spacing * full_shape
        voxels, grown = float(np.prod(shape)), True
        smaller = UNetRequest(
            spacing_mm=tuple(spacing),
            median_shape=tuple(max(1, round(float(n))) for n in shape),
            num_inputs=request.num_inputs,
            num_labels=request.num_labels,
            dataset_voxels=request.dataset_voxels,
            memory_gb=request.memory_gb,
        )
        patch_voxels = math.prod(plan_unet_patch(smaller).patch_size)
    return grown and full_voxels / voxels >= 2
