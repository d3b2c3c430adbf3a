from __future__ import annotations

import numpy as np
import pytest
import torch

from samunet.trainers.losses import (
    DeepSupervisionLoss,
    LossSettings,
    SegmentationLoss,
    deep_supervision_weights,
    patch_counts,
)

# Computed once with nnunetv2 2.8.1's own losses on the inputs of `wave` and `pattern`.
NNUNET = {
    ("ce", True): 2.4011833667755127,
    ("ce", False): 2.401262044906616,
    ("ce ignore", True): 2.173581600189209,
    ("ce ignore", False): 2.1740951538085938,
    ("bce", True): 0.7759408950805664,
    ("bce", False): 0.7759625911712646,
    ("bce ignore", True): 3.0705573558807373,
    ("bce ignore", False): 3.071516990661621,
}
NNUNET_DEEP = 2.087096691131592


def wave(*shape: int) -> torch.Tensor:
    steps = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return (3 * torch.sin(steps * 0.7) + torch.cos(steps * 0.31)).reshape(shape).float()


def pattern(classes: int, *shape: int) -> torch.Tensor:
    return ((torch.arange(int(np.prod(shape))) * 7) // 5 % classes).reshape(shape)


def target_of(kind: str) -> torch.Tensor:
    if kind == "ce":
        return pattern(3, 2, 1, 8, 6)
    if kind == "ce ignore":
        return pattern(4, 2, 1, 8, 6)
    labels = pattern(3, 2, 8, 6)
    regions = torch.stack([labels > 0, labels == 2, pattern(5, 2, 8, 6) == 1], 1)
    if kind == "bce":
        return regions
    return torch.cat([regions, pattern(4, 2, 1, 8, 6) == 3], 1)


def settings_of(kind: str, batch_dice: bool = True) -> LossSettings:
    ignore = 3 if "ignore" in kind else None
    return LossSettings(regions=kind.startswith("bce"), ignore_index=ignore, batch_dice=batch_dice)


@pytest.mark.parametrize(("kind", "batch_dice"), NNUNET)
def test_equals_nnunet(kind: str, batch_dice: bool) -> None:
    losses = SegmentationLoss(settings_of(kind, batch_dice))(wave(2, 3, 8, 6), target_of(kind))
    assert losses["loss"].item() == pytest.approx(NNUNET[kind, batch_dice], abs=2e-6)
    assert losses["loss"].item() == pytest.approx(losses["dice"].item() + losses["ce"].item())


def test_deep_supervision_equals_nnunet() -> None:
    outputs = [wave(2, 3, 8, 6), wave(2, 3, 4, 3), wave(2, 3, 2, 2)]
    loss = DeepSupervisionLoss(SegmentationLoss(settings_of("ce")))
    assert loss(outputs, target_of("ce"))["loss"].item() == pytest.approx(NNUNET_DEEP, abs=2e-6)


def test_deep_supervision_weights() -> None:
    assert deep_supervision_weights(5) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15, 0))
    assert deep_supervision_weights(2) == (1, 0)
    assert deep_supervision_weights(1) == (1,)


@pytest.mark.parametrize("kind", ["ce ignore", "bce ignore"])
def test_ignored_voxels_have_no_gradient(kind: str) -> None:
    logits = wave(2, 3, 8, 6).requires_grad_()
    target = target_of(kind)
    SegmentationLoss(settings_of(kind))(logits, target)["loss"].backward()
    ignored = (target == 3) if kind == "ce ignore" else target[:, -1:]
    assert logits.grad is not None
    assert logits.grad[ignored.expand_as(logits)].abs().max() == 0
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["ce ignore", "bce ignore"])
def test_nothing_annotated_gives_a_finite_loss(kind: str) -> None:
    target = target_of(kind)
    if kind == "ce ignore":
        target[:] = 3
    else:
        target[:, -1] = True
    logits = wave(2, 3, 8, 6).requires_grad_()
    loss = SegmentationLoss(settings_of(kind))(logits, target)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_perfect_prediction_goes_to_minus_one() -> None:
    target = target_of("ce")
    logits = torch.full((2, 3, 8, 6), -50.0).scatter_(1, target, 50.0)
    assert SegmentationLoss(settings_of("ce"))(logits, target)["loss"].item() == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("kind", ["ce", "ce ignore", "bce", "bce ignore"])
def test_counts(kind: str) -> None:
    logits, target = wave(2, 3, 8, 6), target_of(kind)
    counts = patch_counts(logits, target, settings_of(kind))
    if kind.startswith("bce"):
        predicted = logits > 0
        reference = target[:, :3]
        valid = ~target[:, -1:] if "ignore" in kind else torch.ones(2, 1, 8, 6, dtype=torch.bool)
    else:
        predicted = torch.stack([logits.argmax(1) == k for k in (1, 2)], 1)
        reference = torch.cat([target == k for k in (1, 2)], 1)
        valid = target != 3
    axes = (0, 2, 3)
    assert torch.equal(counts["tp"], (predicted & reference & valid).sum(axes).double())
    assert torch.equal(counts["fp"], (predicted & ~reference & valid).sum(axes).double())
    assert torch.equal(counts["fn"], (~predicted & reference & valid).sum(axes).double())
