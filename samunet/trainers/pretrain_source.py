"""Samples of a pretraining: a picture, some of its objects with first prompts, and all random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from samunet.data.geometry import in_all_channels
from samunet.data.procedural import MIN_PART, ProceduralSettings, generate
from samunet.data.scene import UNKNOWN, Scene
from samunet.networks.sam.variants import PATCH, PIXEL_MEAN
from samunet.trainers.pretraining import PretrainSettings
from samunet.trainers.prompting import first_prompt
from samunet.trainers.sampling import VAL, SampleKey, sample_generator

WHOLE_CHANCE = 0.6
"""Of asking for an object with all that lies in it, where there is a choice: SAM's ambiguity."""
SMALLEST_CROP = 0.5
VAL_SEED = 2**31
"""Added to the seed of generated pictures for validation, which training thus never sees."""


class Collection(Protocol):
    """Where pictures come from; picklable."""

    @property
    def name(self) -> str:
        """As the log and the card call it."""

    def draw(self, rng: np.random.Generator, *, validation: bool) -> tuple[np.ndarray, Scene]:
        """A picture, uint8 (3, H, W), and its objects (none where it has no labels)."""


@dataclass(frozen=True)
class Generated:
    """Pictures of the generator.

    Attributes:
        seed: of the generator.
        size: side in pixels.
    """

    seed: int
    size: int
    name: str = "synthetic"

    def draw(self, rng: np.random.Generator, *, validation: bool) -> tuple[np.ndarray, Scene]:
        seed = self.seed + VAL_SEED if validation else self.seed
        return generate(seed, int(rng.integers(2**62)), ProceduralSettings(size=self.size))


@dataclass(frozen=True)
class PretrainSource:
    """Makes the sample of a key.

    Attributes:
        collections: to draw from.
        shares: chance of each.
        settings: of the pretraining.
    """

    collections: Sequence[Collection]
    shares: Sequence[float]
    settings: PretrainSettings

    def sample(self, key: SampleKey) -> dict[str, Tensor]:
        settings = self.settings
        rng = sample_generator(settings.seed, 0, key)
        chances = np.asarray(self.shares, float)
        collection = self.collections[int(rng.choice(len(chances), p=chances / chances.sum()))]
        picture, scene = collection.draw(rng, validation=key.stream == VAL)
        return self.prepare(picture, scene, rng)

    def prepare(self, picture: np.ndarray, scene: Scene, rng: np.random.Generator) -> dict[str, Tensor]:
        """The sample of a picture, cropped, turned, brought to the encoder's size and prompted."""
        settings = self.settings
        size = settings.size
        picture, labels = turned(*cropped(picture, scene.labels, rng), rng)
        real = real_tokens(fitted_shape(labels.shape, size), size)
        image, labels = fitted(picture, labels, size)
        objects, points, kinds = self._objects(Scene(labels, scene.parents, scene.usable), rng)
        grid = size // PATCH
        return {
            "image": image,
            "objects": torch.from_numpy(objects),
            "known": torch.from_numpy(labels != UNKNOWN),
            "points_xy": torch.from_numpy(points),
            "labels": torch.from_numpy(kinds),
            "real": torch.from_numpy(real),
            "clicks": torch.from_numpy(rng.random((settings.objects, max(settings.clicks, 1)), np.float32)),
            "order": torch.from_numpy(rng.random((grid, grid), np.float32)),
            "mixing": torch.from_numpy(rng.random(2, np.float32)),
        }

    def _objects(self, scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks (K, S, S), first points (K, 2, 2) and their labels (K, 2); empty without any object."""
        count = self.settings.objects
        present, pixels = np.unique(scene.labels[scene.labels > 0], return_counts=True)
        usable = scene.usable[present] & (pixels >= MIN_PART)
        chosen = drawn(present[usable], np.sqrt(pixels[usable]), count, rng)
        masks = np.zeros((count, *scene.labels.shape), bool)
        points, kinds = np.zeros((count, 2, 2), np.float32), np.full((count, 2), -1, np.int64)
        for row, part in enumerate(chosen.tolist()):
            whole = rng.random() < WHOLE_CHANCE
            masks[row] = scene.mask(part, whole=whole)
            points[row], kinds[row] = first_prompt(masks[row], rng)
        return masks, points, kinds


def drawn(parts: np.ndarray, sides: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `count` parts, the larger the likelier; again from the start where there are fewer.

    Small parts are by far the most numerous ones, and of those under a patch there is little to learn. A part
    that comes again gets another prompt, so that no row of the decoder's batch is wasted.
    """
    if not len(parts):
        return parts
    chance = sides / sides.sum()
    rounds = [rng.choice(parts, len(parts), replace=False, p=chance) for _ in range(-(-count // len(parts)))]
    return np.concatenate(rounds)[:count]


def cropped(
    picture: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Half of the time a part of the picture: at least half of each side, of its shape or another."""
    if rng.random() < 0.5:
        return picture, labels
    height, width = labels.shape
    rows, columns = (max(8, int(n * rng.uniform(SMALLEST_CROP, 1))) for n in (height, width))
    rows, columns = min(rows, height), min(columns, width)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    box = (slice(top, top + rows), slice(left, left + columns))
    return picture[in_all_channels(box)], labels[box]


def turned(
    picture: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mirrored and turned by multiples of 90 degrees."""
    quarter, mirror = int(rng.integers(4)), rng.random() < 0.5
    picture, labels = np.rot90(picture, quarter, (1, 2)), np.rot90(labels, quarter)
    if mirror:
        picture, labels = picture[..., ::-1], labels[..., ::-1]
    return np.ascontiguousarray(picture), np.ascontiguousarray(labels)


def fitted(picture: np.ndarray, labels: np.ndarray, size: int) -> tuple[Tensor, np.ndarray]:
    """Longest side to `size`, aspect kept, padded right and below: uint8 (3, S, S) and labels (S, S).

    The padding has SAM's mean colour, which is (nearly) 0 once it is normalised.
    """
    height, width = labels.shape
    rows, columns = fitted_shape(labels.shape, size)
    image, smaller = torch.from_numpy(picture), size < max(height, width)
    if (rows, columns) != (height, width):
        image = functional.interpolate(
            image[None].float(),
            (rows, columns),
            mode="bilinear",
            align_corners=False,
            antialias=smaller,
        )[0]
        image = image.round().clamp(0, 255).byte()
        down = ((np.arange(rows) + 0.5) * height / rows).astype(int)
        right = ((np.arange(columns) + 0.5) * width / columns).astype(int)
        labels = labels[down][:, right]
    full = torch.tensor(PIXEL_MEAN).round().byte().view(3, 1, 1).repeat(1, size, size)
    full[:, :rows, :columns] = image
    padded = np.zeros((size, size), labels.dtype)
    padded[:rows, :columns] = labels
    return full, padded


def fitted_shape(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Rows and columns of a picture (H, W) whose longest side becomes `size`."""
    scale = size / max(shape)
    rows, columns = (min(size, max(1, int(n * scale + 0.5))) for n in shape)
    return rows, columns


def real_tokens(shape: tuple[int, int], size: int) -> np.ndarray:
    """(g, g) boolean: patches that hold at least a part of a picture of `shape`, not padding alone."""
    starts = np.arange(size // PATCH) * PATCH
    return np.logical_and.outer(starts < shape[0], starts < shape[1])
