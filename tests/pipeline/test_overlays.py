"""Overlay pictures: the right slice, files that open, all kinds of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samunet.data.labels import LabelSet
from samunet.pipeline.overlays import (
    OverlayCase,
    colour_layer,
    display_picture,
    draw_overlay,
    legend_names,
    shown_slice,
)

NAMES = {1: "organ", 3: "lesion"}


def case(channels: int = 1, depth: int = 5) -> OverlayCase:
    reference = np.zeros((depth, 20, 24), np.uint8)
    reference[depth // 2, 4:9, 5:12] = 1
    prediction = reference.copy()
    prediction[depth - 1, 2:19, 2:20] = 3
    image = np.random.default_rng(0).normal(size=(channels, depth, 20, 24)).astype(np.float32)
    return OverlayCase(
        name="one", image=image, reference=reference, prediction=prediction, spacing_mm=(5, 1, 2)
    )


@pytest.mark.parametrize(("channels", "depth"), [(1, 5), (2, 5), (3, 5), (3, 1), (1, 1)])
def test_pictures_are_written(tmp_path: Path, channels: int, depth: int) -> None:
    draw_overlay(case(channels, depth), NAMES, tmp_path / "deep" / "one.png")
    with Image.open(tmp_path / "deep" / "one.png") as picture:
        assert picture.width > picture.height > 100


def test_without_reference_and_without_foreground(tmp_path: Path) -> None:
    empty = OverlayCase(
        name="one",
        image=np.zeros((1, 4, 8, 8), np.float32),
        reference=None,
        prediction=np.zeros((4, 8, 8), np.uint8),
        spacing_mm=(1, 1, 1),
    )
    assert shown_slice(empty) == 2
    draw_overlay(empty, NAMES, tmp_path / "one.png")


def test_the_fullest_slice_of_the_reference_is_shown() -> None:
    assert shown_slice(case()) == 2
    assert shown_slice(replace(case(), reference=None)) == 4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_shown_wherever_they_lie_in_the_file(tmp_path: Path, axis: int) -> None:
    """The picture of a volume is the same, whichever axis its file has the slices along."""
    usual = case(channels=2)
    spacing = [1.0, 2.0]
    spacing.insert(axis, 5.0)
    assert usual.reference is not None
    turned = replace(
        usual,
        image=np.moveaxis(usual.image, 1, axis + 1),
        reference=np.moveaxis(usual.reference, 0, axis),
        prediction=np.moveaxis(usual.prediction, 0, axis),
        spacing_mm=spacing,
    )
    for number, one in enumerate((usual, turned)):
        draw_overlay(one, NAMES, tmp_path / f"{number}.png")
    pictures = [np.asarray(Image.open(tmp_path / f"{number}.png")) for number in range(2)]
    assert np.array_equal(*pictures)


def test_the_legend_names_label_values() -> None:
    plain = LabelSet(labels={"background": (0,), "organ": (2,), "lesion": (5,)})
    assert legend_names(plain) == {2: "organ", 5: "lesion"}
    regions = LabelSet(labels={"background": (0,), "whole": (1, 2), "core": (2,)}, region_order=(1, 2))
    assert legend_names(regions) == {1: "whole", 2: "core"}


def test_colours_follow_the_labels() -> None:
    layer = colour_layer(np.array([[0, 1], [3, 2]]), NAMES)
    assert (layer[0, 0] == 0).all()
    assert (layer[1, 1] == 0).all()  # a value without a name
    assert layer[0, 1, 3] == layer[1, 0, 3] == 0.5
    assert (layer[0, 1] != layer[1, 0]).any()


def test_intensities_are_stretched() -> None:
    picture = display_picture(np.linspace(-1000, 3000, 400, dtype=np.float32).reshape(1, 20, 20))
    assert picture.min() == 0
    assert picture.max() == 1
    assert display_picture(np.ones((3, 4, 5), np.float32)).shape == (4, 5, 3)
