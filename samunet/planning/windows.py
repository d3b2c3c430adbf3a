"""What a plan takes from the fingerprint besides sizes: display windows, and axes that may be mirrored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samunet.data.geometry import Geometry, left_right_axis
from samunet.planning.fingerprint import ChannelStatistics, Fingerprint
from samunet.planning.plan import IntensityProperties, Normalization

Window = tuple[float, float]
SMALLEST_STD = 1e-8
"""nnU-Net divides by no less."""
AXIS_NAMES = "zyx"


def display_windows(
    fingerprint: Fingerprint, schemes: Sequence[Normalization], masked: Sequence[bool]
) -> tuple[Window, ...]:
    """Per channel, the stored intensities that SAM sees as 0 and 255.

    z-score: median over the cases of the normalised 0.5 and 99.5 percentiles; CT: the normalised clip bounds;
    0..1 for the schemes that end there; median percentiles where intensities are stored as they are.
    """
    windows = []
    for channel, (scheme, inside) in enumerate(zip(schemes, masked)):
        cases = [(case.channels_in_mask if inside else case.channels)[channel] for case in fingerprint.cases]
        windows.append(_not_flat(_window(scheme, cases, fingerprint.intensity[channel])))
    return tuple(windows)


def _window(
    scheme: Normalization, cases: Sequence[ChannelStatistics], intensity: IntensityProperties
) -> Window:
    if scheme in ("rescale_to_0_1", "rgb_to_0_1"):
        return 0.0, 1.0
    if scheme == "ct":
        std = max(intensity.std, SMALLEST_STD)
        low, high = intensity.percentile_00_5, intensity.percentile_99_5
        return (low - intensity.mean) / std, (high - intensity.mean) / std
    bounds = np.asarray([(case.percentile_00_5, case.percentile_99_5) for case in cases])
    if scheme == "zscore":
        mean = np.asarray([[case.mean] for case in cases])
        std = np.maximum(np.asarray([[case.std] for case in cases]), SMALLEST_STD)
        bounds = (bounds - mean) / std
    low, high = np.median(bounds, axis=0)
    return float(low), float(high)


def _not_flat(window: Window) -> Window:
    low, high = round(window[0], 4), round(window[1], 4)
    return (low, high) if high > low else (low, low + 1.0)


def mirroring(fingerprint: Fingerprint, forward: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """Axes (transposed) that may be mirrored, and the sentence on what was left out.

    Where labels come in left and right, a mirrored left is no right: the axis along which a patient's left
    and right lie, judged by each case's direction cosines, is not mirrored.
    """
    if not fingerprint.laterality_pairs:
        return (0, 1, 2), ""
    axes = set()
    for case in fingerprint.cases:
        geometry = Geometry(shape=case.shape, spacing_mm=case.spacing_mm, direction=case.direction)
        axes.add(left_right_axis(geometry))
    left_out = {tuple(forward).index(axis) for axis in axes}
    left, right = fingerprint.laterality_pairs[0]
    names = " and ".join(AXIS_NAMES[axis] for axis in sorted(axes))
    spread = "" if len(axes) == 1 else " (the cases' orientations differ)"
    reason = (
        f"Labels come in left and right ({left}, {right}), so the file's {names} axis, left to right by the "
        f"direction cosines{spread}, is not mirrored."
    )
    return tuple(axis for axis in range(3) if axis not in left_out), reason
