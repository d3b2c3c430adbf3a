"""Pictures for pretraining, drawn from slices on disk, which are mapped into memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.ndimage import label as connected

from samunet.data.groups import Origins, unit_numbers
from samunet.data.procedural import MIN_PART
from samunet.data.scene import UNKNOWN, Scene
from samunet.preprocessing.slice_index import UNANNOTATED, VAL_EVERY, SlicedCase, SliceIndex, mapped

LABELLED_CHANCE = 0.8
"""Of drawing a slice with foreground, where a case has some."""
MOST_PARTS = 1000
"""Objects of a picture."""


def scene_of_labels(labels: np.ndarray) -> Scene:
    """Each connected part of each class is an object; where there are too many, what is left of the smaller
    ones and of later classes is unknown.

    Args:
        labels: (H, W) integers, 0 background, UNANNOTATED what belongs to nothing that is known.
    """
    parts = np.where(labels == UNANNOTATED, np.int16(UNKNOWN), np.int16(0))
    count = 0
    for value in np.unique(labels):
        if value in (0, UNANNOTATED):
            continue
        found, number = connected(labels == value)
        room = min(number, MOST_PARTS - count)
        largest = 1 + np.argsort(-np.bincount(found.ravel())[1:], kind="stable")[:room]
        numbers = np.full(number + 1, UNKNOWN, np.int16)
        numbers[np.sort(largest)] = np.arange(count + 1, count + 1 + room)
        inside = found > 0
        parts[inside] = numbers[found[inside]]
        count += room
    sizes = np.bincount(parts[parts > 0], minlength=count + 1)
    return Scene(parts, np.zeros(count + 1, np.int16), sizes >= MIN_PART)


@dataclass(frozen=True)
class Slices:
    """Draws from a folder of slices: a case, then one of its slices.

    Attributes:
        folder: of the slices.
        index: of the folder.
        patients: case -> patient, whose cases are kept for validation together.
    """

    folder: Path
    index: SliceIndex
    patients: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.index.source

    @property
    def has_labels(self) -> bool:
        return any(case.labelled for case in self.index.cases)

    def cases(self, *, validation: bool) -> list[SlicedCase]:
        """Cases with slices; those of one patient in ten are kept for validation where there are enough."""
        return self._parts[validation]

    @cached_property
    def _parts(self) -> dict[bool, list[SlicedCase]]:
        present = [case for case in self.index.cases if case.slices]
        origins = Origins(patients=self.patients)
        units = unit_numbers([case.name for case in present], origins)
        if len(present) < VAL_EVERY or units.max() == 0:
            return dict.fromkeys((False, True), present)
        held = (units % VAL_EVERY == 0).tolist()
        return {
            part: [case for case, is_held in zip(present, held) if is_held == part] for part in (False, True)
        }

    def draw(self, rng: np.random.Generator, *, validation: bool) -> tuple[np.ndarray, Scene]:
        """A picture uint8 (3, H, W) and its objects."""
        cases = self.cases(validation=validation)
        case = cases[int(rng.integers(len(cases)))]
        wants_label = rng.random() < LABELLED_CHANCE
        numbers = case.labelled if case.labelled and wants_label else range(case.slices)
        chosen = numbers[int(rng.integers(len(numbers)))]
        stored = mapped(self.folder / f"{case.number}_image.npy")[chosen]
        picture = np.array(np.broadcast_to(stored, (3, *stored.shape[1:])), order="C")
        if not case.labelled:
            return picture, scene_of_labels(np.zeros(picture.shape[1:], np.uint16))
        labels = np.array(mapped(self.folder / f"{case.number}_label.npy")[chosen])
        return picture, scene_of_labels(labels)
