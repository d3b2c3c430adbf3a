"""What a method supplies for training: a network, a module whose forward is the whole step, and phases."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from samunet.errors import SamunetError
from samunet.planning.methods import MethodConfig, build_config, get_method
from samunet.planning.plan import Configuration, Plan
from samunet.trainers.losses import DeepSupervisionLoss, LossSettings, SegmentationLoss, patch_counts

Config = TypeVar("Config", bound=MethodConfig)
ParameterGroups = Callable[[nn.Module], list[dict[str, Any]]]
"""Network -> groups for the optimizer: `params`, and optionally `lr_factor` and `weight_decay`."""

EMBEDDING = re.compile(
    r"(^|\.)("
    r"\w+_embed|\w+_token|rel_pos_\w|\w*position\w*"  # a parameter of its own
    r"|(\w+_embed|\w+_embeddings\.\d+|\w+_tokens?)\.weight"  # nn.Embedding
    r")$"
)
"""Ends of parameter names that mark embeddings (positions, tokens, prompts), which are not decayed. A module
with such a word in its name, like SAM's `cross_attn_token_to_image` or `patch_embed.proj`, is none."""


def all_parameters(network: nn.Module) -> list[dict[str, Any]]:
    """One group with every parameter, decayed alike (nnU-Net)."""
    return [{"params": list(network.parameters())}]


