"""The promptable objective: a first prompt, then rounds of clicks on what is still wrong."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from samunet.networks.full_precision import full_precision
from samunet.networks.promptable import ALL, ONE, PADDING, POSITIVE, PromptableSam, Prompts
from samunet.trainers.prompting import best_of, error_clicks, mask_losses, true_iou


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How it is prompted and judged.

    Attributes:
        clicks: rounds of correction after the first prompt.
        loss_stride: losses and clicks look at every so many pixels along rows and columns.
        focal_weight / focal_alpha: of the focal loss against Dice, and of the object's pixels in it.
    """

    clicks: int = 2
    loss_stride: int = 2
    focal_weight: float = 1.0
    focal_alpha: float = 0.5


@dataclass(frozen=True)
class _Target:
    """Objects (B, K, h, w), and the pixels that somebody has annotated (B, h, w); boolean."""

    objects: Tensor
    known: Tensor


@dataclass(frozen=True)
class _Round:
    """One answer: loss, error of the predicted IoU, true IoU (B, K); mask (B, K, h, w); logits to go on."""

    loss: Tensor
    error: Tensor
    iou: Tensor
    answer: Tensor
    low: Tensor


def prompt_losses(
    sam: PromptableSam, embedding: Tensor, batch: dict[str, Tensor], settings: PromptSettings
) -> dict[str, Tensor]:
    """Mean over the rounds of mask loss and IoU error: `prompt`, with its parts.

    Args:
        sam: prompt encoder and mask decoder are used.
        embedding: (B, E, g, g).
        batch: `objects`, `known`, `points_xy`, `labels` and `clicks` of `PretrainSource`. Pixels that are
            not known are in no loss, no IoU and under no click.
        settings: see there.

    Returns:
        scalars `prompt`, `iou_error`, and mean IoU over the objects after the first prompt and after the last
        click, `iou_first` and `iou_clicked`; pixel counts `tp`, `fp`, `fn` (2,) of these two answers.
    """
    stride, objects = settings.loss_stride, batch["objects"]
    target = _Target(objects[..., ::stride, ::stride], batch["known"][:, ::stride, ::stride])
    asked = objects.flatten(2).any(-1)
    prompts, rounds = Prompts(batch["points_xy"], batch["labels"]), []
    for turn in range(settings.clicks + 1):
        allowed = _answers_allowed(batch["labels"]) if turn == 0 else None
        rounds.append(_answer(sam, embedding, prompts, target, (objects.shape[-1], settings), allowed))
        if turn < settings.clicks:
            last = rounds[-1]
            draws = batch["clicks"][..., turn]
            points, labels = error_clicks(last.answer, target.objects, draws, stride, target.known)
            labels = torch.where(asked, labels, PADDING)
            prompts = Prompts(
                torch.cat([prompts.points_xy, points[:, :, None]], 2),
                torch.cat([prompts.labels, labels[:, :, None]], 2),
                last.low,
            )
    number = asked.sum().clamp_min(1)
    loss, error, iou = (
        (torch.stack([getattr(r, name) for r in rounds]) * asked).sum((1, 2)) / number
        for name in ("loss", "error", "iou")
    )
    return {
        "prompt": (loss + error).mean(),
        "iou_error": error.mean(),
        "iou_first": iou[0],
        "iou_clicked": iou[-1],
        **_counts(rounds[0].answer, rounds[-1].answer, target, asked),
    }


def _answers_allowed(labels: Tensor) -> Tensor:
    """(B, K, 4): tokens 1 to 3 answer a single point, which may mean several objects; token 0 a box.

    SAM's own use of its tokens, so that one answer to a box (`multimask_output=False`) is trained too.
    """
    is_point = (labels[..., 0] == POSITIVE) & (labels[..., 1:] == PADDING).all(-1)
    first = torch.arange(4, device=labels.device) == 0
    return first != is_point[..., None]


def _answer(
    sam: PromptableSam,
    embedding: Tensor,
    prompts: Prompts,
    target: _Target,
    how: tuple[int, PromptSettings],
    allowed: Tensor | None,
) -> _Round:
    """One pass of the decoder; of several masks the best one learns, the one it thinks best answers."""
    size, settings = how
    low, predicted = sam(embedding, prompts, ONE if allowed is None else ALL)
    predicted = predicted.float()
    if allowed is None:
        allowed = torch.ones_like(predicted, dtype=torch.bool)
    logits = enlarged(low, size, settings.loss_stride)
    weight, alpha = settings.focal_weight, settings.focal_alpha
    each = mask_losses(logits, target.objects, weight, alpha, target.known)
    masks = logits.detach() > 0
    quality = true_iou(masks, target.objects, target.known)
    error = ((predicted - quality).square() * allowed).sum(-1) / allowed.sum(-1)
    belief = predicted.detach().masked_fill(~allowed, -torch.inf)
    return _Round(
        loss=each.masked_fill(~allowed, torch.inf).amin(-1),
        error=error,
        iou=best_of(quality, belief),
        answer=best_of(masks, belief),
        low=best_of(low.detach().float(), belief),
    )


def enlarged(logits: Tensor, size: int, stride: int) -> Tensor:
    """Every `stride`-th pixel of logits enlarged bilinearly: (B, K, M, h, h) -> (B, K, M, S / stride, ...).

    As two products with a small matrix: pixels that nobody looks at are not computed.
    """
    matrix = _enlargement(logits.shape[-1], size, stride).to(logits.device)
    with full_precision(logits.device.type):
        return matrix @ logits.float() @ matrix.T


@lru_cache(maxsize=8)
def _enlargement(cells: int, size: int, stride: int) -> Tensor:
    """(ceil(size / stride), cells): weights of the cells in every `stride`-th pixel of `size`."""
    whole = functional.interpolate(torch.eye(cells)[None], size, mode="linear", align_corners=False)[0]
    return whole.T[::stride].contiguous()


def _counts(first: Tensor, last: Tensor, target: _Target, asked: Tensor) -> dict[str, Tensor]:
    """Pixel counts (2,) of two answers (B, K, h, w) over the objects that were asked for."""
    answers = torch.stack([first, last])
    valid, wanted = asked[..., None, None] & target.known[:, None], target.objects
    pairs = {"tp": answers & wanted, "fp": answers & ~wanted, "fn": ~answers & wanted}
    return {name: (pixels & valid).flatten(1).sum(1).float() for name, pixels in pairs.items()}
