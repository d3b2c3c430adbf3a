"""The step of pretraining: promptable segmentation and self-supervised objectives over one encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samunet.errors import SamunetError, unknown_name
from samunet.networks.masked import MaskedPixels, hidden_patches
from samunet.networks.promptable import PromptableSam, Prompts, normalised
from samunet.networks.sam.variants import SamVariant, get_variant
from samunet.networks.token_tasks import MixedExamples, ShuffledTokens
from samunet.trainers.base import Phase, TrainingModule, decayed_apart
from samunet.trainers.prompting import best_of, error_clicks, mask_losses, true_iou

TASKS = ("prompt", "mae", "emix", "shed")
SCORES = ("first prompt", "after clicks")
"""What the `patch_dice` of a pretraining's history is of: the pixels of all prompted objects pooled."""


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """What is pretrained, and how.

    Attributes:
        encoder: variant whose three parts are trained.
        tasks / weights: objectives and the factor of each one's loss; every batch serves all of them.
        steps: optimizer steps.
        batch_size: pictures a step.
        objects: prompted objects a picture; the encoder runs once for all of them.
        clicks: rounds of correction after the first prompt.
        loss_stride: losses and clicks look at every so many pixels along rows and columns.
        focal_weight / focal_alpha: of the focal loss against Dice, and of the object's pixels in it.
        masked_share: of the patches, hidden in `mae`.
        learning_rate / weight_decay / warmup_steps / clip: AdamW, linear warm-up, then polynomial to zero.
        epoch_steps / val_batches: steps between two lines of the history, and batches it is validated on.
        seed: of weights, pictures and every draw.
    """

    encoder: str = "vit_tiny"
    tasks: tuple[str, ...] = ("prompt", "mae")
    weights: tuple[float, ...] = (1.0, 0.5)
    steps: int = 2000
    batch_size: int = 8
    objects: int = 4
    clicks: int = 2
    loss_stride: int = 2
    focal_weight: float = 20.0
    focal_alpha: float = 0.25
    masked_share: float = 0.75
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    warmup_steps: int = 250
    clip: float = 1.0
    epoch_steps: int = 100
    val_batches: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise unknown_name("task", task, TASKS)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise SamunetError(f"--tasks {','.join(self.tasks)}: name each task once, at least one.")
        if len(self.weights) != len(self.tasks) or not all(weight > 0 for weight in self.weights):
            raise SamunetError(
                f"The tasks {', '.join(self.tasks)} need one weight above 0 each, found {self.weights}."
            )
        counts = ("steps", "batch_size", "objects", "loss_stride", "epoch_steps", "val_batches")
        low = [name for name in counts if getattr(self, name) < 1]
        if low or self.clicks < 0:
            raise SamunetError(f"{', '.join(low or ['clicks'])}: must be at least {1 if low else 0}.")
        if not 0 < self.masked_share < 1:
            raise SamunetError(f"masked_share {self.masked_share} must lie between 0 and 1.")
        if "emix" in self.tasks and self.batch_size < 2:
            raise SamunetError(
                "emix mixes pictures of a batch: --batch must be at least 2 (8 or more is good)."
            )
        get_variant(self.encoder)

    @property
    def variant(self) -> SamVariant:
        return get_variant(self.encoder)


class PretrainNetwork(nn.Module):
    """A SAM (`sam`: its state dict is the result) and what the objectives need besides it (`heads`)."""

    def __init__(self, settings: PretrainSettings) -> None:
        super().__init__()
        variant = settings.variant
        self.sam = PromptableSam(variant)
        makers: dict[str, Any] = {
            "mae": lambda: MaskedPixels(variant.width, variant.prompt_dim),
            "emix": MixedExamples,
            "shed": lambda: ShuffledTokens(variant.prompt_dim),
        }
        self.heads = nn.ModuleDict({task: makers[task]() for task in settings.tasks if task in makers})


