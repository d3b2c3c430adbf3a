"""Figures of single passes: by hand on small maps, and that looking does not change the logits."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import CLASSES, REGIONS
from torch import Tensor

from samunet.inference.pass_statistics import PassFigures, PassStatistics
from samunet.inference.sliding_window import WindowSettings, predict_logits

SHAPE = (2, 5, 18, 14)


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(factor: float, outputs: int = 3):
    """Logits that depend on the place in the tile, so that flipping matters."""

    def run(batch: Tensor) -> Tensor:
        ramp = torch.linspace(-1, 1, batch.shape[-1])
        return torch.cat([factor * batch[:, :1] * (-1) ** k * (1 + k) + k * ramp for k in range(outputs)], 1)

    return run


WINDOWS = [
    WindowSettings(patch_size=(18, 14), mirror_axes=(0, 1), batch_size=2),
    WindowSettings(patch_size=(8, 8), mirror_axes=(1,), batch_size=3),
    WindowSettings(patch_size=(4, 8, 8), mirror_axes=(0, 2)),
    WindowSettings(patch_size=(8, 24, 8)),
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
def test_looking_changes_no_bit(window: WindowSettings, labels) -> None:
    image, networks = noise(SHAPE), [network(1.0, labels.num_outputs), network(-0.7, labels.num_outputs)]
    plain = predict_logits(networks, image, window)
    seen = PassStatistics(labels, window, SHAPE)
    assert torch.equal(predict_logits(networks, image, window, observer=seen), plain)
    for figures in seen.figures().values():
        assert figures.soft_dice is not None
        assert 0 < figures.soft_dice <= 1
        assert figures.entropy is not None
        assert 0 < figures.entropy <= 1
        assert (figures.mirror_disagreement is not None) == bool(window.mirror_axes)


def test_classes_by_hand() -> None:
    """One tile a slice, so every voxel counts once and alike."""
    image = noise(SHAPE)
    run = network(1.0)
    window = WindowSettings(patch_size=(18, 14), mirror_axes=(1,), batch_size=4)
    seen = PassStatistics(CLASSES, window, SHAPE)
    predict_logits([run], image, window, observer=seen)
    slices = image.transpose(0, 1)
    logits, flipped = run(slices), run(slices.flip(3)).flip(3)
    chances = torch.softmax(logits, 1)
    entropy = -(chances * chances.log()).sum(1) / math.log(3)
    for name, channel in (("organ", 1), ("lesion", 2)):
        mask, other = logits.argmax(1) == channel, flipped.argmax(1) == channel
        chance = chances[:, channel]
        figures = seen.figures()[name]
        assert figures.soft_dice == pytest.approx(
            float(2 * chance[mask].sum() / (chance.sum() + mask.sum())), rel=1e-4
        )
        assert figures.entropy == pytest.approx(float(entropy[mask].mean()), rel=1e-4)
        agreed = float(2 * (mask & other).sum() / (mask.sum() + other.sum()))
        assert figures.mirror_disagreement == pytest.approx(1 - agreed, rel=1e-4)
        assert figures.intensity == pytest.approx(
            [float(slices[:, c][mask].mean()) for c in (0, 1)], rel=1e-3
        )


def test_the_padding_of_small_images_has_no_say() -> None:
    image = noise(SHAPE)

    def figures(run: Any, patch: tuple[int, ...]) -> PassFigures:
        window = WindowSettings(patch_size=patch, mirror_axes=(1,))
        seen = PassStatistics(CLASSES, window, SHAPE)
        predict_logits([run], image, window, observer=seen)
        return seen.figures()["organ"]

    exact, padded = (figures(network(1.0), patch) for patch in ((18, 14), (33, 14)))
    for key in ("soft_dice", "entropy", "mirror_disagreement", "intensity"):
        assert getattr(padded, key) == pytest.approx(getattr(exact, key), rel=1e-4)

    def finds_padding(tiles: torch.Tensor) -> torch.Tensor:
        found = (tiles == 0).all(1).float() * 9
        return torch.stack([torch.ones_like(found), found, found - 9], 1)

    for patch in ((18, 20), (24, 8), (9, 18, 14), (4, 32, 8)):
        assert figures(finds_padding, patch).entropy is None, patch


def test_regions_by_hand() -> None:
    image, run = noise(SHAPE), network(1.0, 2)
    window = WindowSettings(patch_size=(18, 14))
    seen = PassStatistics(REGIONS, window, SHAPE)
    predict_logits([run], image, window, observer=seen)
    logits = run(image.transpose(0, 1))
    for channel, name in enumerate(REGIONS.class_names):
        mask, chance = logits[:, channel] > 0, logits[:, channel].sigmoid()
        entropy = -(chance * chance.log2() + (1 - chance) * (1 - chance).log2())
        figures = seen.figures()[name]
        assert figures.entropy == pytest.approx(float(entropy[mask].mean()), rel=1e-4)
        expected = float(2 * chance[mask].sum() / (chance.sum() + mask.sum()))
        assert figures.soft_dice == pytest.approx(expected, rel=1e-4)


def test_an_ensemble_has_the_figures_of_its_members() -> None:
    """Not those of the averaged logits: an out-of-fold case has one network, a new case all of them."""
    image, window = noise(SHAPE), WINDOWS[2]
    both = PassStatistics(CLASSES, window, SHAPE)
    predict_logits([network(1.0), network(1.0)], image, window, observer=both)
    alone = PassStatistics(CLASSES, window, SHAPE)
    predict_logits([network(1.0)], image, window, observer=alone)
    for name, figures in alone.figures().items():
        assert both.figures()[name].soft_dice == pytest.approx(figures.soft_dice, rel=1e-5)
        # 1 - Dice of float32 sums near 1
        assert both.figures()[name].mirror_disagreement == pytest.approx(
            figures.mirror_disagreement, abs=1e-5
        )


def test_sure_networks_are_sure_and_unsure_ones_are_not() -> None:
    image, window = noise(SHAPE), WINDOWS[0]
    found = []
    for sharpness in (0.3, 1.0, 5.0, 50.0):
        seen = PassStatistics(CLASSES, window, SHAPE)

        def run(batch: Tensor, sharpness: float = sharpness) -> Tensor:
            return sharpness * network(1.0)(batch)

        predict_logits([run], image, window, observer=seen)
        found.append(seen.figures()["organ"])
    assert all(a.entropy > b.entropy for a, b in pairwise(found))
    assert all(a.soft_dice < b.soft_dice for a, b in pairwise(found))
    assert found[-1].entropy < 0.1
    # Which class is largest does not depend on the sharpness.
    assert len({round(figures.mirror_disagreement, 6) for figures in found}) == 1


def test_symmetric_networks_do_not_disagree_with_themselves() -> None:
    window = WINDOWS[0]
    seen = PassStatistics(CLASSES, window, SHAPE)
    predict_logits(
        [lambda b: torch.cat([b[:, :1], -b[:, :1], b[:, 1:]], 1)], noise(SHAPE), window, observer=seen
    )
    assert all(figures.mirror_disagreement == 0 for figures in seen.figures().values())


def test_neighbouring_slices_are_not_the_slice() -> None:
    window = WindowSettings(patch_size=(18, 14), slice_context=1)
    seen = PassStatistics(CLASSES, window, SHAPE)
    image = noise(SHAPE)
    ones = torch.zeros(1, 3, 1, 1)
    ones[:, 1] = 1
    predict_logits([lambda b: ones.expand(len(b), 3, 18, 14)], image, window, observer=seen)
    np.testing.assert_allclose(seen.figures()["organ"].intensity, image.mean((1, 2, 3)), atol=1e-5)


def test_what_is_not_found_and_what_is_not_finite_has_no_figures() -> None:
    window = WindowSettings(patch_size=(18, 14), mirror_axes=(0,))
    background = torch.tensor([9.0, -9.0, -9.0]).reshape(1, 3, 1, 1)
    seen = PassStatistics(CLASSES, window, SHAPE)
    predict_logits([lambda b: background.expand(len(b), 3, 18, 14)], noise(SHAPE), window, observer=seen)
    figures = seen.figures()["organ"]
    assert (figures.entropy, figures.mirror_disagreement, figures.intensity) == (None, None, None)
    broken = PassStatistics(CLASSES, window, SHAPE)
    with pytest.raises(FloatingPointError):
        predict_logits([lambda b: background * torch.nan + b[:, :1]], noise(SHAPE), window, observer=broken)
    assert broken.figures()["organ"].soft_dice is None
