"""A picture of what a pretraining is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samunet.preprocessing.streams import SampleSource
from samunet.trainers.sampling import TRAIN, SampleKey
from samunet.whole_files import atomic_path

_COLOURS = np.array([[230, 80, 60], [70, 160, 230], [90, 200, 90], [230, 190, 50], [190, 90, 220]], np.uint8)


def draw_samples(source: SampleSource, number: int, path: Path, columns: int = 8) -> Path:
    """Samples in rows: each picture, and below it its objects in colours with the first prompts in white."""
    tiles = [_tile(source.sample(SampleKey(TRAIN, 0, index, False))) for index in range(number)]
    blank = np.zeros_like(tiles[0])
    columns = min(columns, number)
    tiles += [blank] * (-number % columns)
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(rows, 0)).save(temporary, format="PNG")
    return path


def _tile(sample: dict[str, Any]) -> np.ndarray:
    image = sample["image"].numpy().transpose(1, 2, 0)
    objects, points, labels = (sample[name].numpy() for name in ("objects", "points_xy", "labels"))
    below = image // 3
    for row, mask in enumerate(objects):
        below[mask] = below[mask] // 2 + _COLOURS[row % len(_COLOURS)] // 2
    for place, label in zip(points.reshape(-1, 2).astype(int), labels.ravel()):
        if label >= 0:
            x, y = place
            below[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = 255
    return np.concatenate([image, below], 0)
