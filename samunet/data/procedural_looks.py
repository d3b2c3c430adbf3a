"""Painting a scene: levels of grey, textures, partial volume, bias fields, noise of several kinds, colour."""

from __future__ import annotations

import numpy as np

from samunet.data.procedural_fields import blur, smooth_field, white
from samunet.data.scene import Scene


def paint(scene: Scene, rng: np.random.Generator, *, is_cells: bool, colour: float) -> np.ndarray:
    """Picture uint8 (3, S, S) of a scene.

    Args:
        scene: square.
        rng: source of all choices.
        is_cells: cells of one crowd look alike.
        colour: chance of colour.
    """
    size = scene.labels.shape[0]
    levels = _levels(scene, rng, alike=is_cells)
    grey = levels[scene.labels]
    grey = grey + _texture(scene, rng, size)
    if rng.random() < (0.35 if is_cells else 0.15):
        grey = _outlined(scene, grey, rng)
    grey = _seen_by_a_scanner(grey, rng, size)
    if rng.random() < colour:
        return _coloured(grey, scene, rng)
    low, high = _window(grey, rng)
    shown = np.clip((grey - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    return np.broadcast_to(shown, (3, size, size)).copy()


def _levels(scene: Scene, rng: np.random.Generator, *, alike: bool) -> np.ndarray:
    """Level of grey of each part, float32 about 0..1."""
    number = len(scene.parents)
    if alike:
        spread = rng.uniform(0.0, 0.15)
        step = rng.uniform(0.12, 0.8) * rng.choice((-1, 1))
        ground = rng.uniform(0.0, 1.0)
        levels = ground + step + spread * rng.standard_normal(number)
        inner = scene.parents > 0
        levels[inner] += rng.uniform(-0.6, 0.6)
        levels[0] = ground
        return levels.astype(np.float32)
    # A part differs from the one it lies in by a step that may be small: borders are not always plain.
    contrast = np.exp(rng.uniform(np.log(0.1), np.log(0.6)))
    levels = np.empty(number)
    levels[0] = 0.05 * rng.random() if rng.random() < 0.6 else rng.random()
    steps = rng.standard_normal(number) * contrast
    steps += np.sign(steps) * 0.06
    for part in range(1, number):
        levels[part] = levels[scene.parents[part]] + steps[part]
        if scene.parents[part] == 0:
            levels[part] = levels[0] + np.sign(0.5 - levels[0]) * (0.2 + abs(steps[part]))
    return levels.astype(np.float32)


def _texture(scene: Scene, rng: np.random.Generator, size: int) -> np.ndarray:
    """Mottling of two grains, or fibres; each part has its own share of both."""
    number = len(scene.parents)
    total = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(1, 3)):
        cells = int(np.exp(rng.uniform(np.log(5), np.log(size / 2))))
        across = cells if rng.random() < 0.7 else int(rng.integers(4, size // 2))
        grain = smooth_field(rng, size, cells, across)
        if rng.random() < 0.25:
            grain = np.abs(grain) * 1.5  # ridges and pits
        if rng.random() < 0.2:
            grain = (grain > rng.uniform(0, 1.2)).astype(np.float32) * 2
        share = np.exp(rng.normal(np.log(0.05), 0.7)) * rng.uniform(0.1, 1.6, number).astype(np.float32)
        total += np.minimum(share, 0.22)[scene.labels].astype(np.float32) * grain
    return total


def _outlined(scene: Scene, grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Membranes, capsules, the halo of phase contrast: borders brighter or darker."""
    labels = scene.labels
    border = np.zeros(labels.shape, np.float32)
    border[1:] += labels[1:] != labels[:-1]
    border[:, 1:] += labels[:, 1:] != labels[:, :-1]
    border = blur(np.minimum(border, 1), *([rng.uniform(0.6, 1.6)] * 2))
    return grey + float(rng.uniform(-0.9, 0.9)) * border


def _seen_by_a_scanner(grey: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """Partial volume, shading, noise."""
    sharpness = rng.uniform(0.4, 1.1) if rng.random() < 0.7 else rng.uniform(1.1, 3.0)
    anisotropy = rng.uniform(1, 2.5) if rng.random() < 0.2 else 1.0
    grey = blur(grey, sharpness * anisotropy, sharpness)
    if rng.random() < 0.5:
        field = smooth_field(rng, size, int(rng.integers(1, 4)))
        grey = grey * np.exp(float(rng.uniform(0.05, 0.4)) * field)
    if rng.random() < 0.25:  # uneven light, an added slope
        grey = grey + float(rng.uniform(0.03, 0.2)) * smooth_field(rng, size, 1)
    kind, strength = rng.integers(5), float(np.exp(rng.uniform(np.log(0.01), np.log(0.12))))
    if kind == 0:  # magnitude of a complex signal (MR)
        return np.hypot(grey + strength * white(rng, size), strength * white(rng, size))
    if kind == 1:  # speckle (ultrasound, OCT): correlated and multiplicative
        grain = blur(white(rng, size), rng.uniform(0.5, 1.0), rng.uniform(0.6, 1.8))
        return grey * np.exp(6 * strength * grain)
    if kind == 2:  # counted photons
        return grey + strength * np.sqrt(np.maximum(grey, 0.0)) * 1.5 * white(rng, size)
    if kind == 3:  # reconstructed, hence correlated noise (CT)
        noise = blur(white(rng, size), 0.8, 0.8) * 2.5
        return grey + strength * noise
    return grey + strength * white(rng, size)


def _window(grey: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Levels that become black and white; swapped ends give a negative."""
    low, high = np.percentile(grey[::4, ::4], (rng.uniform(0, 4), rng.uniform(96, 100)))
    spread = max(float(high - low), 0.05)
    low, high = low - rng.uniform(-0.05, 0.3) * spread, high + rng.uniform(-0.05, 0.3) * spread
    low, high = float(low), float(high)
    return (high, low) if rng.random() < 0.2 else (low, high)


def _coloured(grey: np.ndarray, scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Two dyes between a light (or black) ground: stained tissue, fluorescence, skin, endoscopy."""
    low, high = _window(grey, rng)
    amount = np.clip((grey - low) / (high - low), 0, 1)
    second = np.clip(
        rng.uniform(0, 0.6, len(scene.parents)).astype(np.float32)[scene.labels]
        + 0.2 * smooth_field(rng, grey.shape[0], int(rng.integers(3, 40))),
        0,
        1,
    )
    second = blur(second, 0.8, 0.8)
    if rng.random() < 0.6:  # light that dyes absorb (Beer and Lambert)
        dyes = rng.uniform(0.05, 1.8, (2, 3)).astype(np.float32)
        ground = rng.uniform(0.75, 1.0, 3).astype(np.float32)
        dense = dyes[0][:, None, None] * (1 - amount) + 0.5 * dyes[1][:, None, None] * second
        colours = ground[:, None, None] * np.exp(-dense)
    else:  # light that is added
        tints = rng.uniform(0, 1, (2, 3)).astype(np.float32)
        tints[0] /= tints[0].max()
        colours = tints[0][:, None, None] * amount + 0.4 * tints[1][:, None, None] * second
    return np.clip(colours * 255, 0, 255).astype(np.uint8)
