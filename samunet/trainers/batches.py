"""Samples from stored cases: which box is read, and how it is augmented."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samunet.data.labels import OUTSIDE
from samunet.preprocessing.boxes import read_box, read_slice
from samunet.preprocessing.open_cases import OpenCases
from samunet.preprocessing.soft_labels import SoftLabelIdentity, SoftLabelStore, decode
from samunet.preprocessing.store import StoredCase
from samunet.preprocessing.streams import Sample
from samunet.trainers.augmentation import Augmentation, AugmentationSettings
from samunet.trainers.sampling import TRAIN, BoxSampler, SampleKey, sample_generator

DRAWS = 3
"""Random numbers of a sample that are the method's own."""


@dataclass(frozen=True, kw_only=True)
class SoftSource:
    """Soft labels that samples are drawn with.

    Attributes:
        folder / identity: of the soft labels; complete for all cases.
        unlabelled_folder: stored cases without labels of their own (background where there is an image).
        unlabelled: their names, drawn for training besides the labelled ones.
    """

    folder: Path
    identity: SoftLabelIdentity
    unlabelled_folder: Path | None = None
    unlabelled: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """What both kinds of sources are made of.

    Attributes:
        case_folder: stored cases; data_hash: of the data configuration that they have to be made by.
        train / val: case names.
        seed / fold: with the key they decide every draw.
        augmentation: of training samples.
        soft: a teacher's outputs for the same cases, or None.
    """

    case_folder: Path
    data_hash: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    seed: int
    fold: int | str
    augmentation: AugmentationSettings
    soft: SoftSource | None = None

    def names(self, stream: int) -> tuple[str, ...]:
        """Labelled cases of a stream."""
        return self.train if stream == TRAIN else self.val

    @property
    def slice_context(self) -> int:
        """Neighbouring slices on each side that are given as channels (2D)."""
        return self.augmentation.slice_context

    @property
    def has_ignore(self) -> bool:
        return self.augmentation.ignore_index is not None


class PatchSource:
    """Draws a case and a box, reads it, augments it (training) or takes it as it is (validation)."""

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings
        self.mirrored_axes = settings.augmentation.mirrored_axes
        self.cases = OpenCases(settings.case_folder, settings.data_hash)
        augmentation = settings.augmentation
        self.augment = Augmentation(augmentation)
        self.finish = Augmentation(replace(augmentation, preset="none"))
        patch = _three(augmentation.patch_size)
        self.samplers = (
            BoxSampler(
                load_size=_three(augmentation.initial_size), patch_size=patch, has_ignore=settings.has_ignore
            ),
            BoxSampler(load_size=patch, patch_size=patch, has_ignore=settings.has_ignore),
        )
        soft = settings.soft
        self.soft = None if soft is None else SoftLabelStore(soft.folder, soft.identity)
        extra = None if soft is None else soft.unlabelled_folder
        self.unlabelled = None if extra is None else OpenCases(extra, settings.data_hash)

    def pin(self) -> None:
        """See that all cases are there and of the plan; samples of cases made anew afterwards are refused.

        Raises:
            SamunetError: some are not.
        """
        settings, soft = self.settings, self.settings.soft
        names = dict.fromkeys((*settings.train, *settings.val))
        self.cases.pin(names)
        if self.soft is None or soft is None:
            return
        self.soft.pin((*names, *soft.unlabelled))
        if self.unlabelled is not None:
            self.unlabelled.pin(soft.unlabelled)

    def sample(self, key: SampleKey) -> Sample:
        """{"image": (C, *patch) float32, "target": (1, *patch) int16 or (R[+1], *patch) bool,
        "draw": (DRAWS,) float32, random numbers for what a method draws for the sample itself}.

        With a teacher also {"soft": (K, *patch) float16, "labelled": () bool}.
        """
        settings = self.settings
        rng = sample_generator(settings.seed, settings.fold, key)
        case, labelled = self._draw_case(rng, key.stream)
        sampler = self.samplers[key.stream]
        locations = case.locations
        if not labelled:
            assert self.soft is not None
            locations = self.soft.foreground(case.name)
        lower = sampler.draw(rng, case.image.shape[1:], locations, case.annotated, key.forced)
        image, label = self.read(case, lower, sampler.load_size)
        transform, seed = self.augment if key.stream == TRAIN else self.finish, int(rng.integers(2**63))
        if self.soft is None:
            image_t, target = transform(image, label, seed)
            return {"image": image_t, "target": target, "draw": draw_of(rng)}
        stored = self.soft.read(case.name, lower, sampler.load_size)
        stored = stored if len(settings.augmentation.patch_size) == 3 else stored[:, 0]
        image_t, target, soft = transform.with_soft(image, label, stored, seed)
        soft = decode(soft, self.soft.identity).half()
        return {
            "image": image_t,
            "target": target,
            "soft": soft,
            "labelled": torch.tensor(labelled),
            "draw": draw_of(rng),
        }

    def _draw_case(self, rng: np.random.Generator, stream: int) -> tuple[StoredCase, bool]:
        """A case, and whether it has a label of its own."""
        names = self.settings.names(stream)
        soft = self.settings.soft
        extra = soft.unlabelled if soft is not None and stream == TRAIN else ()
        index = int(rng.integers(len(names) + len(extra)))
        if index < len(names):
            return self.cases.get(names[index]), True
        assert self.unlabelled is not None
        return self.unlabelled.get(extra[index - len(names)]), False

    def read(
        self, case: StoredCase, lower: tuple[int, ...], size: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image (C, *size) and label (*size) of a box; 2D patches lose the slice axis."""
        label = read_box(case.label, lower, size, OUTSIDE)
        if len(self.settings.augmentation.patch_size) == 3:
            return read_box(case.image, lower, size, 0), label
        return read_slice(case.image, lower, size[1:], self.settings.slice_context), label[0]


def draw_of(rng: np.random.Generator) -> Tensor:
    """Random numbers (DRAWS,) float32 from 0 to 1 (exclusive) for what a method draws for a sample: the same
    whenever the sample is made again."""
    return torch.from_numpy(rng.random(DRAWS, dtype=np.float32))


def _three(size: tuple[int, ...]) -> tuple[int, ...]:
    return size if len(size) == 3 else (1, *size)
