"""nnU-Net's rules: the golden vectors of nnunetv2 2.8.1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from samunet.data.geometry import resampled_shape
from samunet.networks.unet_topology import unet_cost, unet_topology
from samunet.planning import memory
from samunet.planning.memory import Load, output_values
from samunet.planning.plan import Budget
from samunet.planning.rules import (
    UNetRequest,
    masked_normalization,
    needs_low_resolution,
    normalization_scheme,
    plan_unet_patch,
    resampled_shapes,
    target_spacing,
    transpose_axes,
)

CT = (
    [(3, 0.76, 0.76), (2.5, 0.8, 0.8), (5, 0.7, 0.7), (1, 0.75, 0.75), (3, 0.76, 0.76)],
    [(147, 512, 512), (180, 512, 512), (90, 512, 512), (480, 512, 512), (148, 512, 512)],
)
CARDIAC = (
    [(10, 1.56, 1.56), (10, 1.4, 1.4), (5, 1.6, 1.6), (10, 1.5, 1.5), (8, 1.56, 1.56)],
    [(9, 232, 256), (10, 240, 256), (14, 216, 256), (8, 256, 256), (9, 224, 200)],
)
BRAIN = ([(1, 1, 1)] * 5, [(138, 170, 138)] * 5)
TINY = ([(1, 1, 1)] * 5, [(36, 50, 35)] * 5)
RGB = ([(999, 1, 1)] * 5, [(1, 512, 512)] * 5)


def requests(entries, num_cases, num_labels, num_inputs=1, **changes):
    """2D and 3D requests as the planner makes them, with the spacing and median shape."""
    spacings, shapes = entries
    target = target_spacing(spacings, shapes)
    median = np.median(resampled_shapes(spacings, shapes, target), axis=0)
    forward, _ = transpose_axes(target, median)
    spacing = tuple(target[a] for a in forward)
    median = tuple(float(median[a]) for a in forward)
    common = dict(num_inputs=num_inputs, num_labels=num_labels, **changes)
    common["dataset_voxels"] = float(np.prod(median)) * num_cases
    flat = UNetRequest(spacing_mm=spacing[1:], median_shape=median[1:], **common)
    return flat, UNetRequest(spacing_mm=spacing, median_shape=median, **common)


def test_anisotropic_ct():
    flat, full = requests(CT, 30, 14)
    assert full.spacing_mm == pytest.approx((1.6, 0.76, 0.76))
    assert full.median_shape == (281, 512, 512)
    patch = plan_unet_patch(full)
    assert (patch.patch_size, patch.batch_size) == ((80, 160, 128), 2)
    assert needs_low_resolution(full, patch)
    slices = plan_unet_patch(flat)
    assert (slices.patch_size, slices.batch_size) == ((512, 512), 12)


def test_cardiac_like():
    flat, full = requests(CARDIAC, 200, 4)
    assert full.spacing_mm == pytest.approx((6.2, 1.56, 1.56))
    assert full.median_shape == (13, 224, 246)
    patch = plan_unet_patch(full)
    assert (patch.patch_size, patch.batch_size) == ((14, 224, 256), 5)
    assert not needs_low_resolution(full, patch)
    slices = plan_unet_patch(flat)
    assert (slices.patch_size, slices.batch_size) == ((224, 256), 56)


@pytest.mark.parametrize(
    ("spacing", "median", "patch"),
    [
        ((10, 1.5, 1.5), (12.5, 224, 224), (14, 224, 224)),
        ((1.5, 1.5), (224.5, 224), (256, 224)),
        ((5, 0.8, 0.8), (20.5, 320, 320), (24, 320, 320)),
        ((1, 1, 1), (64.5, 96, 96), (80, 96, 96)),
        ((20, 1, 1), (6.5, 96, 96), (7, 96, 96)),
    ],
)
def test_half_a_voxel_of_the_median_is_kept(spacing, median, patch):
    """nnU-Net pools and pads the median of an even number of cases as it is, so a patch may grow by a step.

    Worked out by hand from its rule: an axis is halved, and rounded up, while it has 8 voxels, and the
    patch is what holds the median and can be halved as often.
    """
    assert unet_topology(spacing, median).patch_size == patch
    request = UNetRequest(
        spacing_mm=spacing,
        median_shape=median,
        num_inputs=1,
        num_labels=2,
        dataset_voxels=1e9,
        memory_gb=80,
    )
    assert plan_unet_patch(request).patch_size == patch


@pytest.mark.parametrize("num_inputs", [1, 4])
def test_brain(num_inputs):
    flat, full = requests(BRAIN, 484, 4, num_inputs)
    patch = plan_unet_patch(full)
    assert (patch.patch_size, patch.batch_size) == ((128, 128, 128), 2)
    slices = plan_unet_patch(flat)
    assert (slices.patch_size, slices.batch_size) == ((192, 160), 105)
    assert masked_normalization(["zscore", "ct", "none"], 0.6) == (True, False, False)


def test_tiny():
    flat, full = requests(TINY, 260, 3)
    patch = plan_unet_patch(full)
    assert (patch.patch_size, patch.batch_size) == ((40, 56, 40), 9)
    slices = plan_unet_patch(flat)
    assert (slices.patch_size, slices.batch_size) == ((56, 40), 366)


def test_2d_cap_says_what_held_the_batch_down():
    flat, _ = requests(TINY, 260, 3, max_batch=64)
    slices = plan_unet_patch(flat)
    assert slices.batch_size == 64
    assert "64" in slices.limit


def test_rgb():
    flat, _ = requests(RGB, 1000, 2, 3)
    slices = plan_unet_patch(flat)
    assert (slices.patch_size, slices.batch_size) == ((512, 512), 12)


@pytest.mark.parametrize("entries", [CT, CARDIAC, BRAIN, TINY])
def test_more_memory_never_shrinks_the_patch(entries):
    previous = (0, 0, 0)
    for memory_gb in (2.0, 4.0, 8.0, 12.0, 24.0, 40.0, 80.0):
        patch = plan_unet_patch(requests(entries, 30, 4, memory_gb=memory_gb)[1]).patch_size
        assert np.prod(patch) >= np.prod(previous)
        previous = patch


@pytest.mark.parametrize(
    ("spacing", "shape", "memory_gb", "expected"),
    [
        ((8, 0.5, 0.5), (5, 1024, 1024), 8, (3, 768, 768)),
        ((8, 0.5, 0.5), (5, 1024, 1024), 4, (3, 512, 512)),
        ((8, 0.5, 0.5), (5, 1024, 1024), 2, (2, 448, 448)),
        ((10, 0.3, 0.3), (4, 1500, 1500), 8, (2, 896, 896)),
    ],
)
def test_few_thick_slices(spacing, shape, memory_gb, expected):
    """nnU-Net's loop has no shortest edge: patches of fewer than four slices leave room in the plane."""
    full = requests(([spacing] * 5, [shape] * 5), 100, 3, memory_gb=memory_gb)[1]
    assert plan_unet_patch(full).patch_size == expected


