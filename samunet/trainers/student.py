"""`3d_student`: a small residual U-Net or SwinUNETR, trained by AdamW with or without a teacher."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from samunet.networks.student import StudentUNet, build_swin_unetr
from samunet.networks.unet_topology import require_divisible
from samunet.planning.methods import MethodConfig
from samunet.planning.methods.student import SWIN_FEATURES, StudentConfig, student_topology
from samunet.planning.plan import Configuration, Plan
from samunet.trainers.base import (
    MethodTrainer,
    Phase,
    SegmentationModule,
    TrainingModule,
    config_of,
    decayed_apart,
    loss_settings,
)
from samunet.trainers.unet import UNetModule


def _groups(network: nn.Module) -> list[dict[str, object]]:
    return decayed_apart(list(network.named_parameters()))


class StudentTrainer(MethodTrainer):
    """AdamW with warm-up and polynomial decay per step; norms, biases and position tables are not decayed."""

    precision = "fp16"

    @classmethod
    def build_network(
        cls, plan: Plan, configuration: Configuration, *, weights: Path | None = None
    ) -> nn.Module:
        assert weights is None
        config = config_of(configuration, StudentConfig)
        inputs, outputs = len(plan.channel_names), plan.labels.num_outputs
        if config.network in SWIN_FEATURES:
            return build_swin_unetr(inputs, outputs, configuration.patch_size, SWIN_FEATURES[config.network])
        spacing_mm = plan.data_of(configuration).spacing_mm
        topology = student_topology(config, tuple(spacing_mm), tuple(configuration.patch_size))
        require_divisible(topology, configuration.patch_size)
        return StudentUNet(inputs, outputs, topology)

    @classmethod
    def build_training(cls, network: nn.Module, plan: Plan, configuration: Configuration) -> TrainingModule:
        config, settings = config_of(configuration, StudentConfig), loss_settings(plan, configuration)
        if isinstance(network, StudentUNet):
            return UNetModule(network, settings, config.deep_supervision)
        return SegmentationModule(network, settings)

    @classmethod
    def phases(cls, config: MethodConfig) -> tuple[Phase, ...]:
        assert isinstance(config, StudentConfig)
        clip = config.gradient_clip
        return (Phase.of(config, optimizer="adamw", schedule="poly_step", clip=clip, groups=_groups),)
