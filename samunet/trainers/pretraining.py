"""The step of pretraining: promptable segmentation and self-supervised objectives over one encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from samunet.errors import SamunetError, unknown_name
from samunet.networks.masked import MaskedPixels, hidden_patches
from samunet.networks.promptable import PromptableSam, normalised
from samunet.networks.promptable_start import start_from_nothing, start_from_weights
from samunet.networks.sam.adapters import add_adapters, has_adapters, is_adapter_key
from samunet.networks.sam.variants import PATCH, SamVariant, get_variant
from samunet.networks.sam.weights import SamWeights
from samunet.networks.teacher import EmbeddingMatch
from samunet.networks.token_tasks import MixedExamples, ShuffledTokens
from samunet.records import Bounds, Count, Natural, NotNegative, Positive, Share, check_fields
from samunet.trainers.base import Phase, TrainingModule, decayed_apart
from samunet.trainers.pretrain_teacher import Teacher
from samunet.trainers.prompt_rounds import PromptSettings, prompt_losses

TASKS = ("prompt", "mae", "emix", "shed", "teacher")
OF_EMBEDDING = ("prompt", "teacher")
"""Tasks that look at the embedding of the picture as it is; they share the encoder's pass."""
COUNTS = ("tp", "fp", "fn")
SCORES = ("first prompt", "after clicks")
"""What the `patch_dice` of a pretraining's history is of: the pixels of all prompted objects pooled."""


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """What is pretrained, and how.

    Attributes:
        encoder: variant whose three parts are trained.
        adapters: keep the encoder's own weights and train adapters in its blocks instead.
        adapter_width: channels inside an adapter; 0 takes a quarter of the encoder's width.
        input_size: side in pixels of the pictures, for adapters; 0 takes the encoder's native one.
        tasks / weights: objectives and the factor of each one's loss; every batch serves all of them.
        steps: optimizer steps.
        batch_size: pictures a step.
        objects: prompted objects a picture; the encoder runs once for all of them.
        clicks: rounds of correction after the first prompt.
        loss_stride: losses and clicks look at every so many pixels along rows and columns.
        focal_weight / focal_alpha: of the focal loss against Dice, and of the object's pixels in it.
        masked_share: of the patches, hidden in `mae`.
        self_share: part of each batch's pictures that `mae`, `emix` and `shed` see.
        teacher_size: side in pixels of the teacher's input; 0 takes the one its tables are made for.
        learning_rate / weight_decay / warmup_steps / clip: AdamW, linear warm-up, then polynomial to zero.
        epoch_steps / val_batches: steps between two lines of the history, and batches it is validated on.
        checkpointing: compute the encoder's activations again in the backward pass, for less memory.
        precision: as the setting of that name in training (`Precision.choose`): `auto` is bf16 on CUDA and
            fp32 elsewhere.
        seed: of weights, pictures and every draw.
    """

    encoder: str = "vit_tiny"
    adapters: bool = False
    adapter_width: Natural = 0
    input_size: Natural = 0
    tasks: tuple[str, ...] = ("prompt", "mae")
    weights: tuple[Positive, ...] = (1.0, 0.5)
    steps: Count = 2000
    batch_size: Count = 8
    objects: Count = 8
    clicks: Natural = 2
    loss_stride: Count = 2
    focal_weight: NotNegative = 1.0
    focal_alpha: Share = 0.5
    masked_share: Annotated[float, Bounds(above=0, below=1)] = 0.75
    self_share: Annotated[float, Bounds(above=0, most=1)] = 0.5
    teacher_size: Natural = 0
    learning_rate: Positive = 8e-4
    weight_decay: NotNegative = 0.05
    warmup_steps: Natural = 250
    clip: Positive = 1.0
    epoch_steps: Count = 100
    val_batches: Count = 4
    checkpointing: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for task in self.tasks:
            if task not in TASKS:
                raise unknown_name("task", task, TASKS)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise SamunetError(f"--tasks {','.join(self.tasks)}: name each task once, at least one.")
        if len(self.weights) != len(self.tasks):
            raise SamunetError(
                f"The tasks {', '.join(self.tasks)} need one weight each, found {self.weights}."
            )
        if "emix" in self.tasks and self.self_pictures < 2:
            raise SamunetError(
                "emix mixes pictures of a batch: --batch times self_share must be at least 2 (8 or more is "
                "good)."
            )
        self._check_adapters()

    def _check_adapters(self) -> None:
        changed = [name for name in ("adapter_width", "input_size") if getattr(self, name)]
        if changed and not self.adapters:
            raise SamunetError(
                f"{changed[0]} goes with --adapters: a whole encoder is trained at its native input size, "
                "which its position tables are made for."
            )
        if self.input_size % PATCH:
            raise SamunetError(f"input_size {self.input_size} must be a multiple of {PATCH}.")
        get_variant(self.encoder)

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.input_size or self.variant.native_size

    @property
    def variant(self) -> SamVariant:
        return get_variant(self.encoder)

    @property
    def self_pictures(self) -> int:
        """Pictures of a batch that the tasks without labels see."""
        return max(1, round(self.self_share * self.batch_size))

    @property
    def prompting(self) -> PromptSettings:
        """Of the promptable objective."""
        return PromptSettings(
            clicks=self.clicks,
            loss_stride=self.loss_stride,
            focal_weight=self.focal_weight,
            focal_alpha=self.focal_alpha,
        )


