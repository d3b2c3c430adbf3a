from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from samunet.data.dataset import RawDataset
from samunet.data.geometry import Geometry
from samunet.data.labels import LabelSet
from samunet.planning.plan import Plan
from samunet.preprocessing.case import PreprocessedCase, preprocess_case
from samunet.preprocessing.restore import logit_slabs, restore_probabilities, restore_segmentation

SHAPE = (14, 30, 26)


def blob_case(spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """A two-class label inside a body that fills part of the volume."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    body = z**2 + y**2 + x**2 < 0.95
    label = np.where((z**2 + y**2 + x**2) < 0.5, 1, 0).astype(np.uint8)
    label[(z**2 + (y - 0.2) ** 2 + (x + 0.1) ** 2) < 0.12] = 2
    image = (body * (10 + 5 * label)).astype(np.float32)[None]
    image[..., -3:] = 0
    label[..., -3:] = 0
    direction = (0.0, -1.0, 0.0, -0.8, 0.0, 0.6, 0.6, 0.0, 0.8)
    return image, label, Geometry(shape=SHAPE, spacing_mm=spacing, direction=direction, origin_mm=(3, -4, 5))


def one_hot(case: PreprocessedCase, outputs: int) -> torch.Tensor:
    indices = torch.from_numpy(np.maximum(case.label, 0)).long()
    return torch.nn.functional.one_hot(indices, outputs).movedim(-1, 0).float()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize("transpose", list(permutations((0, 1, 2))))
def test_without_resampling_the_label_comes_back_exactly(
    make_plan: Callable[..., Plan], transpose: tuple[int, int, int]
) -> None:
    spacing = (1.5, 1.0, 0.75)
    image, label, geometry = blob_case(spacing)
    plan = make_plan(spacing_mm=tuple(spacing[a] for a in transpose), transpose=transpose)
    case = preprocess_case(image, label, geometry, plan, plan.data["3d"])
    restored = restore_segmentation(one_hot(case, 3), case.record, plan)
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, label)


@pytest.mark.parametrize("data_name", ["2d", "3d"])
@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (5.0, 1.2, 1.2), (0.8, 3.1, 0.9)])
def test_labels_survive_preprocess_and_restore(
    make_plan: Callable[..., Plan], spacing: tuple[float, float, float], data_name: str
) -> None:
    image, label, geometry = blob_case(spacing)
    order = (int(np.argmax(spacing)), *(a for a in range(3) if a != int(np.argmax(spacing))))
    plan = make_plan(spacing_mm=(1.4, 0.8, 0.8), transpose=order)
    case = preprocess_case(image, label, geometry, plan, plan.data[data_name])
    restored = restore_segmentation(one_hot(case, 3), case.record, plan)
    assert restored.shape == SHAPE
    assert case.record.geometry is geometry
    assert dice(restored > 0, label > 0) > 0.94
    assert dice(restored == 2, label == 2) > 0.88


def test_regions_paint_in_order_and_values_are_the_files(make_plan: Callable[..., Plan]) -> None:
    labels = LabelSet(labels={"background": (0,), "whole": (3, 300), "core": (300,)}, region_order=(3, 300))
    image, label, geometry = blob_case((2.0, 1.0, 1.0))
    values = np.array([0, 3, 300], np.uint16)[label]
    plan = make_plan(labels=labels)
    case = preprocess_case(image, values, geometry, plan, plan.data["3d"])
    index = torch.from_numpy(case.label)
    logits = torch.stack([(index >= 1).float() - 0.5, (index == 2).float() - 0.5])
    restored = restore_segmentation(logits, case.record, plan)
    assert restored.dtype == np.uint16
    np.testing.assert_array_equal(restored, values)


@pytest.mark.parametrize("regions", [False, True])
def test_probabilities_are_complete_in_the_files_grid(make_plan: Callable[..., Plan], regions: bool) -> None:
    labels = LabelSet(
        labels={"background": (0,), "whole": (1, 2), "core": (2,)}
        if regions
        else {"background": (0,), "a": (1,)},
        region_order=(1, 2) if regions else None,
    )
    image, _, geometry = blob_case((2.0, 1.0, 1.0))
    plan = make_plan(labels=labels, transpose=(2, 0, 1), spacing_mm=(1.5, 2.0, 1.0))
    case = preprocess_case(image, None, geometry, plan, plan.data["3d"])
    logits = torch.randn(2, *case.record.shape, generator=torch.Generator().manual_seed(0))
    out = np.full((2, *SHAPE), np.nan, np.float16)
    restored = restore_probabilities(logits, case.record, plan, out)
    np.testing.assert_array_equal(restored, restore_segmentation(logits, case.record, plan))
    outside = out[..., -1]
    if regions:
        np.testing.assert_array_equal(outside, 0)
        certain = np.all(np.abs(out - 0.5) > 1e-3, axis=0)
        np.testing.assert_array_equal((restored > 0)[certain], (out > 0.5).any(axis=0)[certain])
    else:
        np.testing.assert_allclose(out.astype(np.float32).sum(axis=0), 1, atol=2e-3)
        np.testing.assert_array_equal(outside[0], 1)


@pytest.mark.parametrize("shape", [(9, 12, 10), (1, 40, 30)])
def test_slabs_do_not_depend_on_their_size(
    make_plan: Callable[..., Plan], shape: tuple[int, int, int]
) -> None:
    plan = make_plan(spacing_mm=(2.0, 1.3, 0.7))
    spacing = (2.9, 1.0, 1.0) if shape[0] > 1 else (999.0, 1.0, 1.0)
    image = np.ones((1, *shape), np.float32)
    case = preprocess_case(
        image,
        None,
        Geometry(shape=shape, spacing_mm=spacing),
        plan,
        plan.data["3d" if shape[0] > 1 else "2d"],
    )
    logits = torch.randn(3, *case.record.shape, generator=torch.Generator().manual_seed(1))
    whole = torch.zeros(3, *shape)
    for where, slab in logit_slabs(logits, case.record):
        whole[(slice(None), *where)] = slab
    pieces = list(logit_slabs(logits.half(), case.record, slab_bytes=2000))
    assert len(pieces) > 3
    for where, slab in pieces:
        torch.testing.assert_close(slab, whole[(slice(None), *where)], atol=5e-3, rtol=0)


def test_a_finer_grid_of_the_network_is_read_in_pieces_too(make_plan: Callable[..., Plan]) -> None:
    """Each row of the file has four rows of sixteen times its size under it."""
    image, label, geometry = blob_case((4.0, 4.0, 4.0))
    plan = make_plan(spacing_mm=(1.0, 1.0, 1.0))
    case = preprocess_case(image, label, geometry, plan, plan.data["3d"])
    whole = torch.randn(3, *case.record.shape, generator=torch.Generator().manual_seed(0))
    read: list[int] = []

    class Read:
        shape = whole.shape

        def __getitem__(self, where: tuple[slice, ...]) -> torch.Tensor:
            read.append(whole[where].nbytes)
            return whole[where]

    limit = whole.nbytes // 6
    pieces = [slab for _, slab in logit_slabs(Read(), case.record, limit)]
    assert len(pieces) == 1  # the file's own grid fits at once
    assert max(read) <= limit * 4 / 3  # the row beneath is read with the next piece again
    (expected,) = (slab for _, slab in logit_slabs(whole, case.record, 2 * whole.nbytes))
    # Float32 logits of size 1, whose products the kernel may sum in another order.
    torch.testing.assert_close(pieces[0], expected, rtol=0, atol=1e-6)


def test_a_plane_keeps_its_only_slice(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(spacing_mm=(999.0, 0.5, 0.5))
    label = np.zeros((1, 20, 24), np.uint8)
    label[0, 5:12, 6:15] = 1
    geometry = Geometry(shape=label.shape, spacing_mm=(999.0, 1.0, 1.0), is_2d=True)
    case = preprocess_case(label[None] + np.float32(1), label, geometry, plan, plan.data["2d"])
    assert case.label.shape == (1, 40, 48)
    restored = restore_segmentation(one_hot(case, 3), case.record, plan)
    np.testing.assert_array_equal(restored, label)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "spacing", "data_name"),
    [
        ("Dataset002_ACDC", (7.0, 1.3, 1.3), "2d"),
        ("Dataset004_HaN_CT", (2.5, 3.0, 3.0), "3d"),
        ("Dataset008_Prostate", (3.0, 0.8, 0.8), "3d"),
    ],
)
def test_real_labels_survive(
    make_plan: Callable[..., Plan],
    real_data: Path,
    name: str,
    spacing: tuple[float, float, float],
    data_name: str,
) -> None:
    dataset = RawDataset.load(real_data / name)
    plan = replace(make_plan(spacing_mm=spacing, labels=dataset.labels), channel_names=dataset.channel_names)
    loaded = dataset.read(dataset.cases[0])
    assert loaded.label is not None
    case = preprocess_case(loaded.image, loaded.label, loaded.geometry, plan, plan.data[data_name])
    restored = restore_segmentation(one_hot(case, plan.labels.num_outputs), case.record, plan)
    assert restored.shape == loaded.label.shape
    for value in np.unique(loaded.label)[1:]:
        assert dice(restored == value, loaded.label == value) > 0.9
