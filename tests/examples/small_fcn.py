"""An outside method in one file: a small fully convolutional network on slices.

Everything a method consists of is here: settings, planner row, network, trainer, registration. Train it with

    samunet_train 101 small_fcn_folder.small_fcn 0

where the dotted name is the module's, importable from PYTHONPATH.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.fitting import fit
from samunet.planning.memory import Load
from samunet.planning.methods import Method, MethodConfig, build_config, get_method, known_settings, register
from samunet.planning.plan import Configuration, Plan
from samunet.planning.standing import NEVER
from samunet.trainers.base import MethodTrainer, Phase, config_of, decayed_apart


@dataclass(frozen=True, kw_only=True)
class SmallFcnConfig(MethodConfig):
    """Settings: those of every method, and one of our own; each can be set with `--set name=value`."""

    epochs: int = 50
    """Length of the schedule in epochs."""
    width: int = 16
    """Channels of every layer."""


DILATIONS = (1, 2, 4, 8)
BATCH = 8


class SmallFcn(nn.Module):
    """(B, C, H, W) -> (B, K, H, W); knows nothing of plans or training."""

    def __init__(self, num_inputs: int, num_outputs: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for dilation in DILATIONS:
            layers += [
                nn.Conv2d(num_inputs, width, 3, padding=dilation, dilation=dilation),
                nn.GroupNorm(4, width),
                nn.ReLU(),
            ]
            num_inputs = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, num_outputs, 1))

    def forward(self, slices: Tensor) -> Tensor:
        return self.layers(slices)


def row(context: PlanningContext) -> Candidate:
    """The planner's row: patch, batch and costs from the data; a pure function."""
    data = context.data["2d"]
    patch = tuple(min(512, 8 * round(n / 8 + 0.5)) for n in data.median_shape)
    settings = known_settings(SmallFcnConfig, context.settings)
    config = build_config(get_method(__name__), settings)
    assert isinstance(config, SmallFcnConfig)
    fitted = fit(context, config, settings, load_of(context, config.width, math.prod(patch)))
    configuration = Configuration(
        name=__name__,
        method=__name__,
        data=data.name,
        patch_size=patch,
        batch_size=BATCH,
        mirror_axes=context.patch_mirror_axes(data),
        settings=fitted.settings,
        forecast=fitted.forecast,
        reasons=(*fitted.lacks, "A demonstration; it is never recommended.", fitted.length_reason),
    )
    return fitted.candidate(configuration, NEVER)


def load_of(context: PlanningContext, width: int, pixels: int) -> Load:
    """What a training step asks of a machine: memory and seconds of the forecast are made of it."""
    inputs = (context.num_channels, *[width] * (len(DILATIONS) - 1))
    weights = sum(9 * channels * width for channels in inputs) + width * context.num_outputs
    biases = 3 * len(DILATIONS) * width + context.num_outputs  # a bias a convolution, two values a GroupNorm
    return Load(
        batch_size=BATCH,
        parameters=weights + biases,
        trainable=weights + biases,
        optimizer_values=2,
        trained={"conv2d": float(pixels * weights)},
        values=float(pixels * (len(DILATIONS) * width + context.num_outputs)),
    )


class SmallFcnTrainer(MethodTrainer):
    """How the network is built and trained; loss, sampling, loop and checkpoints are the usual ones."""

    @classmethod
    def build_network(
        cls, plan: Plan, configuration: Configuration, *, weights: Path | None = None
    ) -> nn.Module:
        config = config_of(configuration)
        assert isinstance(config, SmallFcnConfig)
        return SmallFcn(len(plan.channel_names), plan.labels.num_outputs, config.width)

    @classmethod
    def phases(cls, config: MethodConfig) -> tuple[Phase, ...]:
        phase = Phase.of(
            config,
            optimizer="adamw",
            schedule="poly_step",
            groups=lambda network: decayed_apart(list(network.named_parameters())),
        )
        return (phase,)


register(
    Method(
        name=__name__,
        dimension=2,
        summary="a small dilated convolutional network (example)",
        source="written for this documentation",
        config=SmallFcnConfig,
        uses_encoder=False,
        row=row,
        trainer=f"{__name__}:SmallFcnTrainer",
    )
)
