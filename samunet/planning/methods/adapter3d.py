"""`3d_adapter`: SAM in 3D with light adapters and the automatic prompt generator (AutoProSAM)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

from samunet.networks.sam.variants import VARIANTS, SamVariant, get_variant
from samunet.networks.sam.weight_files import adapters_refused
from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.evidence import own_weights_reason, trained_too_reason, volume_from_scratch_reason
from samunet.planning.fitting import Fitted, fit
from samunet.planning.memory import ENOUGH_STEPS, TOKEN_VALUES, Load
from samunet.planning.methods import (
    Method,
    MethodConfig,
    build_config,
    get_method,
    known_settings,
    register,
    settings_of,
)
from samunet.planning.plan import RANDOM, Configuration, DataConfiguration
from samunet.planning.sam_options import TRAINED_WHOLE, require_weights
from samunet.planning.sam_rows import random_reason
from samunet.planning.standing import (
    FITTING_DIMENSION,
    NEVER,
    PRETRAINED_MANY,
    counted_cases,
    standing_without_sam,
    suits_dimension,
)
from samunet.planning.volume_costs import VolumeInput, volume_cost
from samunet.records import Bounds, Count, Natural, NotNegative, Positive

TokenSide = Literal[1, 2, 4]


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(MethodConfig):
    """Settings of `3d_adapter` (AutoProSAM, arXiv 2308.14936)."""

    epochs: Count = 200
    """Length of the schedule in epochs, both stages together."""
    learning_rate: Positive = 5e-4
    """Peak learning rate of AdamW (the paper's)."""
    weight_decay: NotNegative = 0.0
    """Weight decay of AdamW (the paper's code has none)."""
    warmup_steps: Natural = 500
    """Steps of linear warm-up in each stage: the second one brings the generator, untrained."""
    encoder: Literal["frozen", "full"] = "frozen"
    """Whether SAM's own weights are kept, or trained too (as they must be where none are pretrained)."""
    encoder_weights: str | None = None
    """`random` begins with a random encoder: kept (speed figures, tests) or, with `encoder=full`, trained."""
    encoder_learning_rate_factor: Positive = 1.0
    """Learning rate of SAM's own weights, when they are trained, relative to the rest."""
    token_size: tuple[TokenSide, TokenSide, TokenSide] = (4, 4, 4)
    """Voxels that a token covers along z, y and x of the patch: each 1, 2 or 4 (the paper: 4)."""
    window: Count = 8
    """Side of the attention windows in tokens."""
    adapter_width: Count | None = None
    """Channels inside an adapter; None takes half of the encoder's width, as the paper's code."""
    neck_width: Count | None = None
    """Channels of the feature maps; None scales the paper's 256 with the encoder (64 for vit_tiny)."""
    decoder_width: Count | None = None
    """Channels of the decoder; None takes half of neck_width, as the paper's code."""
    generator_width: Count | None = None
    """Channels of the generator's first level; None takes neck_width / 16 as the paper's code, at least 8."""
    paper_relu: bool = False
    """Adapters end in a ReLU and start at random, as in the public code."""
    generator: bool = True
    """With the automatic prompt generator."""
    apg_level: Literal["last", "first", "all"] = "last"
    """Feature maps that the generator prompts: the paper's last, the public code's first, or all."""
    apg_residual: bool = False
    """Add the generator's output to the feature map instead of putting it in its place."""
    aggregation: bool = True
    """Decode all levels of the encoder; without it the last one alone."""
    refine: bool = True
    """Refinement of the logits at full resolution (ours; the paper's decoder ends at stride 2)."""
    stages: Literal["two", "one"] = "two"
    """Two training stages, the generator in the second, or the public code's single one."""
    first_stage: Annotated[float, Bounds(above=0, below=1)] = 0.5
    """Share of the epochs that the first of two stages takes."""
    second_stage_factor: NotNegative = 0.1
    """Learning rate of the encoder's trained parts in the second stage, relative to the generator's."""
    checkpointing: bool = False
    """Compute the activations of each block again in the backward pass: less memory, a third more work."""


TOKENS_A_SIDE = (8, 12, 16, 20, 24, 28, 32)
"""Tokens along the axes of a patch, ascending; the paper's patch has 32."""
TOO_SMALL = "The smallest patch shows too little of a case, so the method is not recommended with it."
SMALL_CASE = 64
"""Cases that are no longer than this along any axis, in voxels, get tokens of two voxels instead of four."""
STEP_BATCH = 2
"""Samples of an optimizer step; where memory allows one, two are accumulated."""


@dataclass(frozen=True, kw_only=True)
class _Option:
    """One way to run the method on a patch."""

    patch_size: tuple[int, ...]
    batch_size: int
    fitted: Fitted

    @property
    def comfortable(self) -> bool:
        """Whether it fits with enough steps."""
        schedule = self.fitted.schedule
        return not self.fitted.lacks and (not schedule.shortened or schedule.steps >= ENOUGH_STEPS)


def row(context: PlanningContext) -> Candidate:
    """Plan `3d_adapter`; unsuitable for single images, and on an encoder with adapters for slices.

    Raises:
        SamunetError: the encoder that the user asked for is unknown, refused, or has no weights.
    """
    data = context.data.get("3d")
    if data is None:
        reason = (
            "The cases are single 2D images: there is no third axis for its tokens. The 2D methods on a SAM "
            "encoder are 2d_cnn, 2d_autosam, 2d_linear and 2d_desam."
        )
        return Candidate.unsuitable("3d_adapter", reason)
    variant, weights = _encoder(context)
    if context.starts_adapted(variant.name, weights):
        return Candidate.unsuitable("3d_adapter", adapters_refused(f"What is at hand of {variant.name}"))
    tokens = _token_size(context, data)
    options = _options(context, data, variant, weights, tokens)
    reached = max((i for i, option in enumerate(options) if option.comfortable), default=0)
    option = options[reached]
    beyond = options[reached + 1] if reached + 1 < len(options) else None
    is_tiny = option is options[0] and beyond is not None
    reasons = (
        *option.fitted.lacks,
        _standing_reason(context, variant, weights),
        *_trained_too(context, variant, weights),
        *_passed_over_reasons(context, variant),
        _patch_reason(data, option, tokens),
        *([] if beyond is None else [_beyond_reason(beyond)]),
        *([TOO_SMALL] if is_tiny else []),
        *_memory_reasons(option),
        option.fitted.length_reason,
        *filter(None, [context.mirror_reason]),
    )
    configuration = Configuration(
        name="3d_adapter",
        method="3d_adapter",
        data=data.name,
        patch_size=option.patch_size,
        batch_size=option.batch_size,
        encoder=variant.name,
        encoder_weights=weights,
        batch_dice=context.batch_dice_3d,
        mirror_axes=context.patch_mirror_axes(data),
        settings=option.fitted.settings,
        forecast=option.fitted.forecast,
        reasons=reasons,
    )
    candidate = option.fitted.candidate(configuration, _potential(context, variant, weights))
    return replace(candidate, score=NEVER) if is_tiny else candidate


def _encoder(context: PlanningContext) -> tuple[SamVariant, str]:
    """Encoder and its weights: the user's, else ViT-B or the next larger one at hand, else vit_tiny.

    Weights with adapters for slices are passed over where there are others.
    """
    user = settings_of(AdapterConfig, context.settings)
    forced = user.get("encoder_weights") == RANDOM
    if context.encoder is not None:
        variant = get_variant(context.encoder)
        require_weights(context, variant, user)
        return variant, RANDOM if forced else context.weights.get(variant.name, "none")
    if forced:
        return VARIANTS["vit_b"], RANDOM
    plain = [VARIANTS[name] for name in context.weights if name not in context.adapted]
    if context.adapted and not plain:
        name = min(context.adapted)
        return VARIANTS[name], context.weights[name]
    at_hand = [variant for variant in plain if not variant.from_scratch]
    if at_hand:
        variant = min(at_hand, key=lambda v: v.width)
        return variant, context.weights[variant.name]
    require_weights(context, VARIANTS["vit_tiny"], user)
    return VARIANTS["vit_tiny"], context.weights.get("vit_tiny", "none")


def _token_size(context: PlanningContext, data: DataConfiguration) -> tuple[int, ...]:
    """Voxels a token: 4 along the finest axis (2 in small cases), as many millimetres along the others."""
    asked = context.settings.get("token_size")
    if asked is not None:
        return tuple(asked)
    largest = 2 if max(data.median_shape) <= SMALL_CASE else 4
    edge_mm = largest * min(data.spacing_mm)
    return tuple(min((1, 2, 4), key=lambda t: abs(math.log2(t * s / edge_mm))) for s in data.spacing_mm)


def _options(
    context: PlanningContext,
    data: DataConfiguration,
    variant: SamVariant,
    weights: str,
    tokens: tuple[int, ...],
) -> list[_Option]:
    """Patches from small to large; no axis longer than the median case."""
    options: list[_Option] = []
    for side in TOKENS_A_SIDE:
        patch = tuple(
            token * min(side, math.ceil(median / token)) for token, median in zip(tokens, data.median_shape)
        )
        if not options or patch != options[-1].patch_size:
            options.append(_option(context, variant, weights, tokens, patch))
    return options


def _option(
    context: PlanningContext,
    variant: SamVariant,
    weights: str,
    tokens: tuple[int, ...],
    patch: tuple[int, ...],
) -> _Option:
    """The way that needs the least time within the memory: whole batch, checkpointing, one sample at a
    time."""
    user = settings_of(AdapterConfig, context.settings)
    # Adapters alone suit an encoder that knows much: a small one of our own is trained too.
    begins = weights != RANDOM and variant.prior(weights) != "sam"
    start = TRAINED_WHOLE if begins else {}
    ways = [(STEP_BATCH, 1, False), (STEP_BATCH, 1, True), (1, STEP_BATCH, False), (1, STEP_BATCH, True)]
    made = []
    for batch, accumulate, checkpointing in ways:
        way = {**start, "token_size": list(tokens), "accumulate": accumulate, "checkpointing": checkpointing}
        made.append(_cost_out(context, variant, patch, batch, {**way, **user}))
    return next((option for option in made if not option.fitted.lacks), made[-1])


def _cost_out(
    context: PlanningContext,
    variant: SamVariant,
    patch: tuple[int, ...],
    batch: int,
    settings: dict[str, Any],
) -> _Option:
    settings = known_settings(AdapterConfig, settings)
    config = cast(AdapterConfig, build_config(get_method("3d_adapter"), settings))
    cost = volume_cost(
        VolumeInput(
            variant=variant,
            config=config,
            patch_size=patch,
            num_channels=context.num_channels,
            num_outputs=context.num_outputs,
            checkpointed=config.checkpointing,
        )
    )
    # Frozen weights need no gradient of their own, a third of a trained layer's work.
    trained_share = 2 / 3 if config.encoder == "frozen" else 1.0
    load = Load(
        batch_size=batch,
        parameters=cost.parameters,
        trainable=cost.trainable,
        optimizer_values=2,
        trained={"vit": trained_share * cost.transformer, "conv3d": cost.convolutions},
        frozen={"vit": cost.again * cost.transformer},
        values=cost.values,
        value_cost=TOKEN_VALUES,
    )
    return _Option(patch_size=patch, batch_size=batch, fitted=fit(context, config, settings, load))


def _potential(context: PlanningContext, variant: SamVariant, weights: str) -> float:
    standing = standing_without_sam(variant, weights)
    if standing is None:
        standing = PRETRAINED_MANY
    return standing + FITTING_DIMENSION * suits_dimension(context, 3)


def _standing_reason(context: PlanningContext, variant: SamVariant, weights: str) -> str:
    if weights == RANDOM:
        return random_reason(variant, trained=context.settings.get("encoder") == "full")
    if weights == "none":
        return (
            f"No pretrained SAM weights are at hand, so {variant.name} is trained with its adapters from "
            "scratch; MA-SAM's ablation puts the price of that at 13 to 15 Dice points in abdominal CT. "
            "`samunet_download_weights vit_b` fetches official weights."
        )
    if variant.prior(weights) == "own weights":
        return own_weights_reason("3d_adapter", variant.name)
    return (
        f"With {counted_cases(context)} it may equal a U-Net: reviews of AutoProSAM speak of up to 3 Dice "
        "points over 3D networks with 24 training cases, which nobody has confirmed; of few cases nothing is "
        "known."
    )


def _trained_too(context: PlanningContext, variant: SamVariant, weights: str) -> list[str]:
    if weights == "none" and variant.from_scratch:
        return [volume_from_scratch_reason()]
    if variant.prior(weights) != "own weights" or "encoder" in context.settings:
        return []
    return [trained_too_reason("3d_adapter", variant.name)]


def _passed_over_reasons(context: PlanningContext, variant: SamVariant) -> list[str]:
    """Adapted encoders that would have been taken were they none."""
    if context.encoder is not None or "encoder_weights" in context.settings:
        return []
    large = [VARIANTS[name] for name in sorted(context.adapted) if not VARIANTS[name].from_scratch]
    missed = [v for v in large if variant.from_scratch or v.width < variant.width]
    return [f"Passed over: {adapters_refused(f'what is at hand of {v.name}')}" for v in missed]


def _patch_reason(data: DataConfiguration, option: _Option, tokens: tuple[int, ...]) -> str:
    patch, median, token = (
        " x ".join(f"{n:g}" for n in sizes) for sizes in (option.patch_size, data.median_shape, tokens)
    )
    grid = " x ".join(str(n // t) for n, t in zip(option.patch_size, tokens))
    edges = " x ".join(f"{t * s:.3g}" for t, s in zip(tokens, data.spacing_mm))
    return (
        f"Patches of {patch} voxels (median case {median}) are {grid} tokens of {token} voxels, {edges} mm."
    )


def _beyond_reason(beyond: _Option) -> str:
    patch = " x ".join(map(str, beyond.patch_size))
    if beyond.fitted.lacks:
        lack = beyond.fitted.lacks[0]
        return f"The next larger patch, {patch}, was not taken: {lack[0].lower()}{lack[1:]}"
    return (
        f"The next larger patch, {patch}, was not taken: the hours allowed would cut its schedule too short."
    )


def _memory_reasons(option: _Option) -> list[str]:
    told = []
    if option.fitted.settings.get("checkpointing"):
        told.append("Memory is saved by computing each block again in the backward pass.")
    if option.batch_size < STEP_BATCH:
        told.append(f"Memory allows one patch at a time; {STEP_BATCH} are accumulated a step.")
    return told


register(
    Method(
        name="3d_adapter",
        dimension=3,
        summary="SAM encoder made 3D by adapters, automatic prompts",
        source="AutoProSAM, arXiv 2308.14936",
        config=AdapterConfig,
        uses_encoder=True,
        row=row,
        trainer="samunet.trainers.adapter3d:AdapterTrainer",
    )
)
