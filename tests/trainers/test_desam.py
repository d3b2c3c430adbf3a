"""What `2d_desam` is trained with: points, IoU targets, and masks that do not depend on the point."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_runs import CHANNELS, CLASSES, PATCH_2D, REGIONS, make_configuration, make_module, make_plan

from samunet.errors import SamunetError
from samunet.trainers.desam import _draw_pixels
from samunet.trainers.settings import apply_overrides

METHOD = "2d_desam"
IGNORE = dataclasses.replace(CLASSES, ignore=3)
IGNORE_REGIONS = dataclasses.replace(REGIONS, ignore=3)
SIZE = 64


def module_of(labels=CLASSES, **settings):
    torch.manual_seed(0)
    return make_module(METHOD, labels, **settings)


def quadrant_target():
    """Class 1 in the upper left quarter, class 2 in the lower right one."""
    target = torch.zeros(4, 1, *PATCH_2D, dtype=torch.int16)
    target[:, :, :8, :8], target[:, :, 8:, 8:] = 1, 2
    return target


def test_points_lie_where_their_classes_say():
    """x and y in pixels of the encoder's square; about half of the points are on an object."""
    module = module_of()
    torch.manual_seed(0)
    inside = 0
    for _ in range(50):
        points, classes = module._draw(quadrant_target(), 2, module.network, torch.rand(4, 3))
        cells = ((points + 0.5) * PATCH_2D[0] / SIZE).long()
        for (x, y), found in zip(cells.tolist(), classes):
            expected = [float(x < 8 and y < 8), float(x >= 8 and y >= 8)]
            assert found.tolist() == expected
            inside += any(expected)
    assert 70 < inside < 130  # 200 fair draws: four standard deviations


def test_every_pixel_of_what_is_drawn_from_comes_alike():
    """Of two classes, one of 2 and one of 6 pixels, and 8 of the background."""
    maps = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    maps[0, 0, 0, :2], maps[0, 2, 2:, 1:] = True, True
    rounds = 40_000
    numbers = torch.rand(rounds, 3, generator=torch.Generator().manual_seed(0))
    labelled = torch.ones(rounds, 4, 4, dtype=torch.bool)
    places = _draw_pixels(maps.expand(rounds, -1, -1, -1), labelled, numbers)
    found = torch.bincount(places, minlength=16).reshape(4, 4) / rounds
    expected = torch.full((4, 4), 0.5 / 8)
    expected[maps[0, 0]], expected[maps[0, 2]] = 0.25 / 2, 0.25 / 6
    # The share of a pixel drawn with probability p has the deviation sqrt(p / n), at most 0.0018.
    torch.testing.assert_close(found, expected, atol=0.008, rtol=0)


@pytest.mark.parametrize("numbers", [(0.0, 0.0, 0.0), (0.999999, 0.999999, 0.999999), (0.0, 0.5, 0.999999)])
def test_slices_without_a_choice(numbers):
    """No object, nothing but an object, nothing labelled, and one labelled pixel."""
    maps = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    maps[1, 1] = True
    labelled = torch.ones(4, 3, 3, dtype=torch.bool)
    labelled[2], labelled[3] = False, False
    labelled[3, 1, 2] = True
    places = _draw_pixels(maps, labelled, torch.tensor([numbers] * 4))
    assert ((places >= 0) & (places < 9)).all()
    assert places[3] == 5


@pytest.mark.parametrize("labels", [IGNORE, IGNORE_REGIONS], ids=["classes", "regions"])
def test_no_point_falls_where_nobody_has_labelled(labels):
    """A scribble: what is not labelled may be the object, so it can't teach that a prompt is bad."""
    module = module_of(labels)
    target = quadrant_target()
    target[:, :, :, 4:8] = labels.ignore_index
    if labels.has_regions:
        target = torch.cat([target == 1, target == 2, target == labels.ignore_index], dim=1)
    torch.manual_seed(0)
    for _ in range(20):
        points, _ = module._draw(target, 2, module.network, torch.rand(4, 3))
        columns = ((points[:, 0] + 0.5) * PATCH_2D[1] / SIZE).long()
        assert not ((columns >= 4) & (columns < 8)).any()


def test_a_slice_that_nobody_has_labelled_does_not_teach_what_a_prompt_is_worth():
    module = module_of(IGNORE).eval()
    image, draw = torch.randn(4, CHANNELS, *PATCH_2D), torch.rand(4, 3)
    target = quadrant_target()
    target[2:] = IGNORE.ignore_index
    some = module({"image": image, "target": target, "draw": draw})["iou"]
    alone = module({"image": image[:2], "target": target[:2], "draw": draw[:2]})["iou"]
    torch.testing.assert_close(some, alone)
    target[:] = IGNORE.ignore_index
    assert module({"image": image, "target": target, "draw": draw})["iou"] == 0


ABLATIONS = [{"iou_head": False}, {"fusion": False}, {"iou_head": False, "fusion": False}]


@pytest.mark.parametrize("settings", [{}, {"mode": "whole_box"}, *ABLATIONS])
@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
def test_modes_and_ablations_train(settings, labels):
    module = module_of(labels, **settings).train()
    image, draw = torch.randn(4, CHANNELS, *PATCH_2D), torch.rand(4, 3)
    batch = {"image": image, "target": quadrant_target(), "draw": draw}
    if labels is REGIONS:
        first = quadrant_target()
        batch["target"] = torch.cat([first > 0, first == 2, first < 0], dim=1)
    losses = module(batch)
    assert torch.isfinite(losses["loss"])
    assert ("iou" in losses) == (settings in ({}, {"fusion": False}))
    losses["loss"].backward()


@pytest.mark.parametrize("settings", [{}, *ABLATIONS])
def test_ablations_learn(settings):
    """Ten steps on one batch lower its loss."""
    module = module_of(**settings).train()
    image, draw = torch.randn(4, CHANNELS, *PATCH_2D), torch.rand(4, 3)
    batch = {"image": image, "target": quadrant_target(), "draw": draw}
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        loss = module(batch)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_the_iou_weighs_ten():
    module = module_of(iou_weight=10.0).eval()
    image, draw = torch.randn(4, CHANNELS, *PATCH_2D), torch.rand(4, 3)
    batch = {"image": image, "target": quadrant_target(), "draw": draw}
    losses = module(batch)
    assert losses["loss"].item() == pytest.approx((losses["dice"] + losses["ce"] + 10 * losses["iou"]).item())


@pytest.mark.parametrize("setting", [{"head_width": 8}, {"paper_compat": True}])
def test_it_has_no_setting_of_the_other_heads(setting):
    plan = make_plan(make_configuration(METHOD))
    with pytest.raises(SamunetError, match=f"Unknown setting of 2d_desam '{next(iter(setting))}'"):
        apply_overrides(plan, METHOD, setting)
