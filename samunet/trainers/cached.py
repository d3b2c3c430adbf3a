"""Samples from the embedding cache: a case, one of its slices, one of its stored views."""

from __future__ import annotations

import numpy as np

from samunet.preprocessing.embeddings import EmbeddingCache
from samunet.preprocessing.streams import Sample
from samunet.trainers.batches import SourceSettings, draw_of
from samunet.trainers.sampling import TRAIN, SampleKey, sample_generator


class EmbeddingSource:
    """Draws like PatchSource: forced samples are slices in proportion to the voxels of a random class.

    Args:
        cache: complete for all training and validation cases.
        settings: cases, seed, batch.
        views: views a training sample is drawn from; validation takes the plain slice, view 0.
    """

    def __init__(self, cache: EmbeddingCache, settings: SourceSettings, views: int) -> None:
        self.cache = cache
        self.settings = settings
        self.views = views
        self.mirrored_axes = settings.augmentation.mirrored_axes if views > 1 else ()

    def sample(self, key: SampleKey) -> Sample:
        """{"level_0": (E, h, w) float16, ..., "target": (T, *patch) uint8, "draw": (DRAWS,) float32}."""
        settings = self.settings
        rng = sample_generator(settings.seed, settings.fold, key)
        names = settings.names(key.stream)
        case = names[int(rng.integers(len(names)))]
        chances = item_chances(*self.cache.tables(case), settings, key, rng)
        index = int(rng.choice(len(chances), p=chances))
        view = int(rng.integers(self.views)) if key.stream == TRAIN else 0
        return {**self.cache.read(case, view, index), "draw": draw_of(rng)}


def item_chances(
    counts: np.ndarray,
    annotated: np.ndarray,
    settings: SourceSettings,
    key: SampleKey,
    rng: np.random.Generator,
) -> np.ndarray:
    """Probability of each item, (N,).

    Args:
        counts: voxels per item and foreground output, (N, K_fg).
        annotated: voxels per item that are not ignored, (N,).
        settings: tell whether there is an ignore label.
        key: of the sample; tells whether it is forced.
        rng: draws the class of a forced sample.
    """
    weights: np.ndarray | None = None
    if key.forced:
        present = np.flatnonzero(counts.sum(0))
        if present.size:
            weights = counts[:, present[int(rng.integers(present.size))]]
    if weights is None and settings.has_ignore and annotated.sum() > 0:
        weights = annotated
    if weights is None:
        return np.full(len(counts), 1 / len(counts))
    return weights / weights.sum()
