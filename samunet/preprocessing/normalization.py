"""Intensity normalisation of one channel; nnU-Net's schemes and constants."""

from __future__ import annotations

import numpy as np

from samunet.errors import SamunetError
from samunet.planning.plan import IntensityProperties, Normalization

SMALLEST_STD = 1e-8


def normalize_channel(
    channel: np.ndarray,
    scheme: Normalization,
    intensity: IntensityProperties | None = None,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Normalise a float32 (Z, Y, X) channel in place and return it.

    Args:
        channel: intensities as read, cropped, not yet resampled.
        scheme: `zscore` (this image), `ct` (clip to and scale by the data set's foreground statistics),
            `rescale_to_0_1` (this image's range), `rgb_to_0_1` (divide by 255), `none`.
        intensity: the data set's foreground statistics; needed by `ct`.
        mask: bool (Z, Y, X); for `zscore` the statistics come from inside and the outside is left alone.

    Raises:
        SamunetError: an RGB image with values outside 0..255.
    """
    assert channel.dtype == np.float32
    if scheme == "zscore":
        _zscore(channel, mask)
    elif scheme == "ct":
        assert intensity is not None, "ct normalisation needs the data set's intensity statistics"
        np.clip(channel, intensity.percentile_00_5, intensity.percentile_99_5, out=channel)
        channel -= np.float32(intensity.mean)
        channel /= np.float32(max(intensity.std, SMALLEST_STD))
    elif scheme == "rescale_to_0_1":
        channel -= channel.min()
        channel /= max(channel.max(), np.float32(SMALLEST_STD))
    elif scheme == "rgb_to_0_1":
        low, high = channel.min(), channel.max()
        if low < 0 or high > 255:
            raise SamunetError(
                f"An RGB channel holds values from {low:g} to {high:g}; 8-bit colours lie in 0..255. "
                "Convert the images, or name the channel otherwise in dataset.json (`channel_names`)."
            )
        channel /= np.float32(255)
    else:
        assert scheme == "none", scheme
    return channel


def _zscore(channel: np.ndarray, mask: np.ndarray | None) -> None:
    if mask is None or mask.all():
        mean, std = channel.mean(), channel.std()
        channel -= mean
        channel /= max(std, np.float32(SMALLEST_STD))
        return
    inside = channel[mask]
    if inside.size:
        channel[mask] = (inside - inside.mean()) / max(inside.std(), np.float32(SMALLEST_STD))
