"""`2d_unet` and `3d_unet`: the plain nnU-Net-like network, the honest baseline."""

from __future__ import annotations

from dataclasses import dataclass

from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.methods import Method, MethodConfig, register


@dataclass(frozen=True, kw_only=True)
class UNetConfig(MethodConfig):
    """Settings of the U-Nets: nnU-Net's recipe."""

    epochs: int = 1000
    """Length of the schedule in epochs."""
    iterations: int = 250
    """Training steps an epoch."""
    val_iterations: int = 50
    """Validation steps an epoch (patch Dice, not whole cases)."""
    learning_rate: float = 1e-2
    """Learning rate of SGD at the start; falls polynomially with exponent 0.9, once an epoch."""
    weight_decay: float = 3e-5
    """Weight decay of SGD."""
    momentum: float = 0.99
    """Nesterov momentum of SGD."""
    gradient_clip: float = 12.0
    """Largest norm of the gradient."""
    deep_supervision: bool = True
    """Loss at every level of the decoder, weights halving per level, the lowest left out."""


def row_2d(context: PlanningContext) -> Candidate:
    """Plan `2d_unet`."""
    raise NotImplementedError


def row_3d(context: PlanningContext) -> Candidate:
    """Plan `3d_unet`."""
    raise NotImplementedError


_TRAINER = "samunet.trainers.unet:UNetTrainer"
_SOURCE = "nnU-Net, Nature Methods 2021; plain convolutional U-Net"

register(
    Method(
        name="2d_unet",
        dimension=2,
        summary="plain U-Net on slices, nnU-Net's recipe",
        source=_SOURCE,
        config=UNetConfig,
        uses_encoder=False,
        row=row_2d,
        trainer=_TRAINER,
    )
)
register(
    Method(
        name="3d_unet",
        dimension=3,
        summary="plain 3D U-Net, nnU-Net's recipe",
        source=_SOURCE,
        config=UNetConfig,
        uses_encoder=False,
        row=row_3d,
        trainer=_TRAINER,
    )
)
