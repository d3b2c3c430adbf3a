"""One training run: what is asked for, and what the loop is given."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from samunet.data.splits import Split
from samunet.planning.methods import Method, MethodConfig
from samunet.planning.plan import Configuration, Plan
from samunet.trainers.augmentation import AugmentationSettings
from samunet.trainers.base import MethodTrainer, Phase, PretrainedFile, TrainingModule
from samunet.trainers.batches import PatchSource, SourceSettings
from samunet.trainers.cached import EmbeddingSource
from samunet.trainers.checkpoint import BaseWeights, Checkpoint, network_state, save_checkpoint
from samunet.trainers.devices import Precision
from samunet.trainers.distillation import Distillation
from samunet.trainers.reporter import Reporter
from samunet.trainers.sampling import Batching

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What the user wants trained.

    Attributes:
        plan / configuration: as planned; `settings` changes settings of the method or fields of the
            configuration (see settings.py).
        fold / split: cases of this run.
        case_folder: preprocessed cases of the configuration's data.
        folder: of the run (results/.../fold_K).
        splits: scheme that `split` is from, for the record; None is the default.
        encoder: the user's choice of encoder, for the record; the plan has it already.
        weights: encoder file to start from (`-w`); None takes what the plan says from `weights_folder`.
        embedding_folder: signature -> folder of the embedding cache; None never caches.
        device: None chooses one.
        seed: None takes 0, or that of the run to be continued.
        time_budget_minutes: fit the schedule into this time, cache building included.
        resume: continue the run in `folder`; settings that are not repeated are taken from it.
        overwrite: replace whatever run is in `folder`.
        replaced: folds of the model that the same command replaces with --overwrite.
        workers: processes that prepare samples; None chooses, 0 uses none.
        distillation: the teacher to learn from, or None.
    """

    plan: Plan
    configuration: str
    fold: int | str
    split: Split
    case_folder: Path
    folder: Path
    splits: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    encoder: str | None = None
    weights: Path | None = None
    weights_folder: Path | None = None
    embedding_folder: Callable[[str], Path] | None = None
    device: str | None = None
    seed: int | None = None
    time_budget_minutes: float | None = None
    resume: bool = False
    overwrite: bool = False
    replaced: tuple[int | str, ...] = ()
    workers: int | None = None
    distillation: Distillation | None = None


@dataclass(kw_only=True)
class TrainingRun:
    """Everything that the loop needs; `phases` and `source` are settled before it starts.

    Attributes:
        plan: with the configuration as it is trained.
        method / trainer / config: of the configuration.
        class_names: foreground classes or regions, in the order of the counts.
        base_weights: pretrained tensors that checkpoints leave out.
        resume_from: checkpoint to continue from.
    """

    plan: Plan
    configuration: Configuration
    method: Method
    trainer: type[MethodTrainer]
    config: MethodConfig
    fold: int | str
    folder: Path
    seed: int
    overrides: dict[str, Any]
    time_budget_minutes: float | None
    device: torch.device
    precision: Precision
    module: TrainingModule
    phases: tuple[Phase, ...]
    source: PatchSource | EmbeddingSource
    workers: int
    reporter: Reporter
    pretrained: PretrainedFile | None = None
    base_weights: BaseWeights | None = None
    resume_from: Checkpoint | None = None

    @property
    def batch_size(self) -> int:
        return self.configuration.batch_size

    @property
    def batching(self) -> Batching:
        return Batching(size=self.batch_size, oversample=self.config.oversample_foreground)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.plan.labels.foreground)

    def take_checkpoint(self) -> Checkpoint | None:
        """What is continued, handed over: the run does not keep it in memory."""
        taken, self.resume_from = self.resume_from, None
        return taken

    def save(self, path: Path, epoch: int, training: dict[str, Any]) -> None:
        """Write a checkpoint after `epoch` complete epochs."""
        save_checkpoint(path, self.checkpoint(epoch, training))

    def checkpoint(self, epoch: int, training: dict[str, Any]) -> Checkpoint:
        """Content of a checkpoint after `epoch` complete epochs."""
        return Checkpoint(
            method=self.method.name,
            trainer=self.method.trainer,
            configuration=self.configuration.name,
            plan=self.plan,
            fold=self.fold,
            epoch=epoch,
            network=network_state(self.module.network, self.base_weights),
            base_weights=self.base_weights,
            seed=self.seed,
            mirror_axes=self.source.mirrored_axes,
            overrides=self.overrides,
            training=training,
        )


def source_settings(
    request: RunRequest, plan: Plan, configuration: Configuration, config: MethodConfig, seed: int
) -> SourceSettings:
    """How samples are drawn and augmented."""
    data, labels = plan.data_of(configuration), plan.labels
    context = getattr(config, "slice_context", 0)
    slices = 2 * context + 1  # the mask is the middle one's; its neighbours have another outline
    masked = [i for i, used in enumerate(data.use_mask_for_norm) if used]
    augmentation = AugmentationSettings(
        patch_size=tuple(configuration.patch_size),
        mirror_axes=tuple(configuration.mirror_axes),
        preset=config.augmentation,
        slice_context=context,
        masked_channels=tuple(i * slices + context for i in masked),
        regions=tuple(labels.foreground.values()) if labels.has_regions else None,
        ignore_index=labels.ignore_index,
    )
    return SourceSettings(
        case_folder=request.case_folder,
        data_hash=plan.data_hash(configuration.data),
        train=request.split.train,
        val=request.split.val,
        seed=seed,
        fold=request.fold,
        augmentation=augmentation,
        soft=None if request.distillation is None else request.distillation.labels,
    )