def decayed_apart(
    parameters: Sequence[tuple[str, nn.Parameter]], lr_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Split named parameters into decayed ones, and norms, biases and embeddings that are not decayed."""
    plain: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in parameters:
        is_spared = parameter.ndim < 2 or EMBEDDING.search(name) is not None
        (spared if is_spared else plain).append(parameter)
    groups = [
        {"params": plain, "lr_factor": lr_factor},
        {"params": spared, "lr_factor": lr_factor, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with one optimizer and one schedule; most methods have one.

    Attributes:
        name: shown while training.
        optimizer: `adamw`, `adam` (no weight decay) or `sgd` (Nesterov).
        learning_rate: peak value; each group may scale it by its `lr_factor`.
        epochs / iterations / val_iterations: length; iterations are optimizer steps an epoch.
        schedule: `poly_epoch` or `poly_step` (both with `warmup_steps`), or `constant`; see schedule.py.
        momentum: of SGD.
        clip: largest norm of the gradient.
        accumulate: batches an optimizer step.
        groups: chooses what is trained; parameters in no group are frozen during the phase.
    """

    name: str
    optimizer: Literal["adamw", "adam", "sgd"]
    learning_rate: float
    weight_decay: float
    epochs: int
    iterations: int
    val_iterations: int
    schedule: Literal["poly_epoch", "poly_step", "constant"]
    warmup_steps: int = 0
    momentum: float = 0.99
    clip: float = 1.0
    accumulate: int = 1
    groups: ParameterGroups = all_parameters

    @classmethod
    def of(cls, config: MethodConfig, **chosen: Any) -> Phase:
        """A phase with the length, rate, decay, warm-up and accumulation that are the method's settings.

        Args:
            config: the settings.
            chosen: the other fields, and any that differ.
        """
        settings = {
            name: getattr(config, name)
            for name in (
                "learning_rate",
                "weight_decay",
                "epochs",
                "iterations",
                "val_iterations",
                "warmup_steps",
                "accumulate",
            )
        }
        return cls(**{"name": "training", **settings, **chosen})


def build_optimizer(phase: Phase, network: nn.Module) -> torch.optim.Optimizer:
    """Freeze what the phase does not train and make its optimizer."""
    groups = phase.groups(network)
    chosen = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    ready = [{"lr_factor": 1.0, "weight_decay": phase.weight_decay, **group} for group in groups]
    if phase.optimizer == "sgd":
        return torch.optim.SGD(ready, phase.learning_rate, momentum=phase.momentum, nesterov=True)
    kind = torch.optim.AdamW if phase.optimizer == "adamw" else torch.optim.Adam
    return kind(ready, phase.learning_rate, fused=_can_fuse(network))


def _can_fuse(network: nn.Module) -> bool:
    """Whether the optimizer can update in one kernel: on CUDA, and on the CPU since torch 2.4."""
    devices = {parameter.device.type for parameter in network.parameters()}
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return devices <= {"cuda"} or (devices <= {"cpu"} and version >= (2, 4))


@dataclass(frozen=True, kw_only=True)
class PretrainedFile:
    """A file with pretrained encoder weights.

    Attributes:
        path: where it lies; `kind` is `official`, `shipped` or `file` (of unknown origin).
        variant: of the encoder.
        sha256: of the whole file.
        retrievable: whether prediction can count on finding it again in the weights folder.
        adapted: whether its encoder has adapters.
    """

    path: Path
    kind: str
    variant: str
    sha256: str
    retrievable: bool
    adapted: bool = False


class TrainingModule(nn.Module, ABC):
    """A network with its losses. `forward` is the whole step, so that the loop can wrap it unseen.

    `forward(batch)` returns `loss` (differentiable, 0-dimensional) and any named parts of it to be shown. In
    evaluation mode it returns `tp`, `fp`, `fn` per foreground output (K_fg,) too, from which patch Dice is
    made.

    `batch` holds `image` (B, C, *patch) float32, or the cached `level_0`, `level_1`... of a frozen encoder,
    and `target` (B, 1, *patch) class indices or (B, R[+1], *patch) regions (the last one marks ignored
    voxels). Of a distilled run it holds `soft` (B, K, *patch), the teacher's outputs, and `labelled` (B,)
    bool too.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def enter_phase(self, phase: Phase) -> None:
        """Called before the first step of a phase and after a checkpoint of it was loaded.

        What a phase changes in the network must be in its state dict, so that prediction knows it.
        """

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of one batch."""


class SegmentationModule(TrainingModule):
    """The step of a plain segmentation network: logits (or a list, finest first) and Dice + CE."""

    def __init__(self, network: nn.Module, settings: LossSettings) -> None:
        super().__init__(network)
        self.settings = settings
        self.single = SegmentationLoss(settings)
        self.multiple = DeepSupervisionLoss(self.single)

    def outputs(self, batch: dict[str, Tensor]) -> Tensor | Sequence[Tensor]:
        """Logits (B, K, *patch), or a list of them at falling resolutions."""
        return self.network(batch["image"])

    def losses(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> dict[str, Tensor]:
        """Dice + CE of logits, or of a list of them: {"loss", "dice", "ce"}."""
        return self.single(outputs, target) if isinstance(outputs, Tensor) else self.multiple(outputs, target)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs, target = self.outputs(batch), batch["target"]
        losses = self.losses(outputs, target)
        if self.training:
            return losses
        return {**losses, **patch_counts(finest_of(outputs), target, self.settings)}


def finest_of(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """The logits at full resolution."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def loss_settings(plan: Plan, configuration: Configuration) -> LossSettings:
    """Loss settings that follow from the labels and the planned batch Dice."""
    return LossSettings(
        regions=plan.labels.has_regions,
        ignore_index=plan.labels.ignore_index,
        batch_dice=configuration.batch_dice,
    )


@overload
def config_of(configuration: Configuration) -> MethodConfig: ...


@overload
def config_of(configuration: Configuration, kind: type[Config]) -> Config: ...


def config_of(configuration: Configuration, kind: type[MethodConfig] = MethodConfig) -> MethodConfig:
    """The method's Config, which is of that kind, with the configuration's settings over its defaults."""
    config = build_config(get_method(configuration.method), configuration.settings)
    assert isinstance(config, kind)
    return config


class MethodTrainer(ABC):
    """How one method is built and trained. Never instantiated; prediction uses `build_network` alone.

    Attributes:
        precision: on CUDA `fp16` (with loss scaling) or `bf16` (fp16 where the GPU has no bf16). CPU and MPS
            use fp32. The setting of that name overrules it.
    """

    precision: ClassVar[Literal["fp16", "bf16"]] = "fp16"

    @classmethod
    @abstractmethod
    def build_network(
        cls, plan: Plan, configuration: Configuration, *, weights: Path | None = None
    ) -> nn.Module:
        """A network (B, C, *patch) -> (B, K, *patch).

        Args:
            plan: labels, channels and data configuration.
            configuration: what to build.
            weights: pretrained encoder file to start from; None leaves the encoder as initialised.
        """

    @classmethod
    def build_training(cls, network: nn.Module, plan: Plan, configuration: Configuration) -> TrainingModule:
        """The training step around a network."""
        return SegmentationModule(network, loss_settings(plan, configuration))

    @classmethod
    @abstractmethod
    def phases(cls, config: MethodConfig) -> tuple[Phase, ...]:
        """What is trained, in which order and for how long."""

    @classmethod
    def shortened(
        cls, config: MethodConfig, phases: tuple[Phase, ...], *, given: frozenset[str]
    ) -> tuple[Phase, ...]:
        """The phases after a time budget has cut them; a recipe made for long training may differ then.

        Args:
            config: the settings.
            phases: as cut.
            given: names of the settings that the user gave, which are to be kept.
        """
        return phases

    @classmethod
    def pretrained(
        cls, configuration: Configuration, weights: Path | None, folder: Path | None
    ) -> PretrainedFile | None:
        """The pretrained file that training starts from, or None.

        Args:
            configuration: says which weights were planned.
            weights: the user's file (`-w`), taken instead.
            folder: where official files lie.

        Raises:
            SamunetError: the planned file is missing, or the method takes none.
        """
        if weights is not None:
            raise SamunetError(f"{configuration.method} has no pretrained encoder; leave out -w.")
        return None

    @classmethod
    def frozen_prefix(cls, config: MethodConfig) -> str | None:
        """Prefix of the state-dict keys of an encoder that is never trained, or None."""
        return None

    @classmethod
    def cacheable(cls, config: MethodConfig) -> bool:
        """Whether the encoder's outputs can be kept on disk: only those of a head on `SamSliceNetwork` whose
        settings are a `SamHeadConfig`."""
        return False
