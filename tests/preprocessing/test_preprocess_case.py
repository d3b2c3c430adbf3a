from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from samunet.data.geometry import Box, Geometry
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.planning.plan import Plan
from samunet.preprocessing.case import SpatialRecord, crop_to_nonzero, preprocess_case
from samunet.records import from_data, to_data


def body_case(shape: tuple[int, int, int] = (8, 20, 18)) -> tuple[np.ndarray, np.ndarray]:
    """Image that is zero outside a block, with a label inside it."""
    rng = np.random.default_rng(0)
    image = np.zeros((1, *shape), np.float32)
    image[:, 1:-1, 3:-4, 2:-5] = rng.uniform(50, 90, (1, shape[0] - 2, shape[1] - 7, shape[2] - 7))
    label = np.zeros(shape, np.uint8)
    label[2:5, 6:12, 4:9] = 1
    label[3:4, 7:9, 5:8] = 2
    return image, label


def geometry(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Geometry:
    return Geometry(shape=shape, spacing_mm=spacing)


def test_crops_to_the_nonzero_box_and_records_it(make_plan: Callable[..., Plan]) -> None:
    image, label = body_case()
    plan = make_plan(spacing_mm=(2.0, 1.0, 1.0))
    case = preprocess_case(image, label, geometry(label.shape, (2.0, 1.0, 1.0)), plan, plan.data["3d"])
    assert case.record.crop_box == Box(lower=(1, 3, 2), upper=(7, 16, 13))
    assert case.record.shape_before_crop == label.shape
    assert case.image.shape == (1, 6, 13, 11)
    np.testing.assert_array_equal(case.label, label[1:7, 3:16, 2:13])
    assert case.label.dtype == np.int16
    assert case.image.dtype == np.float32
    assert abs(float(case.image.mean())) < 1e-4
    assert from_data(SpatialRecord, to_data(case.record)) == case.record


def test_outside_is_minus_one_but_filled_holes_and_labels_are_not(make_plan: Callable[..., Plan]) -> None:
    image, label = body_case()
    image[0, 4, 8, 6] = 0  # a hole
    image[0, 1, 3, 2] = 0  # a corner of the box
    image[0, 1, 3, 3] = 0
    label[1, 3, 3] = 2
    plan = make_plan()
    case = preprocess_case(image, label, geometry(label.shape, (2.0, 1.0, 1.0)), plan, plan.data["3d"])
    assert case.label[0, 0, 0] == -1
    assert case.label[0, 0, 1] == 2
    assert (case.label == -1).sum() == 1


def test_transpose_and_target_shape(make_plan: Callable[..., Plan]) -> None:
    image, label = body_case()
    plan = make_plan(spacing_mm=(2.0, 1.0, 0.5), transpose=(2, 0, 1))
    case = preprocess_case(image, label, geometry(label.shape, (1.0, 1.0, 4.0)), plan, plan.data["3d"])
    assert case.record.spacing_before_mm == (4.0, 1.0, 1.0)
    assert case.record.shape_before_crop == (18, 8, 20)
    assert case.record.shape_after_crop == (11, 6, 13)
    assert case.image.shape == (1, 22, 6, 26)


def test_2d_never_resamples_the_slice_axis(make_plan: Callable[..., Plan]) -> None:
    image, label = body_case()
    plan = make_plan(spacing_mm=(2.0, 0.5, 0.5))
    case = preprocess_case(image, label, geometry(label.shape, (7.0, 1.0, 1.0)), plan, plan.data["2d"])
    assert case.image.shape == (1, 6, 26, 22)
    assert case.record.spacing_mm == (7.0, 0.5, 0.5)


def test_a_plane_stays_one_slice_in_3d_too(make_plan: Callable[..., Plan]) -> None:
    """Its spacing across is nominal: 999 mm of it would be 333 planes of 3 mm."""
    image = np.random.default_rng(0).normal(size=(1, 1, 20, 18)).astype(np.float32)
    plan = make_plan(spacing_mm=(3.0, 0.5, 0.5))
    plane = Geometry(shape=(1, 20, 18), spacing_mm=(999.0, 1.0, 1.0), is_2d=True)
    case = preprocess_case(image, None, plane, plan, plan.data["3d"])
    assert case.image.shape[1] == 1
    assert case.record.spacing_mm == (999.0, 0.5, 0.5)


def test_values_become_class_indices_and_ignore(make_plan: Callable[..., Plan]) -> None:
    image, label = body_case()
    label[label == 2] = 7
    label[5, 10, 10] = 9
    labels = LabelSet(labels={"background": (0,), "organ": (1,), "lesion": (7,)}, ignore=9)
    plan = make_plan(labels=labels)
    case = preprocess_case(image, label, geometry(label.shape, (2.0, 1.0, 1.0)), plan, plan.data["3d"])
    assert sorted(np.unique(case.label)) == [0, 1, 2, 3]


def test_prediction_needs_no_label_and_gives_the_same_image(make_plan: Callable[..., Plan]) -> None:
    image, label = body_case()
    kept = image.copy()
    plan = make_plan(mask=True)
    where = geometry(label.shape, (2.5, 1.0, 1.2))
    with_label = preprocess_case(image, label, where, plan, plan.data["3d"])
    without = preprocess_case(image, None, where, plan, plan.data["3d"])
    assert without.label is None
    np.testing.assert_array_equal(with_label.image, without.image)
    np.testing.assert_array_equal(image, kept)


def test_empty_image_keeps_its_box(make_plan: Callable[..., Plan]) -> None:
    box, mask = crop_to_nonzero(np.zeros((1, 3, 4, 5), np.float32))
    assert box.shape == (3, 4, 5)
    assert not mask.any()
    plan = make_plan(mask=True)
    empty = np.zeros((1, 3, 4, 5), np.float32)
    case = preprocess_case(empty, empty[0], geometry((3, 4, 5), (2.0, 1.0, 1.0)), plan, plan.data["3d"])
    np.testing.assert_array_equal(case.image, 0)
    np.testing.assert_array_equal(case.label, -1)


def test_bad_cases_are_named(make_plan: Callable[..., Plan]) -> None:
    image, label = body_case()
    plan = make_plan()
    grid = geometry(label.shape, (2.0, 1.0, 1.0))
    broken = image.copy()
    broken[0, 3, 3, 3] = np.nan
    with pytest.raises(SamunetError, match=r"case_7.*NaN"):
        preprocess_case(broken, label, grid, plan, plan.data["3d"], where="case_7")
    with pytest.raises(SamunetError, match="channels"):
        preprocess_case(np.concatenate([image, image]), label, grid, plan, plan.data["3d"])
    with pytest.raises(SamunetError, match="shape"):
        preprocess_case(image, label[1:], grid, plan, plan.data["3d"])
    with pytest.raises(SamunetError, match=r"case_7.*\[5\]"):
        preprocess_case(image, np.where(label == 2, 5, label), grid, plan, plan.data["3d"], where="case_7")
