"""An outside method in one file: a small fully convolutional network on slices.

Everything a method consists of is here: settings, planner row, network, trainer, registration. Train it with

    samunet_train 101 small_fcn_folder.small_fcn 0

where the dotted name is the module's, importable from PYTHONPATH.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.methods import Method, MethodConfig, register
from samunet.planning.plan import Configuration, Forecast, Plan
from samunet.trainers.base import MethodTrainer, Phase, config_of, decayed_apart


@dataclass(frozen=True, kw_only=True)
class SmallFcnConfig(MethodConfig):
    """Settings: those of every method, and one of our own; each can be set with `--set name=value`."""

    epochs: int = 50
    """Length of the schedule in epochs."""
    width: int = 16
    """Channels of every layer."""


class SmallFcn(nn.Module):
    """(B, C, H, W) -> (B, K, H, W); knows nothing of plans or training."""

    def __init__(self, num_inputs: int, num_outputs: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for dilation in (1, 2, 4, 8):
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
    configuration = Configuration(
        name=__name__,
        method=__name__,
        data=data.name,
        patch_size=patch,
        batch_size=8,
        mirror_axes=context.patch_mirror_axes(data),
        forecast=Forecast(
            memory_gb=1.0,
            step_seconds=0.1,
            train_hours=0.4,
            cache_gb=0.0,
            parameters=10_000,
            trainable=10_000,
        ),
        reasons=("A demonstration; it is never recommended.",),
    )
    return Candidate(
        method=__name__, configuration=configuration, fits=True, score=-10.0, reasons=configuration.reasons
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
