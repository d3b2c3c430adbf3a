"""Soft Dice with cross entropy (binary for regions), ignore label masked, deep supervision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

SMOOTH = 1e-5


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What the loss must know of the labels and the configuration.

    Attributes:
        regions: outputs are overlapping regions (sigmoid) instead of exclusive classes (softmax).
        ignore_index: class index of ignored voxels; for regions only its presence matters (the last target
            channel marks ignored voxels).
        batch_dice: sum numerator and denominator over the batch before dividing.
        smooth: added to numerator and denominator of the Dice term.
        squared: squared predictions in the Dice denominator (AutoSAM's public code).
    """

    regions: bool = False
    ignore_index: int | None = None
    batch_dice: bool = True
    smooth: float = SMOOTH
    squared: bool = False


@dataclass(frozen=True)
class _Prepared:
    """Targets split into what the two terms need: one-hot or region maps, and the mask of counted voxels."""

    maps: Tensor
    mask: Tensor | None


def _prepare(num_outputs: int, target: Tensor, settings: LossSettings) -> _Prepared:
    """Target (B, 1, *S) of indices or (B, R[+1], *S) of regions -> float maps, bool mask (B, 1, *S)."""
    if settings.regions:
        if settings.ignore_index is None:
            return _Prepared(target.float(), None)
        return _Prepared(target[:, :-1].float(), ~target[:, -1:].bool())
    indices, mask = target.long(), None
    if settings.ignore_index is not None:
        mask = indices != settings.ignore_index
        indices = torch.where(mask, indices, 0)
    shape = (indices.shape[0], num_outputs, *indices.shape[2:])
    return _Prepared(torch.zeros(shape, device=target.device).scatter_(1, indices, 1.0), mask)


def foreground_maps(outputs: int, target: Tensor, settings: LossSettings) -> Tensor:
    """Target -> maps (B, K, *S), 0 or 1, of K foreground classes or regions; ignored voxels are in none."""
    if settings.regions:
        return _prepare(outputs, target, settings).maps
    return _prepare(outputs + 1, target, settings).maps[:, 1:]


def labelled_voxels(target: Tensor, settings: LossSettings) -> Tensor:
    """Target -> bool (B, 1, *S): whatever has another label than `ignore`."""
    if settings.ignore_index is None:
        return torch.ones_like(target[:, :1], dtype=torch.bool)
    return ~target[:, -1:].bool() if settings.regions else target != settings.ignore_index


class SegmentationLoss(nn.Module):
    """Dice + CE, or Dice + BCE for regions; both with weight 1, so that the sum goes to about -1 (nnU-Net).

    forward(logits (B, K, *S), target) -> {"loss", "dice", "ce"}: 0-dimensional tensors. `target` is
    (B, 1, *S) class indices, or (B, R, *S) bool regions with one more channel for the ignore label if any.
    With an ignore label the BCE of regions is their sum, without one their mean, as in nnU-Net.
    """

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        logits = logits.float()
        with torch.no_grad():
            prepared = _prepare(logits.shape[1], target, self.settings)
        dice = self._dice(logits, prepared)
        entropy = self._cross_entropy(logits, target, prepared)
        return {"loss": dice + entropy, "dice": dice, "ce": entropy}

    def _dice(self, logits: Tensor, prepared: _Prepared) -> Tensor:
        maps = prepared.maps
        if self.settings.regions:
            probabilities = torch.sigmoid(logits)
        else:
            probabilities, maps = torch.softmax(logits, 1)[:, 1:], maps[:, 1:]
        if prepared.mask is not None:
            probabilities, maps = probabilities * prepared.mask, maps * prepared.mask
        axes = tuple(range(2, logits.ndim))
        predicted = (probabilities**2 if self.settings.squared else probabilities).sum(axes)
        intersection, reference = (probabilities * maps).sum(axes), maps.sum(axes)
        if self.settings.batch_dice:
            intersection, predicted, reference = intersection.sum(0), predicted.sum(0), reference.sum(0)
        smooth = self.settings.smooth
        dice = (2 * intersection + smooth) / (reference + predicted + smooth).clamp_min(1e-8)
        return -dice.mean()

    def _cross_entropy(self, logits: Tensor, target: Tensor, prepared: _Prepared) -> Tensor:
        mask = prepared.mask
        if self.settings.regions:
            values = functional.binary_cross_entropy_with_logits(logits, prepared.maps, reduction="none")
            if mask is None:
                return values.mean()
            return (values * mask).sum() / mask.sum().clamp_min(1)
        if mask is None:
            return functional.cross_entropy(logits, target[:, 0].long())
        values = functional.cross_entropy(
            logits, target[:, 0].long(), ignore_index=int(self.settings.ignore_index or 0), reduction="sum"
        )
        return values / mask.sum().clamp_min(1)


def deep_supervision_weights(levels: int) -> tuple[float, ...]:
    """Weights of the decoder's outputs, finest first: halving, the coarsest 0, sum 1 (nnU-Net).

    A network with a single output has the weight 1.
    """
    if levels == 1:
        return (1.0,)
    raw = [0.5**level for level in range(levels - 1)]
    return (*(weight / sum(raw) for weight in raw), 0.0)


class DeepSupervisionLoss(nn.Module):
    """Weighted sum of one loss over the decoder's outputs; targets are downsampled by nearest neighbour."""

    def __init__(self, loss: SegmentationLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Sequence[Tensor], target: Tensor) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for weight, logits in zip(deep_supervision_weights(len(outputs)), outputs):
            if weight == 0.0:
                continue
            for name, value in self.loss(logits, downsample_target(target, logits.shape[2:])).items():
                total[name] = total[name] + weight * value if name in total else weight * value
        return total


def downsample_target(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Target (B, T, *S) at a coarser `shape`, by nearest neighbour at voxel centres as nnU-Net does."""
    if tuple(target.shape[2:]) == tuple(shape):
        return target
    resized = functional.interpolate(target.float(), tuple(shape), mode="nearest-exact")
    return resized.to(target.dtype)


@torch.no_grad()
def patch_counts(logits: Tensor, target: Tensor, settings: LossSettings) -> dict[str, Tensor]:
    """Voxels over the batch per foreground output: {"tp", "fp", "fn"}, each (K_fg,) float64.

    Args:
        logits: (B, K, *S); the arg-max, or probability above 0.5 for regions, is the prediction.
        target: as for SegmentationLoss; ignored voxels are left out.
        settings: kind of labels.
    """
    prepared = _prepare(logits.shape[1], target, settings)
    maps = prepared.maps
    if settings.regions:
        predicted = (logits > 0).float()
    else:
        predicted = torch.zeros_like(maps).scatter_(1, logits.argmax(1, keepdim=True), 1.0)[:, 1:]
        maps = maps[:, 1:]
    if prepared.mask is not None:
        predicted, maps = predicted * prepared.mask, maps * prepared.mask
    axes = (0, *range(2, logits.ndim))
    true_positive = (predicted * maps).sum(axes)
    counts = {
        "tp": true_positive,
        "fp": predicted.sum(axes) - true_positive,
        "fn": maps.sum(axes) - true_positive,
    }
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    return {name: value.to(wide) for name, value in counts.items()}
