"""The planner row of every 2D SAM head: its configuration, fit and reasons."""

from __future__ import annotations

from dataclasses import replace

from samunet.networks.sam.variants import PATCH, SamVariant
from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.evidence import (
    AUTOSAM_HEADS,
    compact_reason,
    frozen_rate_reason,
    frozen_reason,
    large_size_reason,
    own_weights_reason,
    seeing_reason,
    small_size_reason,
    smaller_cache_reason,
    taken_over,
    trained_too_reason,
    views_reason,
)
from samunet.planning.plan import RANDOM, Configuration
from samunet.planning.sam_config import USUAL_VIEWS
from samunet.planning.sam_costs import padding_waste
from samunet.planning.sam_options import (
    COMPACT,
    INPUT_SIZES,
    SLOWEST_SLICE_SECONDS,
    HeadSpec,
    SamOption,
    best_option,
    cache_bytes,
    slice_size,
)
from samunet.planning.standing import (
    GENERALIZING,
    LOST_DETAIL_PENALTY,
    PRETRAINED_FEW,
    PRETRAINED_MANY,
    PRIOR_WEIGHT,
    counted_cases,
    few_cases,
    other_sites,
    standing_without_sam,
)

LARGE_CACHE_GB, SMALLER = 5.0, "pca:64"
"""Above that much, what keeps a cache small is said; how small, and at what price, is the user's choice."""


def sam_row(context: PlanningContext, spec: HeadSpec) -> Candidate:
    """Plan one SAM head: encoder variant, input size, batch, cache, memory, time, fit and reasons.

    Raises:
        SamunetError: the encoder that the user asked for is unknown, refused, or has no weights.
    """
    option, beyond = best_option(context, spec)
    data = context.data["2d"]
    reasons = (
        *option.fitted.lacks,
        _standing_reason(context, spec, option),
        *_way_reasons(context, spec, option),
        _input_reason(context, option),
        *_size_reasons(spec, option, beyond),
        *_encoder_reasons(context, spec, option, beyond),
        option.fitted.length_reason,
        *filter(None, [context.mirror_reason]),
    )
    configuration = Configuration(
        name=spec.method,
        method=spec.method,
        data=data.name,
        patch_size=slice_size(data),
        batch_size=option.batch_size,
        encoder=option.variant.name,
        encoder_weights=option.weights,
        input_size=option.input_size,
        batch_dice=True,
        mirror_axes=context.patch_mirror_axes(data),
        settings=option.fitted.settings,
        forecast=option.fitted.forecast,
        reasons=reasons,
    )
    return option.fitted.candidate(configuration, _potential(context, spec, option))


def _potential(context: PlanningContext, spec: HeadSpec, option: SamOption) -> float:
    standing = standing_without_sam(option.variant, option.weights)
    if standing is None and spec.elsewhere and other_sites(context):
        standing = GENERALIZING
    elif standing is None:
        standing = PRETRAINED_FEW if few_cases(context) else PRETRAINED_MANY
    lost_detail = max(0.0, 1 - option.input_size / max(slice_size(context.data["2d"])))
    return standing - LOST_DETAIL_PENALTY * lost_detail + PRIOR_WEIGHT * spec.prior


def _standing_reason(context: PlanningContext, spec: HeadSpec, option: SamOption) -> str:
    counted, name = counted_cases(context), option.variant.name
    if option.weights == RANDOM:
        return random_reason(option.variant, trained=option.config.encoder == "full")
    if option.weights == "none":
        return (
            f"No pretrained SAM weights are at hand, so {name} is trained with its head from scratch. That "
            "costs the knowledge SAM is taken for: AutoSAM's table has the pretrained frozen encoder at 67 "
            "mean Dice with 5 labelled volumes, 37.8 when it is fine-tuned as a whole, and a U-Net at 51.8. "
            "`samunet_download_weights vit_b` fetches official weights."
        )
    if option.variant.prior(option.weights) == "own weights":
        return own_weights_reason(spec.method, name)
    if spec.elsewhere and other_sites(context):
        return f"{other_sites(context)}, and this decoder is made for that: {spec.elsewhere}."
    if few_cases(context) and spec.prior < 0:
        return f"With {counted} a pretrained encoder needs a stronger head than this: {spec.evidence}."
    if few_cases(context):
        return f"With {counted} a pretrained encoder is expected to lead: {spec.evidence}."
    return (
        f"With {counted} a pretrained encoder is expected to have no lead over a U-Net: in AutoSAM's study "
        f"it was gone at about ten labelled volumes{taken_over(spec.method, *AUTOSAM_HEADS)}."
    )


def _way_reasons(context: PlanningContext, spec: HeadSpec, option: SamOption) -> list[str]:
    """Whether the encoder is kept or trained, with adapters or without, and why, unless the user decided."""
    name, prior = option.variant.name, option.variant.prior(option.weights)
    decided = "encoder" in context.settings
    reasons = _adapted_reasons(context, option)
    if prior == "own weights" and option.config.encoder == "full" and not decided:
        reasons.append(trained_too_reason(spec.method, name))
    planned = option.fitted.settings.keys() - context.settings.keys()
    if prior == "own weights" and option.config.encoder == "frozen" and "learning_rate" in planned:
        reasons.append(frozen_rate_reason(spec.method))
    if prior == "sam" and option.config.encoder == "frozen" and not (decided or reasons):
        reasons.append(frozen_reason(spec.method, name))
    if prior == "own weights" and "image_skip" in planned:
        reasons.append(seeing_reason(spec.method))
    return reasons


