"""Random fields by small matrices: smooth fields, blur and resolution in a fraction of a millisecond."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=256)
def spline_matrix(size: int, cells: int) -> np.ndarray:
    """(size, cells + 3) float32: cubic B-splines over `cells` intervals, at pixel centres."""
    place = (np.arange(size) + 0.5) * cells / size
    first = np.minimum(place.astype(int), cells - 1)
    t = place - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1)
    matrix = np.zeros((size, cells + 3), np.float32)
    for offset in range(4):
        matrix[np.arange(size), first + offset] = weights[:, offset] / 6
    return matrix


def smooth_field(
    rng: np.random.Generator, size: int, cells: int, cells_across: int | None = None
) -> np.ndarray:
    """Random field (size, size) float32 of about unit deviation that varies over size / cells pixels.

    Args:
        rng: draws the coefficients.
        size: pixels a side.
        cells / cells_across: along rows and along columns (the same by default); different ones give fibres.
    """
    rows = spline_matrix(size, min(cells, size))
    columns = spline_matrix(size, min(cells_across or cells, size))
    coefficients = rng.standard_normal((rows.shape[1], columns.shape[1]), np.float32)
    coefficients *= 2.0
    return rows @ coefficients @ columns.T


@lru_cache(maxsize=64)
def blur_matrix(size: int, tenths: int) -> np.ndarray:
    """(size, size) float32: Gaussian of tenths / 10 pixels, each row normalised (edges keep their level)."""
    distance = np.arange(size)[:, None] - np.arange(size)[None]
    matrix = np.exp(-0.5 * (distance / (tenths / 10)) ** 2)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def blur(image: np.ndarray, sigma_y: float, sigma_x: float) -> np.ndarray:
    """Blur (S, S); sigmas in pixels, rounded to tenths, below 0.1 none."""
    size = image.shape[0]
    if sigma_y >= 0.1:
        image = blur_matrix(size, round(10 * sigma_y)) @ image
    if sigma_x >= 0.1:
        image = image @ blur_matrix(size, round(10 * sigma_x)).T
    return image


def white(rng: np.random.Generator, size: int) -> np.ndarray:
    """Unit normal noise (size, size) float32."""
    return rng.standard_normal((size, size), np.float32)
