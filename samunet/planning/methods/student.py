"""`3d_student`: a small network that learns from a trained one (`samunet_distill`), or by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from samunet.networks.student_costs import (
    SWIN_MULTIPLE,
    StudentCost,
    fitting_swin_patch,
    residual_unet_cost,
    swin_unetr_cost,
)
from samunet.networks.unet_topology import UNetTopology, unet_topology, with_widths
from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.fitting import fit
from samunet.planning.memory import CONVOLUTION_VALUES, TOKEN_VALUES, Load, output_values
from samunet.planning.methods import (
    Method,
    MethodConfig,
    build_config,
    get_method,
    known_settings,
    register,
    settings_of,
)
from samunet.planning.plan import Configuration, DataConfiguration
from samunet.planning.rules import plan_unet_patch
from samunet.planning.standing import NEVER
from samunet.records import Count, Natural, Positive

NAME = "3d_student"
SWIN_FEATURES = {"swin_unetr_tiny": 12, "swin_unetr_small": 24}
"""MONAI's `feature_size` of the SwinUNETR students (4.1 and 15.7 million parameters)."""
SWIN_LEARNING_RATE = 5e-4
"""AutoProSAM's rate; transformers diverge more easily than convolutions."""
RESIDUAL_UNET = "residual_unet"


@dataclass(frozen=True, kw_only=True)
class StudentConfig(MethodConfig):
    """Settings of `3d_student`: AdamW, because one recipe must train convolutions and transformers."""

    epochs: Count = 300
    """Length of the schedule in epochs."""
    val_iterations: Count = 50
    """Validation steps an epoch (patch Dice, not whole cases)."""
    warmup_steps: Natural = 250
    """Steps of linear warm-up before the polynomial decay."""
    gradient_clip: Positive = 1.0
    """Largest norm of the gradient."""
    network: Literal["residual_unet", "swin_unetr_tiny", "swin_unetr_small"] = "residual_unet"
    """Residual U-Net, or MONAI's SwinUNETR with 12 or 24 features (needs the package `monai`)."""
    base_width: Count = 16
    """Channels of the residual U-Net at full resolution, doubled per stage; half of `3d_unet`'s."""
    largest_width: Count = 96
    """Most channels of a stage of the residual U-Net; keeps it below five million parameters."""
    deep_supervision: bool = True
    """Dice and cross entropy at every level of the residual U-Net's decoder; SwinUNETR has one output."""


def student_topology(
    config: StudentConfig, spacing_mm: tuple[float, ...], patch_size: tuple[int, ...]
) -> UNetTopology:
    """Shape of the residual U-Net: nnU-Net's rules with the student's widths."""
    return with_widths(unet_topology(spacing_mm, patch_size), config.base_width, config.largest_width)


def row(context: PlanningContext) -> Candidate:
    """Plan `3d_student`; never recommended, and unsuitable for single images."""
    data = context.data.get("3d")
    if data is None:
        reason = (
            "The cases are single 2D images, and this network is 3D. The small 2D methods are 2d_unet and "
            "2d_linear."
        )
        return Candidate.unsuitable(NAME, reason)
    settings = _settings(context)
    config = cast(StudentConfig, build_config(get_method(NAME), settings))
    patch = plan_unet_patch(context.unet_request(data))
    size = patch.patch_size
    if config.network != RESIDUAL_UNET:
        size = fitting_swin_patch(size)
    elif patch.too_small:
        return Candidate.unsuitable(NAME, patch.too_small)
    load = _load(context, data, config, size, patch.batch_size)
    fitted = fit(context, config, settings, load)
    reasons = (
        *fitted.lacks,
        _standing_reason(load.parameters),
        _patch_reason(config, size, patch.batch_size),
        fitted.length_reason,
        *filter(None, [context.mirror_reason]),
    )
    configuration = Configuration(
        name=NAME,
        method=NAME,
        data=data.name,
        patch_size=size,
        batch_size=patch.batch_size,
        batch_dice=context.batch_dice_3d,
        mirror_axes=context.patch_mirror_axes(data),
        settings=fitted.settings,
        forecast=fitted.forecast,
        reasons=reasons,
    )
    return fitted.candidate(configuration, NEVER)


def _settings(context: PlanningContext) -> dict[str, Any]:
    """The user's settings over what the network asks for."""
    user = settings_of(StudentConfig, context.settings)
    if user.get("network") in SWIN_FEATURES:
        user = {"learning_rate": SWIN_LEARNING_RATE, **user}
    return known_settings(StudentConfig, user)


def _load(
    context: PlanningContext,
    data: DataConfiguration,
    config: StudentConfig,
    patch_size: tuple[int, ...],
    batch_size: int,
) -> Load:
    cost = _cost(context, data, config, patch_size)
    tokens = cost.token_values > 0
    # Outputs of convolutions weigh more than kept tensors of a transformer, but one kind of value is counted.
    weight = CONVOLUTION_VALUES.cpu_bytes / TOKEN_VALUES.cpu_bytes if tokens else 1.0
    trained = {"conv3d": float(cost.convolutions), **({"vit": float(cost.transformer)} if tokens else {})}
    return Load(
        batch_size=batch_size,
        parameters=cost.parameters,
        trainable=cost.parameters,
        optimizer_values=2,
        trained=trained,
        values=weight * cost.values + cost.token_values,
        value_cost=TOKEN_VALUES if tokens else CONVOLUTION_VALUES,
        outputs=context.num_outputs,
        output_values=output_values(patch_size),
        passing_values=float(cost.passing_values),
    )


def _cost(
    context: PlanningContext, data: DataConfiguration, config: StudentConfig, patch_size: tuple[int, ...]
) -> StudentCost:
    inputs, outputs = context.num_channels, context.num_outputs
    if config.network in SWIN_FEATURES:
        return swin_unetr_cost(SWIN_FEATURES[config.network], patch_size, inputs, outputs)
    return residual_unet_cost(student_topology(config, data.spacing_mm, patch_size), inputs, outputs)


def _standing_reason(parameters: int) -> str:
    return (
        f"A network of {parameters / 1e6:.1f} million parameters, made to learn from a trained one: "
        f"`samunet_distill DATASET TEACHER {NAME} FOLD`. It is never recommended by itself: without a "
        "teacher it is a small network that stands below 3d_unet."
    )


def _patch_reason(config: StudentConfig, patch_size: tuple[int, ...], batch_size: int) -> str:
    size = " x ".join(map(str, patch_size))
    if config.network == RESIDUAL_UNET:
        return f"Patches of {size} and {batch_size} a batch are those of 3d_unet, by nnU-Net's rules."
    return (
        f"Patches of {size} and {batch_size} a batch are 3d_unet's brought to multiples of {SWIN_MULTIPLE}, "
        "which SwinUNETR needs; shorter cases are padded."
    )


register(
    Method(
        name=NAME,
        dimension=3,
        summary="small network, distilled from a trained one",
        source="AutoProSAM, arXiv 2308.14936 (distillation); nnU-Net's residual U-Net",
        config=StudentConfig,
        uses_encoder=False,
        row=row,
        trainer="samunet.trainers.student:StudentTrainer",
        replanned_by=("network", "base_width", "largest_width"),
    )
)
