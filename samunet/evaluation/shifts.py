"""Images as another scanner might have made them: six kinds of change in five severities. Pure functions.

Intensities are measured against each channel's own range: `low` and `high` are its percentiles 0.5 and 99.5
before the change, R = high - low. The geometry never changes. What is drawn at random (the field, the noise,
the sign of gamma) follows from (seed, case, kind), so the severities of a case differ in strength alone, and
severity 0 is the image itself. documentation/generalization.md has the formulas.

The kinds take planes of (Y, X) for slices and Z for the axis across them. A file may have its slices along
any axis, so `shifted` turns volumes before and back after the change.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from samunet.data.geometry import slice_axis, slices_first
from samunet.errors import SamunetError, unknown_name

ANISOTROPY = 2.0
"""An axis with more than this times the finest spacing keeps its resolution: slices are thick already."""
FWHM = 2.355
"""Width at half of the height of a Gaussian over its standard deviation."""
DEGREE = 3
"""Of the polynomial of a bias field."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and how strongly: spacing z, y, x in mm; strength, the severity's figure; generator of draws."""

    spacing_mm: Sequence[float]
    strength: float
    rng: np.random.Generator


Change = Callable[[np.ndarray, Place], np.ndarray]
"""(image (C, Z, Y, X) float32, slices along Z; place) -> the same shape."""


@dataclass(frozen=True)
class Shift:
    """One kind of change.

    Attributes:
        change: the function.
        strengths: of the severities 1 to 5.
        meaning: of a strength, with its unit.
    """

    change: Change
    strengths: tuple[float, ...]
    meaning: str


