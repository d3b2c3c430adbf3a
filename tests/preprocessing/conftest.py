"""A plan factory for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from samunet.data.labels import LabelSet
from samunet.planning.plan import Budget, DataConfiguration, IntensityProperties, Plan

CT = IntensityProperties(
    mean=40.0, median=38.0, std=25.0, min=-900.0, max=1200.0, percentile_00_5=-60.0, percentile_99_5=120.0
)


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    """Build a plan with a `3d` and a `2d` data configuration; keywords replace its parts."""

    def build(
        *,
        spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0),
        transpose: tuple[int, int, int] = (0, 1, 2),
        normalization: tuple[str, ...] = ("zscore",),
        labels: LabelSet | None = None,
        mask: bool = False,
    ) -> Plan:
        shared = {
            "normalization": normalization,
            "use_mask_for_norm": (mask,) * len(normalization),
            "display_window": ((-3.0, 3.0),) * len(normalization),
        }
        volume = DataConfiguration(
            name="3d",
            dimension=3,
            spacing_mm=spacing_mm,
            median_shape=(1.0,) * 3,
            max_shape=(9, 9, 9),
            **shared,
        )
        slices = replace(
            volume,
            name="2d",
            dimension=2,
            spacing_mm=spacing_mm[1:],
            median_shape=(1.0,) * 2,
            max_shape=(9, 9),
        )
        return Plan(
            name="samunetPlans",
            dataset="Dataset999_Test",
            fingerprint_hash="0" * 16,
            file_ending=".nii.gz",
            channel_names=tuple(f"channel{i}" for i in range(len(normalization))),
            labels=labels or LabelSet(labels={"background": (0,), "organ": (1,), "lesion": (2,)}),
            num_training=5,
            transpose_forward=transpose,
            transpose_backward=tuple(int(i) for i in np.argsort(transpose)),
            original_median_spacing_mm=spacing_mm,
            original_median_shape=(1.0,) * 3,
            intensity=(CT,) * len(normalization),
            budget=Budget(device="cpu", memory_gb=8.0, hours=1.0, disk_gb=10.0, gflops={}),
            data={"3d": volume, "2d": slices},
            configurations={},
            recommended="",
            verdicts=(),
        )

    return build
