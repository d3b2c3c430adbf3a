"""`3d_adapter`: training in two stages, the second with the automatic prompt generator (AutoProSAM).

The paper trains in two stages without saying where one ends and the public code has a single one. Our
definition: first everything that adapts the encoder and the decoder, the generator bypassed; then generator
and decoder, the encoder's trained parts at a tenth of the rate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from samunet.networks.adapter3d import ENCODER_PREFIX, AdapterNetwork, AdapterSettings, load_pretrained
from samunet.networks.sam.variants import get_variant
from samunet.networks.volume_encoder import VolumeEncoderSettings
from samunet.planning.methods import MethodConfig
from samunet.planning.methods.adapter3d import AdapterConfig
from samunet.planning.plan import Configuration, Plan
from samunet.planning.volume_costs import volume_widths
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
GENERATOR_PREFIX = "generators."
SECOND_STAGE = "prompting"


class AdapterModule(SegmentationModule):
    """The plain step; the generator takes part from the second stage on."""

    def enter_phase(self, phase: Phase) -> None:
        if phase.name == SECOND_STAGE:
            assert isinstance(self.network, AdapterNetwork)
            self.network.start_generator()


class AdapterTrainer(MethodTrainer):
    """AdamW, warm-up and polynomial decay in each stage, gradient norm at most 1."""

    precision = "bf16"

    @classmethod
    def build_network(
        cls, plan: Plan, configuration: Configuration, *, weights: Path | None = None
    ) -> nn.Module:
        network = AdapterNetwork(network_settings(plan, configuration))
        if weights is not None:
            load_pretrained(network, weights)
        return network

    @classmethod
    def build_training(cls, network: nn.Module, plan: Plan, configuration: Configuration) -> TrainingModule:
        return AdapterModule(network, loss_settings(plan, configuration))

    @classmethod
    def phases(cls, config: MethodConfig) -> tuple[Phase, ...]:
        assert isinstance(config, AdapterConfig)
        first = round(config.first_stage * config.epochs) if _staged(config) else config.epochs
        first = min(max(first, 1), max(config.epochs - 1, 1)) if _staged(config) else first
        adapting = Phase.of(
            config,
            name="adapting",
            epochs=first,
            optimizer="adamw",
            schedule="poly_step",
            clip=GRADIENT_CLIP,
            groups=_Groups(config, encoder_factor=1.0, generator=not _staged(config)),
        )
        if not _staged(config) or config.epochs < 2:
            return (adapting,)
        return (adapting, _second(adapting, config))

    @classmethod
    def pretrained(
        cls, configuration: Configuration, weights: Path | None, folder: Path | None
    ) -> PretrainedFile | None:
        config = config_of(configuration, AdapterConfig)
        return find_pretrained(configuration, config.encoder, config.encoder_weights, weights, folder)

    @classmethod
    def frozen_prefix(cls, config: MethodConfig) -> str | None:
        assert isinstance(config, AdapterConfig)
        return ENCODER_PREFIX if config.encoder == "frozen" else None


class _Groups:
    """Parameter groups: decoder and generator, what is added to SAM, and SAM's own weights if they are
    trained."""

    def __init__(self, config: AdapterConfig, encoder_factor: float, generator: bool) -> None:
        self.config, self.factor, self.generator = config, encoder_factor, generator

    def __call__(self, network: nn.Module) -> list[dict[str, Any]]:
        assert isinstance(network, AdapterNetwork)
        shared = {ENCODER_PREFIX + key for key in network.encoder.sam_keys()}
        own: list[tuple[str, nn.Parameter]] = []
        added: list[tuple[str, nn.Parameter]] = []
        rest: list[tuple[str, nn.Parameter]] = []
        for name, parameter in network.trained_parameters():
            if name in shared and ".norm" not in name:
                own.append((name, parameter))
            elif name.startswith(ENCODER_PREFIX):
                added.append((name, parameter))
            elif self.generator or not name.startswith(GENERATOR_PREFIX):
                rest.append((name, parameter))
        own_factor = self.factor * self.config.encoder_learning_rate_factor
        return decayed_apart(rest) + decayed_apart(added, self.factor) + decayed_apart(own, own_factor)


def _staged(config: AdapterConfig) -> bool:
    """Whether there is a second stage: without a generator it would train nothing new."""
    return config.stages == "two" and config.generator


def _second(first: Phase, config: AdapterConfig) -> Phase:
    groups = _Groups(config, encoder_factor=config.second_stage_factor, generator=True)
    return replace(first, name=SECOND_STAGE, epochs=config.epochs - first.epochs, groups=groups)


def network_settings(plan: Plan, configuration: Configuration) -> AdapterSettings:
    """What the network of a configuration is built from."""
    config = config_of(configuration, AdapterConfig)
    assert configuration.encoder is not None
    widths = volume_widths(get_variant(configuration.encoder), config)
    patch, token = configuration.patch_size, config.token_size
    return AdapterSettings(
        encoder=VolumeEncoderSettings(
            variant=configuration.encoder,
            patch_size=(patch[0], patch[1], patch[2]),
            token_size=(token[0], token[1], token[2]),
            window=config.window,
            adapter_width=widths.adapter,
            neck_width=widths.neck,
            paper_relu=config.paper_relu,
            checkpointing=config.checkpointing,
        ),
        num_channels=len(plan.channel_names),
        num_outputs=plan.labels.num_outputs,
        display_window=plan.data_of(configuration).display_window,
        frozen=config.encoder == "frozen",
        decoder_width=widths.decoder,
        generator_width=widths.generator,
        generator=config.generator,
        generator_level=config.apg_level,
        generator_residual=config.apg_residual,
        aggregation=config.aggregation,
        refine=config.refine,
        staged=_staged(config),
    )