class PretrainModule(TrainingModule):
    """Weighted sum of the objectives.

    `batch` holds what `PretrainSource` makes: `image` uint8 (B, 3, S, S), `objects` boolean (B, K, S, S),
    `points_xy` (B, K, 2, 2) and `labels` (B, K, 2) of the first prompts, and random numbers `clicks` (B, K,
    rounds), `order` (B, g, g), `mixing` (B, 2). All chance comes with the batch, so that the same samples
    give the same losses.
    """

    def __init__(self, network: PretrainNetwork, settings: PretrainSettings) -> None:
        super().__init__(network)
        self.settings = settings

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        sam, heads = self.network.sam, self.network.heads
        picture = normalised(batch["image"])
        parts: dict[str, Tensor] = {}
        for task in self.settings.tasks:
            if task == "prompt":
                parts.update(self._prompt(sam.embed(picture), batch))
            elif task == "mae":
                hidden = hidden_patches(batch["order"], self.settings.masked_share)
                losses = heads[task](sam.image_encoder, picture, hidden)
                parts[task] = losses.sum() / hidden.sum()
            elif task == "emix":
                parts[task] = heads[task](sam.image_encoder, picture, batch["mixing"])
            else:
                parts[task] = heads[task](sam.image_encoder, picture, batch["order"])
        total = sum(weight * parts[task] for task, weight in zip(self.settings.tasks, self.settings.weights))
        return {"loss": total, **parts}

    def _prompt(self, embedding: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean loss over the rounds; in evaluation mode pixel counts of the first and the last answer."""
        stride, objects = self.settings.loss_stride, batch["objects"]
        target = objects[..., ::stride, ::stride]
        asked = objects.flatten(2).any(-1)
        number = asked.sum().clamp_min(1)
        prompts, losses, answers = Prompts(batch["points_xy"], batch["labels"]), [], []
        errors = []
        for turn in range(self.settings.clicks + 1):
            # One prompt may mean several objects: three answers, and only the best of them learns.
            low, iou = self.network.sam(embedding, prompts, ambiguous=turn == 0)
            logits = _enlarged(low, objects.shape[-1])[..., ::stride, ::stride]
            each = mask_losses(logits, target, self.settings.focal_weight, self.settings.focal_alpha)
            quality = true_iou(logits.detach() > 0, target)
            error = (iou.float() - quality).square().mean(-1)
            losses.append(((each.amin(-1) + error) * asked).sum() / number)
            errors.append((error * asked).sum() / number)
            # As a user would: go on with the answer that the network itself thinks best.
            answer = best_of(logits.detach() > 0, iou.detach())
            answers.append(answer)
            if turn < self.settings.clicks:
                points, labels = error_clicks(answer, target, batch["clicks"][..., turn], stride)
                labels = torch.where(asked, labels, -1)
                prompts = Prompts(
                    torch.cat([prompts.points_xy, points[:, :, None]], 2),
                    torch.cat([prompts.labels, labels[:, :, None]], 2),
                    best_of(low.detach().float(), iou.detach()),
                )
        parts = {"prompt": torch.stack(losses).mean(), "iou_error": torch.stack(errors).mean()}
        return parts if self.training else {**parts, **_counts(answers[0], answers[-1], target, asked)}


def _enlarged(logits: Tensor, size: int) -> Tensor:
    """(B, K, M, h, w) -> (B, K, M, S, S), bilinearly, float32."""
    resized = functional.interpolate(
        logits.float().flatten(0, 1), (size, size), mode="bilinear", align_corners=False
    )
    return resized.view(*logits.shape[:3], size, size)


def _counts(first: Tensor, last: Tensor, target: Tensor, asked: Tensor) -> dict[str, Tensor]:
    """Pixel counts (2,) of two answers (B, K, h, w) over the objects that were asked for."""
    answers = torch.stack([first, last])
    valid = asked[..., None, None]
    pairs = {"tp": answers & target, "fp": answers & ~target, "fn": ~answers & target}
    return {name: (pixels & valid).flatten(1).sum(1).float() for name, pixels in pairs.items()}


def phase_of(settings: PretrainSettings) -> Phase:
    """The one phase; whole epochs of steps, and one shorter epoch if that is all."""
    iterations = min(settings.epoch_steps, settings.steps)
    return Phase(
        name="pretraining",
        optimizer="adamw",
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        epochs=max(1, round(settings.steps / iterations)),
        iterations=iterations,
        val_iterations=settings.val_batches,
        schedule="poly_step",
        warmup_steps=settings.warmup_steps,
        clip=settings.clip,
        groups=_groups,
    )


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    """Norms, biases and embeddings are not decayed."""
    return decayed_apart(list(network.named_parameters()))
