"""The simulated user: where prompts lie, and what is never clicked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from samunet.trainers.prompt_rounds import enlarged
from samunet.trainers.prompting import best_of, error_clicks, first_prompt, mask_losses, true_iou


def disc() -> np.ndarray:
    rows, columns = np.mgrid[:40, :60]
    return (rows - 12) ** 2 + (columns - 45) ** 2 < 50


def test_first_prompts_are_points_on_the_object_or_boxes_around_it() -> None:
    mask, kinds = disc(), set()
    for number in range(200):
        points, labels = first_prompt(mask, np.random.default_rng(number))
        kinds.add(tuple(labels.tolist()))
        if labels[0] == 1:
            x, y = points[0].astype(int)
            assert mask[y, x]
        else:
            (left, top), (right, bottom) = points
            assert left < right
            assert top < bottom
            assert np.abs(points - [[38, 5], [52, 19]]).max() <= 60 * 20 / 1024
    assert kinds == {(1, -1), (2, 3)}


def test_an_empty_object_gets_no_prompt() -> None:
    _, labels = first_prompt(np.zeros((8, 8), bool), np.random.default_rng(0))
    assert labels.tolist() == [-1, -1]


@pytest.mark.parametrize("draw", [0.0, 0.37, 0.999999, 1.0])
def test_clicks_fall_on_errors_with_the_right_sign(draw: float) -> None:
    target = torch.zeros(1, 3, 8, 10, dtype=torch.bool)
    target[0, 0, 2:5, 6:9] = True  # missed altogether
    answer = torch.zeros_like(target)
    answer[0, 1, 4, 7] = True  # an empty object, something given
    points, labels = error_clicks(answer, target, torch.full((1, 3), draw), stride=4)
    assert labels[0].tolist() == [1, 0, -1]
    x, y = (points[0, 0] / 4).long().tolist()
    assert target[0, 0, y, x]
    assert points[0, 1].tolist() == [28.0, 16.0]


def test_every_error_pixel_is_clicked_equally_often() -> None:
    target = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    target[0, 0, 1, 1:3] = True
    target[0, 0, 3, 3] = True
    draws = torch.linspace(0, 1, 300)
    clicked = [error_clicks(~target & target, target, d.view(1, 1), 1)[0][0, 0].tolist() for d in draws]
    counts = [clicked.count(place) for place in ([1.0, 1.0], [2.0, 1.0], [3.0, 3.0])]
    assert sum(counts) == 300
    assert min(counts) >= 98


def test_no_positive_click_on_an_empty_object_whatever_the_answer() -> None:
    torch.manual_seed(0)
    target = torch.zeros(4, 5, 16, 16, dtype=torch.bool)
    _, labels = error_clicks(torch.rand(4, 5, 16, 16) > 0.5, target, torch.rand(4, 5), 1)
    assert (labels == 0).all()


def test_losses_prefer_the_right_mask() -> None:
    target = torch.from_numpy(disc())[None, None]
    right = torch.where(target, 8.0, -8.0)
    masks = torch.stack([right, -right, torch.zeros_like(right)], dim=2)
    losses = mask_losses(masks, target)
    assert losses.shape == (1, 1, 3)
    assert losses[0, 0].argmin() == 0
    assert losses[0, 0, 0] < 0.01
    assert losses[0, 0].argmax() == 1
    assert true_iou(masks > 0, target)[0, 0].tolist() == [1.0, 0.0, 0.0]
    assert true_iou(torch.zeros(1, 1, 1, 2, 2) > 0, torch.zeros(1, 1, 2, 2) > 0).item() == 1


def test_the_answer_with_the_highest_predicted_iou_is_taken() -> None:
    values = torch.arange(12.0).view(1, 2, 3, 2, 1)
    chosen = best_of(values, torch.tensor([[[0.1, 0.9, 0.2], [0.5, 0.1, 0.3]]]))
    assert chosen.flatten().tolist() == [2.0, 3.0, 6.0, 7.0]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_logits_are_enlarged_as_the_package_does_it(stride: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 2, 14, 14)
    whole = functional.interpolate(logits.flatten(0, 1), (56, 56), mode="bilinear", align_corners=False)
    expected = whole.view(2, 3, 2, 56, 56)[..., ::stride, ::stride]
    assert torch.allclose(enlarged(logits, 56, stride), expected, atol=1e-5)
