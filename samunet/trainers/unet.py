"""`2d_unet` and `3d_unet`: nnU-Net's recipe on the plain U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from samunet.networks.unet import build_unet
from samunet.planning.methods import MethodConfig
from samunet.planning.methods.unet import UNetConfig
from samunet.planning.plan import Configuration, Plan
from samunet.trainers.base import (
    MethodTrainer,
    Phase,
    SegmentationModule,
    TrainingModule,
    config_of,
    loss_settings,
)
from samunet.trainers.losses import LossSettings

SHORT_STEPS = 2000
"""Below this many steps nnU-Net's momentum of 0.99, which averages over 100 steps, has hardly got going."""
SHORT_RATE, SHORT_MOMENTUM = 0.05, 0.9


class UNetModule(SegmentationModule):
    """Deep supervision in training and validation; the network itself stays switched to a single output."""

    def __init__(self, network: nn.Module, settings: LossSettings, deep_supervision: bool) -> None:
        super().__init__(network, settings)
        self.deep_supervision = deep_supervision

    def outputs(self, batch: dict[str, Tensor]) -> Tensor | Sequence[Tensor]:
        decoder: Any = self.network.decoder
        decoder.deep_supervision = self.deep_supervision
        try:
            return self.network(batch["image"])
        finally:
            decoder.deep_supervision = False


class UNetTrainer(MethodTrainer):
    """SGD with Nesterov momentum, polynomial decay per epoch, gradient norm at most 12."""

    precision = "fp16"

    @classmethod
    def build_network(
        cls, plan: Plan, configuration: Configuration, *, weights: Path | None = None
    ) -> nn.Module:
        assert weights is None
        return build_unet(
            num_inputs=len(plan.channel_names),
            num_outputs=plan.labels.num_outputs,
            patch_size=configuration.patch_size,
            spacing_mm=plan.data_of(configuration).spacing_mm,
        )

    @classmethod
    def build_training(cls, network: nn.Module, plan: Plan, configuration: Configuration) -> TrainingModule:
        config = config_of(configuration)
        assert isinstance(config, UNetConfig)
        return UNetModule(network, loss_settings(plan, configuration), config.deep_supervision)

    @classmethod
    def phases(cls, config: MethodConfig) -> tuple[Phase, ...]:
        assert isinstance(config, UNetConfig)
        rates = {"momentum": config.momentum, "clip": config.gradient_clip}
        return (Phase.of(config, optimizer="sgd", schedule="poly_epoch", **rates),)

    @classmethod
    def shortened(
        cls, config: MethodConfig, phases: tuple[Phase, ...], *, given: frozenset[str]
    ) -> tuple[Phase, ...]:
        """A few hundred steps with less momentum at a higher rate; what the user set is kept."""
        assert isinstance(config, UNetConfig)
        usual = (config.learning_rate, config.momentum) == (UNetConfig.learning_rate, UNetConfig.momentum)
        chosen = not usual or given & {"learning_rate", "momentum"}
        if chosen or sum(phase.epochs * phase.iterations for phase in phases) >= SHORT_STEPS:
            return phases
        return tuple(replace(p, learning_rate=SHORT_RATE, momentum=SHORT_MOMENTUM) for p in phases)
