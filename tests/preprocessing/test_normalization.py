from __future__ import annotations

import numpy as np
import pytest

from samunet.errors import SamunetError
from samunet.planning.plan import IntensityProperties
from samunet.preprocessing.normalization import normalize_channel

CT = IntensityProperties(
    mean=40.0, median=38.0, std=20.0, min=-900.0, max=1200.0, percentile_00_5=-60.0, percentile_99_5=120.0
)


def channel(low: float = -200, high: float = 300) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, (4, 6, 5)).astype(np.float32)


def test_zscore_uses_the_whole_image() -> None:
    normalized = normalize_channel(channel(), "zscore")
    assert abs(float(normalized.mean())) < 1e-5
    assert float(normalized.std()) == pytest.approx(1, abs=1e-5)


def test_zscore_inside_a_mask_leaves_the_outside_alone() -> None:
    image = channel()
    mask = np.zeros(image.shape, bool)
    mask[1:3, 2:5] = True
    image[~mask] = 0
    normalized = normalize_channel(image.copy(), "zscore", mask=mask)
    np.testing.assert_array_equal(normalized[~mask], 0)
    np.testing.assert_allclose(
        normalized[mask], (image[mask] - image[mask].mean()) / image[mask].std(), rtol=1e-5
    )


def test_ct_clips_and_scales_by_the_data_set() -> None:
    image = channel()
    normalized = normalize_channel(image.copy(), "ct", CT)
    np.testing.assert_allclose(normalized, (np.clip(image, -60, 120) - 40) / 20, rtol=1e-5, atol=1e-6)


def test_rescale_and_none_and_constant_images() -> None:
    rescaled = normalize_channel(channel(), "rescale_to_0_1")
    assert (float(rescaled.min()), float(rescaled.max())) == (0, 1)
    np.testing.assert_array_equal(normalize_channel(channel(), "none"), channel())
    for scheme in ("zscore", "rescale_to_0_1"):
        np.testing.assert_array_equal(normalize_channel(np.full((1, 2, 3), 7, np.float32), scheme), 0)


def test_rgb_divides_by_255_and_refuses_other_ranges() -> None:
    np.testing.assert_allclose(
        normalize_channel(channel(0, 255), "rgb_to_0_1"), channel(0, 255) / 255, rtol=1e-6
    )
    with pytest.raises(SamunetError, match=r"0\.\.255"):
        normalize_channel(channel(0, 4000), "rgb_to_0_1")