def _size_reasons(spec: HeadSpec, option: SamOption, beyond: SamOption | None) -> list[str]:
    """The rule behind the input size, where there was a choice."""
    if option.weights == RANDOM:
        return []
    grows = beyond is not None and beyond.input_size > option.input_size
    if option.input_size <= INPUT_SIZES[0] and not grows:
        return []
    if option.variant.prior(option.weights) == "sam":
        return [large_size_reason()]
    return [small_size_reason(spec.method)]


def _adapted_reasons(context: PlanningContext, option: SamOption) -> list[str]:
    """What becomes of an encoder that has adapters already."""
    name = option.variant.name
    if not context.starts_adapted(name, option.weights):
        return []
    have = f"The weights of {name} at hand have adapters from a pretraining"
    if option.config.encoder == "full":
        return [f"{have}; they are trained further with all of the encoder, as you set."]
    kept = "so the encoder is frozen (--set encoder=full trains it too)"
    return [f"{have}, {kept}. Whether such adapters help is not measured."]


def random_reason(variant: SamVariant, *, trained: bool) -> str:
    """What a randomly initialised encoder is good for."""
    if trained:
        return (
            f"encoder_weights=random: {variant.name} is trained from scratch, whatever weights are at hand."
        )
    return (
        f"encoder_weights=random: a random {variant.name} serves speed figures and tests only; "
        "a Dice from it means nothing."
    )


def _input_reason(context: PlanningContext, option: SamOption) -> str:
    shown = slice_size(context.data["2d"])
    scale = option.input_size / max(shown)
    waste = padding_waste(option.variant, option.input_size)
    windows = "whose tokens fill whole attention windows"
    if len(option.variant.global_blocks) == option.variant.depth:
        windows = "whose tokens all attend to each other"
    elif waste > 1:
        windows = f"whose windows are padded to {waste:.2f} times the tokens"
    way = f"enlarged {scale:.1f} times" if scale >= 1 else f"reduced to {scale:.0%} (detail is lost)"
    size = " x ".join(map(str, shown))
    return (
        f"Slices of up to {size} pixels are {way} to {option.input_size} pixels, {windows}; "
        f"a token covers {PATCH / scale:.2g} slice pixels along a side."
    )


def _obstacle(option: SamOption) -> str:
    if option.fitted.lacks:
        return option.fitted.lacks[0][0].lower() + option.fitted.lacks[0][1:]
    if option.slice_seconds > SLOWEST_SLICE_SECONDS:
        return f"encoding takes {option.slice_seconds:.0f} seconds a slice, in prediction too."
    return "the hours allowed would cut its schedule too short."


def _encoder_reasons(
    context: PlanningContext, spec: HeadSpec, option: SamOption, beyond: SamOption | None
) -> list[str]:
    reasons = []
    if beyond is not None:
        name = f"{beyond.variant.name} at {beyond.input_size} pixels"
        reasons.append(f"The next larger choice, {name}, was not taken: {_obstacle(beyond)}")
    elif option.input_size == INPUT_SIZES[-1] and context.encoder is None:
        reasons.append(f"{option.variant.name} at {option.input_size} pixels is the largest choice at hand.")
    if option.cached:
        storage = option.config.cache_storage
        per_slice = cache_bytes(option.variant, option.input_size, option.config, spec.cached_blocks)
        kept = "" if storage == "fp16" else f" ({storage})"
        reasons.append(
            f"The frozen encoder runs once: {context.num_slices} slices x {option.config.views} views x "
            f"{per_slice / 1e6:.2g} MB{kept} = {option.fitted.forecast.cache_gb:.1f} GB of cache."
        )
        if option.config.views > USUAL_VIEWS and "views" not in context.settings:
            reasons.append(views_reason(spec.method, USUAL_VIEWS))
        if storage == COMPACT and "cache_storage" not in context.settings:
            reasons.append(
                "Embeddings are kept in eight bits a value: the disk allowed does not hold the same views "
                "in sixteen (--set cache_storage=fp16 stores fewer of these). " + compact_reason(spec.method)
            )
        if option.fitted.forecast.cache_gb > LARGE_CACHE_GB and "cache_storage" not in context.settings:
            smaller = replace(option.config, cache_storage=SMALLER)
            size = cache_bytes(option.variant, option.input_size, smaller, spec.cached_blocks)
            reasons.append(smaller_cache_reason(SMALLER, option.stored * size / 1e9))
    elif option.config.encoder == "frozen":
        reasons.append("The frozen encoder runs in every step; nothing is cached.")
    if option.config.accumulate > 1:
        reasons.append(
            f"Memory allows {option.batch_size} slices a batch, so {option.config.accumulate} batches are "
            "accumulated a step."
        )
    if context.num_channels > 3 and option.config.channel_map == "fixed":
        reasons.append(
            f"{context.num_channels} channels go into SAM's three by a fixed map; --set channel_map=stem "
            "trains the map and gives up the cache."
        )
    return reasons