class PretrainNetwork(nn.Module):
    """A SAM (`sam`: its state dict is the result) and what the objectives need besides it (`heads`).

    Args:
        settings: variant and tasks.
        teacher_channels: of the teacher's embedding, where there is one.
        start: weights to begin with; adapters need some.
    """

    def __init__(
        self, settings: PretrainSettings, teacher_channels: int = 0, start: SamWeights | None = None
    ) -> None:
        super().__init__()
        variant = settings.variant
        self.sam = PromptableSam(variant, settings.size)
        self.sam.image_encoder.checkpointing = settings.checkpointing
        if start is None:
            start_from_nothing(self.sam)
        else:
            start_from_weights(self.sam, start)
        if settings.adapters:
            encoder = self.sam.image_encoder.requires_grad_(False)
            if not has_adapters(encoder):
                add_adapters(encoder, settings.adapter_width or None)
            for name, parameter in encoder.named_parameters():
                parameter.requires_grad_(is_adapter_key(name))
        makers: dict[str, Any] = {
            "mae": lambda: MaskedPixels(variant.width, variant.prompt_dim),
            "emix": MixedExamples,
            "shed": lambda: ShuffledTokens(variant.prompt_dim),
            "teacher": lambda: EmbeddingMatch(variant.prompt_dim, teacher_channels),
        }
        self.heads = nn.ModuleDict({task: makers[task]() for task in settings.tasks if task in makers})

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that training changes."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)


class PretrainModule(TrainingModule):
    """Weighted sum of the objectives.

    `batch` holds what `PretrainSource` makes: `image` uint8 (B, 3, S, S), `objects` boolean (B, K, S, S),
    `points_xy` (B, K, 2, 2) and `labels` (B, K, 2) of the first prompts, `real` boolean (B, g, g), tokens
    that are not padding alone, and random numbers `clicks` (B, K, rounds), `order` (B, g, g) and `mixing`
    (B, 2). All chance comes with the batch, so that the same samples give the same losses.
    """

    network: PretrainNetwork

    def __init__(
        self, network: PretrainNetwork, settings: PretrainSettings, teacher: Teacher | None = None
    ) -> None:
        super().__init__(network)
        self.settings = settings
        self.teacher = teacher

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        sam, heads, settings = self.network.sam, self.network.heads, self.settings
        picture = normalised(batch["image"])
        few = {name: batch[name][: settings.self_pictures] for name in ("order", "mixing", "real")}
        few["picture"] = picture[: settings.self_pictures]
        parts: dict[str, Tensor] = {}
        embedding = sam.embed(picture) if any(task in OF_EMBEDDING for task in settings.tasks) else None
        for task in settings.tasks:
            if task == "prompt":
                assert embedding is not None
                parts.update(prompt_losses(sam, embedding, batch, settings.prompting))
            elif task == "teacher":
                assert self.teacher is not None
                parts[task] = heads[task](embedding, self.teacher.embed(picture), batch["real"])
            elif task == "mae":
                hidden = hidden_patches(few["order"], settings.masked_share, few["real"])
                losses = heads[task](sam.image_encoder, few["picture"], hidden)
                parts[task] = losses.sum() / hidden.sum()
            else:
                draws = few["mixing" if task == "emix" else "order"]
                parts[task] = heads[task](sam.image_encoder, few["picture"], draws, few["real"])
        weighted = [weight * parts[task] for task, weight in zip(settings.tasks, settings.weights)]
        if self.training:
            parts = {name: value for name, value in parts.items() if name not in COUNTS}
        return {"loss": torch.stack(weighted).sum(), **parts}


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
    assert isinstance(network, PretrainNetwork)
    return decayed_apart(list(network.trained_parameters()))
