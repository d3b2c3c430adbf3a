"""Pictures with objects made on the fly: organs, vessels, cells of no patient. No torch, files or licence.

A scene is a map of visible parts and a tree (which part lies in which): bodies with organs that nest and
touch, tissues grown from random fields, tubes, crowds of cells. `procedural_looks` paints it as one of many
kinds of image. Picture i of a seed depends on (seed, i) only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from samunet.data.procedural_fields import smooth_field
from samunet.data.procedural_looks import paint
from samunet.data.scene import Scene

MIN_PART = 12
"""Pixels below which a visible part is no object."""
MAX_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class ProceduralSettings:
    """What is drawn.

    Attributes:
        size: side of the square pictures in pixels, at least 32.
        colour: share of pictures in colour.
        scenes: chance of each kind of scene: body, organs, tissues, tubes, cells.
    """

    size: int = 224
    colour: float = 0.3
    scenes: tuple[float, float, float, float, float] = (0.28, 0.2, 0.14, 0.13, 0.25)


@dataclass
class _Canvas:
    """A scene being drawn: `labels` (S, S) int16, `parents` by part, coordinates in -1..1 bent at random."""

    size: int
    rng: np.random.Generator
    labels: np.ndarray = field(init=False)
    parents: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        self.labels = np.zeros((self.size, self.size), np.int16)
        axis = (np.arange(self.size, dtype=np.float32) + 0.5) * (2 / self.size) - 1
        bend = float(self.rng.uniform(0, 0.22))
        cells = int(self.rng.integers(3, 8))
        self.x = axis[None] + bend * smooth_field(self.rng, self.size, cells)
        self.y = axis[:, None] + bend * smooth_field(self.rng, self.size, cells)

    def add(self, mask: np.ndarray, parent: int = 0) -> int:
        """Paint a part over what lies there; its number."""
        self.parents.append(parent)
        number = len(self.parents) - 1
        self.labels[mask] = number
        return number

    def blob(self, centre_xy: tuple[float, float], radius: float, aspect: float = 1.6) -> np.ndarray:
        """Level (S, S) of a smooth closed shape, below 1 inside."""
        rng = self.rng
        # Plain floats: a float64 scalar of numpy would make the arrays float64, at four times the time.
        turn, long = float(rng.uniform(0, np.pi)), float(np.sqrt(rng.uniform(1, aspect)))
        cosine, sine = math.cos(turn), math.sin(turn)
        along, across = 1 / float(radius * long), long / float(radius)
        dx, dy = self.x - float(centre_xy[0]), self.y - float(centre_xy[1])
        u = (cosine * along) * dx + (sine * along) * dy
        v = (cosine * across) * dy - (sine * across) * dx
        if rng.random() < 0.4:  # a bean, as kidneys and ventricles are
            v = v + float(rng.uniform(-0.55, 0.55)) * (u * u - 0.4)
        u, v = u * u, v * v
        level = u + v if rng.random() < 0.7 else np.sqrt(u * u + v * v)  # an ellipse, or squarer
        lobes = float(rng.uniform(0, 0.35)) * smooth_field(rng, self.size, int(rng.integers(4, 12)))
        return level + lobes


def generate(seed: int, index: int, settings: ProceduralSettings | None = None) -> tuple[np.ndarray, Scene]:
    """Picture `index` of a seed.

    Args:
        seed / index: not negative; the only source of randomness.
        settings: None takes the defaults.

    Returns:
        uint8 (3, S, S), and its scene; almost always with one object at least.
    """
    settings = settings or ProceduralSettings()
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    for _ in range(MAX_TRIES):
        kind = int(rng.choice(len(_KINDS), p=np.asarray(settings.scenes) / sum(settings.scenes)))
        canvas = _Canvas(settings.size, rng)
        _KINDS[kind](canvas)
        scene = _finished(canvas)
        if scene.count:
            break
    picture = paint(scene, rng, is_cells=_KINDS[kind] is _cells, colour=settings.colour)
    return picture, scene


def _finished(canvas: _Canvas) -> Scene:
    """Drop parts of a few pixels from the objects (they stay in the picture) and check the tree."""
    sizes = np.bincount(canvas.labels.ravel(), minlength=len(canvas.parents))
    return Scene(canvas.labels, np.asarray(canvas.parents, np.int16), sizes >= MIN_PART)


def _body(canvas: _Canvas) -> None:
    """A trunk or a head: outline, a rim, organs inside with parts of their own, vessels, bones."""
    rng = canvas.rng
    centre = (float(rng.normal(0, 0.08)), float(rng.normal(0, 0.08)))
    outline = canvas.blob(centre, rng.uniform(0.7, 1.0), aspect=1.7)
    body = canvas.add(outline < 1)
    rim = rng.uniform(0.06, 0.3)
    inside = outline < 1 - rim
    inner = canvas.add(inside, body)
    if rng.random() < 0.5:
        _grow_tissues(canvas, inside, inner, int(rng.integers(2, 5)))
    for _ in range(rng.integers(2, 8)):
        place = rng.uniform(-0.62, 0.62, 2)
        _organ(canvas, (place[0], place[1]), rng.uniform(0.1, 0.42), inside, inner)
    for _ in range(rng.integers(0, 5)):  # vessels cut across, bones
        place = rng.uniform(-0.55, 0.55, 2)
        level = canvas.blob((place[0], place[1]), rng.uniform(0.035, 0.11), aspect=1.3)
        canvas.add((level < 1) & inside, inner)


def _organ(
    canvas: _Canvas, centre: tuple[float, float], radius: float, where: np.ndarray, parent: int
) -> None:
    rng = canvas.rng
    level = canvas.blob(centre, radius)
    mask = (level < 1) & where
    organ = canvas.add(mask, parent)
    if rng.random() < 0.35:  # a wall around a cavity: heart, bowel, bladder
        canvas.add((level < rng.uniform(0.25, 0.75)) & mask, organ)
    elif rng.random() < 0.35:  # lesions
        for _ in range(rng.integers(1, 4)):
            place = np.asarray(centre) + rng.uniform(-0.6, 0.6, 2) * radius
            lesion = canvas.blob((place[0], place[1]), radius * rng.uniform(0.12, 0.4))
            canvas.add((lesion < 1) & mask, organ)


def _organs(canvas: _Canvas) -> None:
    """Organs that fill the frame, touch and overlap: a close view, or a lesion on skin."""
    rng = canvas.rng
    everywhere = np.ones_like(canvas.labels, bool)
    for _ in range(rng.integers(1, 7)):
        place = rng.uniform(-0.8, 0.8, 2)
        _organ(canvas, (place[0], place[1]), rng.uniform(0.15, 0.65), everywhere, 0)


def _grow_tissues(canvas: _Canvas, where: np.ndarray, parent: int, count: int) -> None:
    """Regions that share all their borders: each place belongs to the random field that is highest there."""
    cells = int(canvas.rng.integers(3, 9))
    fields = np.stack([smooth_field(canvas.rng, canvas.size, cells) for _ in range(count)])
    winner = fields.argmax(0)
    for index in range(1, count):
        canvas.add((winner == index) & where, parent)


def _tissues(canvas: _Canvas) -> None:
    """Glands, folds and layers."""
    rng = canvas.rng
    everywhere = np.ones_like(canvas.labels, bool)
    if rng.random() < 0.5:
        _grow_tissues(canvas, everywhere, 0, int(rng.integers(2, 6)))
        return
    turn, waves = float(rng.uniform(0, np.pi)), float(rng.uniform(0.6, 3.0))
    height = (waves * math.cos(turn)) * canvas.x + (waves * math.sin(turn)) * canvas.y
    height = height + float(rng.uniform(0, 0.5)) * smooth_field(rng, canvas.size, int(rng.integers(3, 9)))
    cuts = np.sort(rng.uniform(height.min(), height.max(), rng.integers(2, 7)))
    bands = np.searchsorted(cuts, height.ravel()).reshape(height.shape)
    for index in range(1, len(cuts)):
        canvas.add(bands == index)


def _tubes(canvas: _Canvas) -> None:
    """Winding tubes that cross, over a tissue or none; some have a wall."""
    rng = canvas.rng
    everywhere = np.ones_like(canvas.labels, bool)
    if rng.random() < 0.5:
        place = rng.uniform(-0.4, 0.4, 2)
        _organ(canvas, (place[0], place[1]), rng.uniform(0.4, 0.9), everywhere, 0)
    for _ in range(rng.integers(1, 7)):
        turn = float(rng.uniform(0, np.pi))
        cosine, sine = math.cos(turn), math.sin(turn)
        u, v = cosine * canvas.x + sine * canvas.y, cosine * canvas.y - sine * canvas.x
        path, width = _wave(rng, u, (-0.7, 0.7), (0.0, 0.28)), _wave(rng, u, (0.018, 0.13), (0.0, 0.03))
        distance = np.abs(v - path)
        start = rng.uniform(-1.6, 0.4)
        part = (u > start) & (u < start + rng.uniform(0.5, 2.5))
        tube = canvas.add((distance < width) & part)
        if rng.random() < 0.3:
            canvas.add((distance < rng.uniform(0.4, 0.75) * width) & part, tube)


def _wave(
    rng: np.random.Generator, u: np.ndarray, offset: tuple[float, float], swing: tuple[float, float]
) -> np.ndarray:
    """A sine of `u` (S, S) around an offset; both its size and the offset are drawn from a range."""
    middle, amount = float(rng.uniform(*offset)), float(rng.uniform(*swing))
    return middle + amount * np.sin(float(rng.uniform(1.2, 6)) * u + float(rng.uniform(0, 2 * np.pi)))


def _cells(canvas: _Canvas) -> None:
    """A crowd of cells, each within a small box; neighbours share the border where their levels meet."""
    rng, size = canvas.rng, canvas.size
    radius = rng.uniform(0.02, 0.12) * size if rng.random() < 0.8 else rng.uniform(0.1, 0.22) * size
    density, spread = rng.uniform(0.25, 1.5), rng.uniform(0.05, 0.35)
    count = int(np.clip(density * size * size / (np.pi * radius**2), 2, 130))
    aspect, lobes = rng.uniform(1.0, 2.6), rng.uniform(0, 0.25)
    has_nuclei = rng.random() < 0.35
    best = np.ones((size, size), np.float32)
    clusters = rng.uniform(0, size, (int(rng.integers(1, 6)), 2)) if rng.random() < 0.3 else None
    for _ in range(count):
        centre = rng.uniform(0, size, 2)
        if clusters is not None:
            centre = clusters[rng.integers(len(clusters))] + rng.normal(0, 0.12 * size, 2)
        shape = (radius * math.exp(spread * rng.normal()), math.sqrt(rng.uniform(1, aspect)), float(lobes))
        _cell(canvas, best, centre, shape, has_nuclei)


def _cell(
    canvas: _Canvas,
    best: np.ndarray,
    centre: np.ndarray,
    shape: tuple[float, float, float],
    has_nucleus: bool,
) -> None:
    """Draw a cell of (radius in pixels, elongation, lobes); `best` keeps the lowest level of each pixel."""
    rng, (radius, long, lobes) = canvas.rng, shape
    reach = radius * long * 1.3 + 2
    low = np.clip((centre - reach).astype(int), 0, canvas.size)
    high = np.clip((centre + reach).astype(int), 0, canvas.size)
    if (high <= low).any():
        return
    box = (slice(low[0], high[0]), slice(low[1], high[1]))
    dy = (np.arange(low[0], high[0], dtype=np.float32) - float(centre[0]))[:, None]
    dx = (np.arange(low[1], high[1], dtype=np.float32) - float(centre[1]))[None]
    turn, *wave = (float(angle) for angle in rng.uniform(0, 2 * np.pi, 3))
    u = (math.cos(turn) * dx + math.sin(turn) * dy) * (1 / (radius * long))
    v = (math.cos(turn) * dy - math.sin(turn) * dx) * (long / radius)
    level = u * u + v * v
    level = level * (1 + lobes * (np.sin(2.5 * u + wave[0]) + np.sin(2.5 * v + wave[1])))
    wins = level < best[box]
    if not wins.any():
        return
    best[box][wins] = level[wins]
    canvas.parents.append(0)
    cell = len(canvas.parents) - 1
    canvas.labels[box][wins] = cell
    if has_nucleus:
        canvas.parents.append(cell)
        canvas.labels[box][wins & (level < rng.uniform(0.1, 0.4))] = cell + 1


_KINDS: tuple[Callable[[_Canvas], None], ...] = (_body, _organs, _tissues, _tubes, _cells)
