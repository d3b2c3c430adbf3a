"""A user who prompts: a first point or box, then clicks where the answer is wrong; and SAM's losses.

Kirillov et al. 2023 (arXiv 2304.02643), section 3 and appendix A. Points are (x, y) in pixels of the picture.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from samunet.networks.promptable import (
    FIRST_CORNER,
    LAST_CORNER,
    NEGATIVE,
    PADDING,
    POSITIVE,
)

JITTER, MOST_JITTER = 0.1, 20 / 1024
"""Deviation of a box's corners in parts of its sides; the most in parts of the picture (SAM's 20 of 1024)."""
FOCAL_GAMMA = 2.0


def first_prompt(mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random foreground point or a jittered box, with equal chances.

    Args:
        mask: (H, W) boolean.
        rng: source of all choices.

    Returns:
        points (2, 2) float32, x before y, and their labels (2,): a point and a padding, two corners of a
        box, or two paddings for an empty object.
    """
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return np.zeros((2, 2), np.float32), np.full(2, PADDING)
    if rng.random() < 0.5:
        chosen = int(rng.integers(len(rows)))
        points = np.array([[columns[chosen], rows[chosen]], [0, 0]], np.float32)
        return points, np.array([POSITIVE, PADDING])
    low = np.array([columns.min(), rows.min()], np.float32)
    high = np.array([columns.max(), rows.max()], np.float32)
    side = np.tile(high - low + 1, (2, 1))
    noise = rng.standard_normal((2, 2)) * JITTER * side
    most = np.float32(MOST_JITTER * max(mask.shape))
    corners = np.stack([low, high]) + np.clip(noise, -most, most)
    corners = np.clip(corners, 0, np.array(mask.shape[::-1]) - 1)
    corners = np.stack([corners.min(0), corners.max(0)]).astype(np.float32)
    return corners, np.array([FIRST_CORNER, LAST_CORNER])


def error_clicks(
    answer: Tensor, target: Tensor, draws: Tensor, stride: int, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A click in each object's error region, each of its pixels with the same chance.

    Positive where the object was missed, negative where too much was given, so never positive on an empty
    object; padding where nothing is wrong.

    Args:
        answer / target: (B, K, h, w) boolean, pixel (r, c) being the picture's (r * stride, c * stride).
        draws: (B, K) in 0..1.
        stride: see above.
        known: (B, h, w) boolean, False where nobody has annotated: nothing is wrong there.

    Returns:
        points (B, K, 2) float32, x before y, and labels (B, K).
    """
    width = target.shape[-1]
    wrong = _where_known(answer != target, known).flatten(2)
    running = wrong.cumsum(-1)
    count = running[..., -1]
    rank = (draws * count).long().clamp(max=(count - 1).clamp_min(0))
    pixel = (running > rank[..., None]).byte().argmax(-1)
    missed = target.flatten(2).gather(-1, pixel[..., None])[..., 0]
    labels = torch.where(missed, POSITIVE, NEGATIVE)
    labels = torch.where(count > 0, labels, PADDING)
    points = torch.stack([pixel % width, pixel // width], dim=-1).float() * stride
    return points, labels


def _where_known(values: Tensor, known: Tensor | None) -> Tensor:
    """Values (B, K, ..., h, w) of which those on pixels that are not known (B, h, w) become 0 or False."""
    if known is None:
        return values
    return values * known.view(len(known), *(1,) * (values.ndim - 3), *known.shape[1:])


def mask_losses(
    logits: Tensor,
    target: Tensor,
    focal_weight: float = 20.0,
    alpha: float = 0.25,
    known: Tensor | None = None,
) -> Tensor:
    """Focal loss times its weight, plus Dice, of each mask.

    Args:
        logits: (B, K, M, h, w).
        target: (B, K, h, w) boolean.
        focal_weight: against Dice.
        alpha: weight of the object's pixels in the focal loss; the others have 1 - alpha.
        known: (B, h, w) boolean; the other pixels do not count.

    Returns:
        (B, K, M) float32.
    """
    logits, wanted = logits.float(), target[:, :, None].float().expand_as(logits)
    chance = logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    of_truth = chance * wanted + (1 - chance) * (1 - wanted)
    share = alpha * wanted + (1 - alpha) * (1 - wanted)
    pixels = logits[0, 0, 0].numel() if known is None else known.sum((-2, -1)).clamp_min(1)[:, None, None]
    each = _where_known(share * (1 - of_truth) ** FOCAL_GAMMA * entropy, known)
    focal = each.sum((-2, -1)) / pixels
    overlap = _where_known(chance * wanted, known).sum((-2, -1))
    total = _where_known(chance + wanted, known).sum((-2, -1))
    return focal_weight * focal + 1 - (2 * overlap + 1) / (total + 1)


def true_iou(answers: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
    """IoU (B, K, M) of boolean answers (B, K, M, h, w) with targets (B, K, h, w); two empty ones give 1.

    Pixels that are not `known` (B, h, w) count for neither.
    """
    wanted = target[:, :, None]
    both = _where_known(answers & wanted, known).sum((-2, -1))
    either = _where_known(answers | wanted, known).sum((-2, -1))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


def best_of(values: Tensor, by: Tensor) -> Tensor:
    """Of values (B, K, M, ...) those of the mask with the highest `by` (B, K, M): (B, K, ...)."""
    index = by.argmax(-1)
    index = index.view(*index.shape, *(1,) * (values.ndim - 2))
    return values.gather(2, index.expand(-1, -1, 1, *values.shape[3:]))[:, :, 0]
