"""`2d_unet` and `3d_unet`: the plain nnU-Net-like network, the honest baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from samunet.networks.unet_topology import unet_cost
from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.evidence import STUDY
from samunet.planning.fitting import fit
from samunet.planning.memory import Load, output_values
from samunet.planning.methods import (
    Method,
    MethodConfig,
    build_config,
    get_method,
    known_settings,
    register,
)
from samunet.planning.plan import Configuration, DataConfiguration
from samunet.planning.rules import UNetPatch, UNetRequest, plan_unet_patch
from samunet.planning.standing import (
    FITTING_DIMENSION,
    UNET,
    counted_cases,
    few_cases,
    has_volumes,
    sam_weights_at_hand,
    suits_dimension,
    thick_slices,
)
from samunet.records import Bounds, Count, Natural, NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class UNetConfig(MethodConfig):
    """Settings of the U-Nets: nnU-Net's recipe."""

    epochs: Count = 1000
    """Length of the schedule in epochs."""
    iterations: Count = 250
    """Training steps an epoch."""
    val_iterations: Count = 50
    """Validation steps an epoch (patch Dice, not whole cases)."""
    learning_rate: Positive = 1e-2
    """Learning rate of SGD at the start; falls polynomially with exponent 0.9, once an epoch."""
    weight_decay: NotNegative = 3e-5
    """Weight decay of SGD."""
    warmup_steps: Natural = 0
    """Steps in which the rate rises linearly to nnU-Net's, which has no warm-up."""
    momentum: Annotated[float, Bounds(0, below=1)] = 0.99
    """Nesterov momentum of SGD."""
    gradient_clip: Positive = 12.0
    """Largest norm of the gradient."""
    deep_supervision: bool = True
    """Loss at every level of the decoder, weights halving per level, the lowest left out."""


def row_2d(context: PlanningContext) -> Candidate:
    """Plan `2d_unet`."""
    return unet_row(context, "2d_unet", context.data["2d"])


def row_3d(context: PlanningContext) -> Candidate:
    """Plan `3d_unet`; unsuitable for single images."""
    data = context.data.get("3d")
    if data is None:
        kind = "natural 2D images" if context.natural_image else "single 2D images"
        reason = f"The cases are {kind}: there is no third axis to convolve along."
        return Candidate.unsuitable("3d_unet", reason)
    return unet_row(context, "3d_unet", data)


def unet_row(context: PlanningContext, name: str, data: DataConfiguration) -> Candidate:
    """Plan a plain U-Net on a data configuration with nnU-Net's rules."""
    request = context.unet_request(data)
    patch = plan_unet_patch(request)
    if patch.too_small:
        return Candidate.unsuitable(name, patch.too_small)
    cost = unet_cost(patch.topology, context.num_channels, context.num_outputs)
    load = Load(
        batch_size=patch.batch_size,
        parameters=cost.parameters,
        trainable=cost.parameters,
        optimizer_values=1,
        trained={f"conv{data.dimension}d": float(cost.multiply_adds)},
        values=float(cost.elements),
        outputs=context.num_outputs,
        output_values=output_values(patch.patch_size),
    )
    settings = known_settings(UNetConfig, context.settings)
    fitted = fit(context, build_config(get_method(name), settings), settings, load)
    reasons = (
        *fitted.lacks,
        _standing_reason(context, data),
        _patch_reason(request, patch),
        *filter(None, [_low_resolution_reason(context, data)]),
        fitted.length_reason,
        *filter(None, [context.mirror_reason]),
    )
    configuration = Configuration(
        name=name,
        method=name,
        data=data.name,
        patch_size=patch.patch_size,
        batch_size=patch.batch_size,
        batch_dice=data.dimension == 2 or context.batch_dice_3d,
        mirror_axes=context.patch_mirror_axes(data),
        settings=fitted.settings,
        forecast=fitted.forecast,
        reasons=reasons,
    )
    return fitted.candidate(
        configuration, UNET + FITTING_DIMENSION * suits_dimension(context, data.dimension)
    )


def _standing_reason(context: PlanningContext, data: DataConfiguration) -> str:
    if few_cases(context) and sam_weights_at_hand(context):
        return (
            f"With {counted_cases(context)} a network trained from scratch sees few examples: AutoSAM's "
            "table has the U-Net at 17.6 and 51.8 mean Dice with 1 and 5 labelled volumes, the SAM heads at "
            "40 and 67."
        )
    if few_cases(context):
        return (
            f"With {counted_cases(context)} a pretrained SAM encoder would be the better start, but this "
            "plan has no SAM weights. Of the other networks the U-Net is taken for the stronger one: in ten "
            f"minutes 2d_cnn led it with a single labelled volume, not with five ({STUDY})."
        )
    if not has_volumes(context):
        return f"The cases are 2D images; {counted_cases(context)} are enough to train a U-Net from scratch."
    thick = thick_slices(context)
    if thick:
        better = "is the fitting one" if data.dimension == 2 else "is less suited than a 2D one"
        return f"A {data.dimension}D network {better}: {thick}."
    volume = context.data["3d"]
    spacing = " x ".join(f"{s:.3g}" for s in volume.spacing_mm)
    if data.dimension == 3:
        return (
            f"A 3D network sees the context across the {volume.median_shape[0]:g} slices of the median case "
            f"({spacing} mm), and {counted_cases(context)} are there to train it from scratch."
        )
    return (
        f"A 2D network leaves the context across the {volume.median_shape[0]:g} slices ({spacing} mm) unused."
    )


def _low_resolution_reason(context: PlanningContext, data: DataConfiguration) -> str:
    if data.dimension == 2 or not context.batch_dice_3d:
        return ""
    return (
        "nnU-Net would add a low-resolution stage (3d_lowres and its cascade) here, because a patch covers "
        "less than a quarter of the median case; samunet has none, so distant context is lost to this method."
    )


def _patch_reason(request: UNetRequest, patch: UNetPatch) -> str:
    median = " x ".join(f"{n:g}" for n in request.median_shape)
    size = " x ".join(map(str, patch.patch_size))
    held = f"; {patch.limit} holds the batch down from {patch.uncapped_batch}" if patch.limit else ""
    return (
        f"nnU-Net's rules for {request.memory_gb:g} GB give patches of {size} (median case {median}) and "
        f"{patch.batch_size} a batch{held}."
    )


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
