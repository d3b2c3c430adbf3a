"""Which case, which box: sample i of epoch e is a function of (seed, fold, e, i) and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from samunet.trainers.base import Phase

TRAIN, VAL = 0, 1
FOLD_ALL = 2**16
"""Number that stands for fold `all` in seeds."""
SINGLE_GROUP = 3
"""Steps over which foreground is forced when a step has one sample."""


class SampleKey(NamedTuple):
    """Names one sample of a run.

    Attributes:
        stream: TRAIN or VAL.
        epoch: counted over all phases.
        number: of the sample within the epoch.
        forced: whether it must hold foreground.
    """

    stream: int
    epoch: int
    number: int
    forced: bool


def fold_number(fold: int | str) -> int:
    """Fold as an integer for seeding."""
    return FOLD_ALL if fold == "all" else int(fold)


def sample_generator(seed: int, fold: int | str, key: SampleKey) -> np.random.Generator:
    """The generator that every random choice of one sample comes from."""
    return np.random.default_rng(
        np.random.SeedSequence((seed, fold_number(fold), key.epoch, key.number, key.stream))
    )


@dataclass(frozen=True, kw_only=True)
class Position:
    """A place in the run: how many epochs are complete, and optimizer steps done in the present one."""

    epoch: int = 0
    iteration: int = 0


@dataclass(frozen=True, kw_only=True)
class Batching:
    """Samples a batch, and the share of them that must hold foreground."""

    size: int
    oversample: float

    def is_forced(self, number: int, accumulate: int = 1) -> bool:
        """Whether a sample must hold foreground: not the first round(B (1 - share)) of a step's B (nnU-Net).

        Batches that are accumulated count as one. A step of a single sample would never be forced: there
        the rule goes over three steps.
        """
        group = self.size * accumulate
        group = group if group > 1 else SINGLE_GROUP
        return number % group >= round(group * (1 - self.oversample))


def batch_keys(phases: Sequence[Phase], batching: Batching, start: Position) -> Iterator[list[SampleKey]]:
    """Keys of every batch from `start` on in the order of use: an epoch's training, then validation."""
    epoch = 0
    for phase in phases:
        for _ in range(phase.epochs):
            if epoch >= start.epoch:
                first = start.iteration if epoch == start.epoch else 0
                yield from _epoch_keys(phase, batching, epoch, first)
            epoch += 1


def _epoch_keys(phase: Phase, batching: Batching, epoch: int, first: int) -> Iterator[list[SampleKey]]:
    def keys(stream: int, batch: int, accumulate: int) -> list[SampleKey]:
        numbers = range(batch * batching.size, (batch + 1) * batching.size)
        return [SampleKey(stream, epoch, n, batching.is_forced(n, accumulate)) for n in numbers]

    for batch in range(first * phase.accumulate, phase.iterations * phase.accumulate):
        yield keys(TRAIN, batch, phase.accumulate)
    for batch in range(phase.val_iterations):
        yield keys(VAL, batch, 1)


@dataclass(frozen=True, kw_only=True)
class BoxSampler:
    """Places a box in a case as nnU-Net does.

    Attributes:
        load_size: box to read, (z, y, x); 1 along z for slices.
        patch_size: what the network sees of it, (z, y, x); the rest may hang over the border of the case.
        has_ignore: unforced boxes are centred on annotated voxels.
    """

    load_size: tuple[int, ...]
    patch_size: tuple[int, ...]
    has_ignore: bool = False

    def bounds(self, shape: Sequence[int]) -> tuple[list[int], list[int]]:
        """Lowest and highest first index per axis (both included)."""
        lowest, highest = [], []
        for size, load, patch in zip(shape, self.load_size, self.patch_size):
            padding = max(load - patch, load - size)
            lowest.append(-padding // 2)
            highest.append(size + padding // 2 + padding % 2 - load)
        return lowest, highest

    def draw(
        self,
        rng: np.random.Generator,
        shape: Sequence[int],
        locations: Mapping[str, np.ndarray],
        annotated: np.ndarray | None,
        forced: bool,
    ) -> tuple[int, ...]:
        """First index (z, y, x) of the box; may be negative.

        Args:
            rng: the sample's generator.
            shape: of the case.
            locations: class or region name -> (n, 3) voxels of it.
            annotated: (n, 3) annotated voxels of data with an ignore label.
            forced: centre on a random voxel of a random class that is present, if any.
        """
        lowest, highest = self.bounds(shape)
        voxels: np.ndarray | None = None
        if forced:
            present = [found for found in locations.values() if len(found)]
            if present:
                voxels = present[int(rng.integers(len(present)))]
            elif annotated is not None and len(annotated):
                voxels = annotated
        elif self.has_ignore and annotated is not None and len(annotated):
            voxels = annotated
        if voxels is None:
            return tuple(int(rng.integers(low, high + 1)) for low, high in zip(lowest, highest))
        centre = voxels[int(rng.integers(len(voxels)))]
        return tuple(
            max(low, int(voxel) - load // 2) for low, voxel, load in zip(lowest, centre, self.load_size)
        )
