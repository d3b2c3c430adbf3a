"""What the 2D heads on a SAM encoder share in training: AdamW, warm-up, frozen or full encoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from samunet.networks.features import EncodingNetwork
from samunet.networks.picture import SliceSettings
from samunet.networks.sam_slices import ENCODER_PREFIX, SamSliceNetwork, load_pretrained
from samunet.planning.methods import MethodConfig
from samunet.planning.plan import Configuration, Plan
from samunet.planning.sam_config import SamHeadConfig
from samunet.planning.sam_options import is_cached
from samunet.preprocessing.embedding_build import cached_features
from samunet.trainers.base import (
    MethodTrainer,
    Phase,
    PretrainedFile,
    SegmentationModule,
    TrainingModule,
    config_of,
    decayed_apart,
    loss_settings,
)
from samunet.trainers.encoder_weights import find_pretrained

GRADIENT_CLIP = 1.0


class SamHeadModule(SegmentationModule):
    """Runs the whole network on images, or its second half on cached features."""

    def outputs(self, batch: dict[str, Tensor]) -> Tensor | Sequence[Tensor]:
        features = cached_features(batch, batch["target"].shape[2:])
        if features is None:
            return self.network(batch["image"])
        return cast(EncodingNetwork, self.network).decode(features)


class SamHeadTrainer(MethodTrainer):
    """Base of the trainers of `2d_linear`, `2d_cnn` and `2d_autosam`: they differ in the network alone."""

    precision = "bf16"

    @classmethod
    @abstractmethod
    def build_head_network(cls, settings: SliceSettings, config: Any) -> SamSliceNetwork:
        """The network with this method's head."""

    @classmethod
    def build_network(
        cls, plan: Plan, configuration: Configuration, *, weights: Path | None = None
    ) -> nn.Module:
        config = config_of(configuration, SamHeadConfig)
        network = cls.build_head_network(_slice_settings(plan, configuration, config), config)
        if weights is not None:
            load_pretrained(network, weights)
        return network

    @classmethod
    def build_training(cls, network: nn.Module, plan: Plan, configuration: Configuration) -> TrainingModule:
        settings = loss_settings(plan, configuration)
        if config_of(configuration, SamHeadConfig).as_published:
            settings = replace(settings, smooth=1.0, squared=True)
        return SamHeadModule(network, settings)

    @classmethod
    def phases(cls, config: MethodConfig) -> tuple[Phase, ...]:
        assert isinstance(config, SamHeadConfig)
        groups = _Groups(config.encoder_learning_rate_factor)
        phase = Phase.of(config, optimizer="adamw", schedule="poly_step", clip=GRADIENT_CLIP, groups=groups)
        if config.as_published:
            # The public code, without its plateau rule: Adam, no decay, gradients not clipped.
            phase = replace(phase, optimizer="adam", weight_decay=0.0, schedule="constant", clip=float("inf"))
        return (phase,)

    @classmethod
    def frozen_prefix(cls, config: MethodConfig) -> str | None:
        assert isinstance(config, SamHeadConfig)
        return ENCODER_PREFIX if config.encoder == "frozen" else None

    @classmethod
    def cacheable(cls, config: MethodConfig) -> bool:
        assert isinstance(config, SamHeadConfig)
        return is_cached(config)

    @classmethod
    def pretrained(
        cls, configuration: Configuration, weights: Path | None, folder: Path | None
    ) -> PretrainedFile | None:
        config = config_of(configuration, SamHeadConfig)
        return find_pretrained(configuration, config.encoder, config.encoder_weights, weights, folder)


class _Groups:
    """Parameter groups: head and stem, and the encoder with its own rate if it is trained."""

    def __init__(self, encoder_factor: float) -> None:
        self.encoder_factor = encoder_factor

    def __call__(self, network: nn.Module) -> list[dict[str, Any]]:
        assert isinstance(network, SamSliceNetwork)
        trained = list(network.trained_parameters())
        encoder = [(name, p) for name, p in trained if name.startswith(ENCODER_PREFIX)]
        others = [(name, p) for name, p in trained if not name.startswith(ENCODER_PREFIX)]
        return decayed_apart(others) + decayed_apart(encoder, self.encoder_factor)


def _slice_settings(plan: Plan, configuration: Configuration, config: SamHeadConfig) -> SliceSettings:
    assert configuration.encoder is not None
    assert configuration.input_size is not None
    height, width = configuration.patch_size
    return SliceSettings(
        variant=configuration.encoder,
        input_size=configuration.input_size,
        patch_size=(height, width),
        num_channels=len(plan.channel_names),
        num_outputs=plan.labels.num_outputs,
        exclusive=not plan.labels.has_regions,
        display_window=plan.data_of(configuration).display_window,
        channel_map=config.channel_map,
        slice_context=config.slice_context,
        frozen=config.encoder == "frozen",
        paper_compat=config.as_published,
        checkpointing=config.checkpointing,
    )