def test_many_classes_need_more_memory():
    """Measured on a CPU: a step at 48 voxels a side, batch 2, grows by 0.50 GB from 3 classes to 105."""
    budget = Budget(device="cpu", memory_gb=100, hours=1, disk_gb=1, gflops={})
    needed = []
    for outputs in (3, 105):
        cost = unet_cost(unet_topology((1, 1, 1), (48, 48, 48)), 1, outputs)
        load = Load(
            batch_size=2,
            parameters=cost.parameters,
            trainable=cost.parameters,
            optimizer_values=1,
            trained={},
            values=float(cost.elements),
            outputs=outputs,
            output_values=output_values((48, 48, 48)),
        )
        needed.append(memory.memory_gb(load, budget))
    assert needed[1] - needed[0] == pytest.approx(0.50, rel=0.1)
    assert memory.memory_gb(load, replace(budget, device="cuda")) > memory.memory_gb(
        replace(load, outputs=16), replace(budget, device="cuda")
    )


def test_next_to_no_memory_still_gives_a_patch():
    patch = plan_unet_patch(requests(CT, 30, 4, memory_gb=1e-6)[1])
    assert min(patch.patch_size) >= 4


def test_a_low_resolution_stage_of_few_slices_keeps_one():
    """Of cases of 2 x 3072 x 3072 voxels with one spacing less than half a slice would be left."""
    request = requests(([(1, 1, 1)] * 5, [(2, 3072, 3072)] * 5), 30, 2)[1]
    assert needs_low_resolution(request, plan_unet_patch(request))


def test_resampled_shape():
    assert resampled_shape((147, 512, 512), (3, 0.76, 0.76), (1.6, 0.76, 0.76)) == (276, 512, 512)
    assert resampled_shape((5, 7, 4), (1, 1, 1), (2, 2, 2)) == (2, 4, 2)


def test_transpose_puts_the_coarsest_axis_first():
    assert transpose_axes((1, 3, 2), (9, 9, 9)) == ((1, 0, 2), (1, 0, 2))
    assert transpose_axes((1, 2, 3), (9, 9, 9)) == ((2, 0, 1), (1, 2, 0))


def test_transpose_puts_an_axis_of_one_voxel_before_a_coarser_one():
    assert transpose_axes((1.0, 1.4, 1.4), (1, 256, 256))[0] == (0, 1, 2)
    assert transpose_axes((3.0, 2.0, 1.0), (256, 256, 1))[0] == (2, 0, 1)
    assert transpose_axes((1.0, 2.0, 3.0), (1, 1, 256))[0] == (1, 0, 2)
    assert transpose_axes((1.0, 1.4, 1.4), (1.5, 256, 256))[0] == (1, 0, 2)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("CT", "ct"), ("noNorm", "none"), ("T2", "zscore"), ("rgb_to_0_1", "rgb_to_0_1"), ("R", "zscore")],
)
def test_scheme_from_the_channel_name(name, scheme):
    assert normalization_scheme(name) == scheme