def _range(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles 0.5 and 99.5 of each channel, (C, 1, 1, 1), in the image's type: in a wider one everything
    that is calculated with them would take twice the memory."""
    low, high = np.percentile(image, (0.5, 99.5), axis=(1, 2, 3)).astype(image.dtype)
    return low[:, None, None, None], high[:, None, None, None]


def bias_field(image: np.ndarray, place: Place) -> np.ndarray:
    """low + (I - low) exp(s f); f smooth, mean 0, max |f| = 1, see `smooth_field`."""
    low, _ = _range(image)
    factor = (place.strength * smooth_field(image.shape[1:], place.rng)).astype(image.dtype)
    return low + (image - low) * np.exp(factor, out=factor)


def smooth_field(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """tanh of a random polynomial of degree 3 over (Z, Y, X), each axis running from -1 to 1, that has mean 0
    and deviation 1; then mean 0, largest size 1.

    Without tanh the corners alone would have the largest size, and the middle, where the patient is, a fifth.
    """
    z, y, x = np.ix_(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape))
    along_x = [np.zeros(()) for _ in range(DEGREE + 1)]  # coefficient of x ** c, (Z, Y, 1)
    for a in range(DEGREE + 1):
        for b in range(DEGREE + 1 - a):
            for c in range(DEGREE + 1 - a - b):
                along_x[c] = along_x[c] + rng.normal() * z**a * y**b
    field = np.zeros(tuple(shape))
    for c, coefficient in enumerate(along_x):
        field += coefficient * x**c
    field -= field.mean()
    field /= max(float(field.std()), 1e-12)
    np.tanh(field, out=field)
    field -= field.mean()
    field /= max(float(field.max()), -float(field.min()), 1e-12)
    return field


def gamma(image: np.ndarray, place: Place) -> np.ndarray:
    """low + R u^g with u = (I - low) / R and g = exp(s) or exp(-s); values outside 0..1 of u stay."""
    low, high = _range(image)
    span = np.maximum(high - low, 1e-12)
    share = (image - low) / span
    exponent = math.exp(place.strength if place.rng.random() < 0.5 else -place.strength)
    inside = (share > 0) & (share < 1)
    return np.where(inside, low + span * np.clip(share, 0, 1) ** exponent, image)


def noise(image: np.ndarray, place: Place) -> np.ndarray:
    """I + s R n, n normal and independent in every voxel."""
    low, high = _range(image)
    drawn = place.rng.standard_normal(image.shape).astype(image.dtype)
    return image + np.float32(place.strength) * (high - low) * drawn


def blur(image: np.ndarray, place: Place) -> np.ndarray:
    """Gaussian of standard deviation s times the finest spacing, in mm alike along all axes."""
    from scipy.ndimage import gaussian_filter

    sigma_mm = place.strength * _finest_mm(place, image.shape[1:])
    sigmas = [sigma_mm / spacing if n > 1 else 0 for spacing, n in zip(place.spacing_mm, image.shape[1:])]
    return np.asarray(gaussian_filter(image, [0, *sigmas], mode="nearest"))


def resolution(image: np.ndarray, place: Place) -> np.ndarray:
    """Sampled with voxels s times as long and interpolated linearly back; axes of thick slices keep theirs.

    The longer voxel averages: a Gaussian of standard deviation sqrt(s^2 - 1) / 2.355 voxels, whose width at
    half of its height makes up what a voxel of one lacks to s.
    """
    from scipy.ndimage import gaussian_filter1d, zoom

    if place.strength <= 1:
        return image
    finest, result = _finest_mm(place, image.shape[1:]), image
    for axis, (spacing, length) in enumerate(zip(place.spacing_mm, image.shape[1:]), start=1):
        coarse = max(1, round(length / place.strength))
        if spacing > ANISOTROPY * finest or coarse == length:
            continue
        sigma = math.sqrt(place.strength**2 - 1) / FWHM
        averaged = gaussian_filter1d(result, sigma, axis=axis, mode="nearest")
        factors = [coarse / length if i == axis else 1.0 for i in range(4)]
        reduced = zoom(averaged, factors, order=1, mode="nearest", grid_mode=True)
        result = zoom(reduced, [1 / f for f in factors], order=1, mode="nearest", grid_mode=True)
    return np.asarray(result)


def _finest_mm(place: Place, shape: Sequence[int]) -> float:
    """Finest spacing of the axes (Z, Y, X) along which there are voxels side by side; a single slice's
    thickness often is a file's placeholder."""
    return min([mm for mm, n in zip(place.spacing_mm, shape) if n > 1], default=min(place.spacing_mm))


def ghosting(image: np.ndarray, place: Place) -> np.ndarray:
    """low + (1 - s/2) (I - low) + s/2 (I - low) half the field of view along the rows' axis Y of the slices.

    It is what multiplying every second line of k-space along Y by 1 - s gives, if their number is even. Half
    of an odd number lies between two voxels: the ghost is half a voxel beside that of k-space.
    """
    low, _ = _range(image)
    above = image - low
    ghost = np.roll(above, image.shape[2] // 2, axis=2)
    return low + (1 - place.strength / 2) * above + place.strength / 2 * ghost


SHIFTS: dict[str, Shift] = {
    "bias_field": Shift(bias_field, (0.15, 0.3, 0.45, 0.6, 0.75), "largest log of the factor"),
    "gamma": Shift(gamma, (0.15, 0.3, 0.45, 0.6, 0.75), "size of the exponent's log"),
    "noise": Shift(noise, (0.02, 0.04, 0.07, 0.1, 0.15), "standard deviation over R"),
    "blur": Shift(blur, (0.5, 0.75, 1.0, 1.5, 2.0), "standard deviation over the finest spacing"),
    "resolution": Shift(resolution, (1.25, 1.5, 2.0, 2.5, 3.0), "length of a voxel over the present one"),
    "ghosting": Shift(ghosting, (0.1, 0.2, 0.3, 0.4, 0.5), "amplitude lost by every second line"),
}
MOST_COLOUR = 255
SEVERITIES = tuple(range(1, 6))


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A kind in a severity; `clean` with severity 0 is the image as it is."""

    kind: str
    severity: int
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.severity}"

    @property
    def strength(self) -> float:
        """The severity's figure; 0 for the image as it is."""
        return SHIFTS[self.kind].strengths[self.severity - 1] if self.severity else 0.0


def check_condition(kind: str, severity: int) -> None:
    """Refuse what does not exist.

    Raises:
        SamunetError: an unknown kind or severity.
    """
    if kind not in SHIFTS:
        raise unknown_name("shift", kind, SHIFTS)
    if severity not in SEVERITIES:
        raise SamunetError(f"Severity {severity} does not exist: there are 1 to {SEVERITIES[-1]}.")


def shifted(
    image: np.ndarray,
    spacing_mm: Sequence[float],
    case: str,
    condition: Condition,
    colours: Sequence[int] = (),
) -> np.ndarray:
    """The image as the condition has it.

    Args:
        image: (C, Z, Y, X), as in the file; is not changed.
        spacing_mm: z, y, x.
        case: name, which the draws follow from.
        condition: kind, severity, seed.
        colours: channels of 8-bit colours, which stay within 0..255 as a camera's do.

    Returns:
        float32, the same shape. A `masked_background` stays 0, as it would after any scan.
    """
    if condition.severity == 0:
        return image.astype(np.float32)
    check_condition(condition.kind, condition.severity)
    axis = slice_axis(spacing_mm, image.shape[1:])
    image = np.moveaxis(image, axis + 1, 1)
    words = (condition.seed, zlib.crc32(case.encode()), list(SHIFTS).index(condition.kind))
    place = Place(
        spacing_mm=tuple(spacing_mm[a] for a in slices_first(axis)),
        strength=condition.strength,
        rng=np.random.default_rng(np.random.SeedSequence(words)),
    )
    changed = SHIFTS[condition.kind].change(image.astype(np.float32), place).astype(np.float32)
    changed[list(colours)] = changed[list(colours)].clip(0, MOST_COLOUR)
    changed[:, masked_background(image)] = 0
    return np.ascontiguousarray(np.moveaxis(changed, 1, axis + 1))


def masked_background(image: np.ndarray) -> np.ndarray:
    """Where an image (C, Z, Y, X) with its slices along Z was masked out, bool (Z, Y, X).

    Voxels that are exactly 0 in all channels of an image without negative values, as far as they hang
    together with the edge of their slice: a dark voxel inside the patient is no background.
    """
    from scipy.ndimage import binary_fill_holes

    empty = (image == 0).all(0) & (image.min() >= 0)
    for plane in empty:
        if plane.any():
            plane &= ~binary_fill_holes(~plane)
    return empty
