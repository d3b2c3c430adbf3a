from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.records import from_data, to_data

REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "rim": 2},
    "regions_class_order": [1, 2, 3, 2],
}


def parse(**content: Any) -> LabelSet:
    return LabelSet.from_dataset_json(content, "dataset.json")


def test_classes() -> None:
    labels = parse(labels={"background": 0, "a": 1, "b": "5", "ignore": 6})
    assert labels.values == (0, 1, 5)
    assert labels.ignore == 6
    assert labels.ignore_index == 3
    assert labels.class_names == ("background", "a", "b")
    assert labels.foreground == {"a": (1,), "b": (2,)}
    assert not labels.has_regions
    assert labels.region_order is None
    assert labels.num_outputs == 3
    assert labels.summary_key("b") == "5"


def test_regions() -> None:
    labels = LabelSet.from_dataset_json(REGIONS, "dataset.json")
    assert labels.has_regions
    assert labels.num_outputs == 4
    assert labels.paint_values == (1, 2, 3, 2)
    keys = [labels.summary_key(name) for name in labels.foreground]
    assert keys == ["(1, 2, 3)", "(2, 3)", "(3,)", "2"]  # as nnU-Net writes tuples and scalars
    assert from_data(LabelSet, to_data(labels)) == labels


def test_the_order_of_regions_is_part_of_what_they_mean() -> None:
    """The same regions and the same order of painting mean another file when the regions change places."""
    whole, core = ("whole", [1, 2]), ("core", [2])
    first, second = (
        parse(labels={"background": 0, **dict(names)}, regions_class_order=[1, 2])
        for names in ((core, whole), (whole, core))
    )
    assert first != second
    assert first.regions_in_order == ("core", "whole")
    classes = [
        parse(labels=dict(names)) for names in ((("background", 0), ("a", 1)), (("a", 1), ("background", 0)))
    ]
    assert classes[0] == classes[1]
    assert classes[0].regions_in_order == ()


def test_a_list_of_one_is_a_class() -> None:
    labels = parse(labels={"background": 0, "a": [1]})
    assert labels.means_the_same(parse(labels={"background": 0, "a": 1}))
    assert not labels.means_the_same(parse(labels={"background": 0, "a": 2}))
    assert not labels.has_regions
    assert labels.summary_key("a") == "1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "key `labels`"),
        ({"labels": ["a"]}, "key `labels`"),
        ({"labels": {"0": "background"}}, r"`labels\.0` must be an integer.*name -> value"),
        ({"labels": {"a": 1}}, '"background": 0'),
        ({"labels": {"background": 1}}, '"background": 0'),
        ({"labels": {"background": 0, "a": True}}, r"`labels\.a`"),
        ({"labels": {"background": 0, "a": 1.5}}, r"`labels\.a`"),
        ({"labels": {"background": 0, "a": -1}}, r"`labels\.a`.*0\.\.65535"),
        ({"labels": {"background": 0, "a": []}}, r"`labels\.a` is an empty list"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, r"`labels\.a` and `labels\.b`"),
        ({"labels": {"background": 0, "a": 2, "ignore": 1}}, r"`labels\.ignore`"),
        ({"labels": {"background": 0, "a": 2, "ignore": [3, 4]}}, r"`labels\.ignore`"),
        ({"labels": {"background": 0, "a": [1, 2]}}, "`regions_class_order` must list"),
        ({"labels": {"background": 0, "a": [1, 2]}, "regions_class_order": [1, 2]}, "needs 1 declared"),
        ({"labels": {"background": 0, "a": [1, 2]}, "regions_class_order": [3]}, "needs 1 declared"),
    ],
)
def test_malformed_labels_name_file_and_key(content: dict[str, Any], words: str) -> None:
    with pytest.raises(SamunetError, match=words) as caught:
        LabelSet.from_dataset_json(content, "dataset.json")
    assert str(caught.value).startswith("dataset.json")


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64, np.float32])
def test_encode_and_decode(kind: type) -> None:
    labels = parse(labels={"background": 0, "a": 10, "b": 200, "ignore": 201})
    label_map = np.array([[[0, 10], [200, 201]]]).astype(kind)
    encoded = labels.encode(label_map)
    assert encoded.dtype == np.int16
    assert encoded.tolist() == [[[0, 1], [2, 3]]]
    decoded = labels.decode(encoded.clip(0, 2))
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == [[[0, 10], [200, 200]]]


@pytest.mark.parametrize("value", [-1, 2, 70000, 0.5, np.nan])
def test_values_that_are_not_declared_are_refused(value: float) -> None:
    label_map = np.zeros((2, 3, 4), np.float64)
    label_map[0, 0, 0] = value
    with pytest.raises(SamunetError, match=r"case\.nii"):
        parse(labels={"background": 0, "a": 1}).encode(label_map, "case.nii")
