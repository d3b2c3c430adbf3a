"""Ways to run a SAM head on a dataset: encoder, input size, cache or not, batch, and what each costs.

Options are ordered in a chain along which input and encoder only grow (first the input, then the encoder), so
that a larger budget, which can only reach further along the chain, never shrinks either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from samunet.errors import SamunetError
from samunet.networks.sam.variants import PATCH, VARIANTS, Prior, SamVariant, get_variant
from samunet.planning.cache_storage import Storage
from samunet.planning.candidates import PlanningContext
from samunet.planning.fitting import CacheCost, Fitted, fit
from samunet.planning.head_costs import HeadInput
from samunet.planning.memory import (
    ENOUGH_STEPS,
    LOGIT_COPIES,
    TOKEN_VALUES,
    Load,
    memory_gb,
    step_seconds,
)
from samunet.planning.methods import build_config, get_method, known_settings, settings_of
from samunet.planning.plan import RANDOM, DataConfiguration
from samunet.planning.sam_config import USUAL_VIEWS, SamHeadConfig
from samunet.planning.sam_costs import PartCost, attention_bias_values, encoder_cost

INPUT_SIZES = (224, 448, 672, 896, 1024)
"""14 tokens of 16 pixels fill a window; 1024 is the size that SAM was trained at (windows padded by 20 %)."""
ENLARGEMENT: dict[Prior, int] = {"sam": 4, "own weights": 2, "encoder without prior": 2}
"""Input pixels wanted per slice pixel. Logits have a quarter of the input, and SAM was trained on large
objects (AutoSAM enlarges 224-pixel slices 4.6 times). A small encoder learnt at 224 pixels and attends over
all tokens in every block, so that twice the side takes up to 16 times the work."""
NEAR_ENOUGH = 0.8
MARGIN = 1.25
"""Slices up to this many times the median are planned to be seen whole; larger ones are tiled."""
VIEWS = (48, 24, 12, USUAL_VIEWS, 4, 2)
STORED_SLICES = 2000
"""More views than usual are stored of slices so few that a head knows them by heart: up to so many in all.
With 5 volumes of Dataset002 in ten minutes, encoding included, the Dice of `2d_cnn` was 0.624 with 48 views
and 0.610 with 6; at 448 pixels 0.565 with 24 and 0.549 with 6: one seed (documentation/experiments.md)."""
COMPACT = "int8"
"""Where the disk does not hold the usual views, they are kept in half of it before fewer are stored: a head
trained on full embeddings lost 0.05 Dice points on such ones (documentation/experiments.md)."""
ENCODING_SHARE = 0.1
"""Of the hours and of the disk, for views beyond the usual ones."""
BATCH, LEAST_BATCH = 8, 2
PICTURE_BYTES = 6
"""Of a pixel that is kept beside the embedding: three channels in half precision."""
ENCODE_BATCH = 4
"""Slices encoded at once for the cache."""
SLOWEST_SLICE_SECONDS = 5.0
"""A larger input or encoder is not taken where encoding a slice takes longer: prediction would crawl."""
SMALL_RATES = {"learning_rate": 1e-3, "weight_decay": 0.05}
"""On a small encoder. Kept, `2d_cnn` had a Dice of 0.33 with one volume of Dataset002 and 0.61 with five so,
0.30 and 0.59 with its own 5e-4 and 0.01 (ten minutes, three seeds; documentation/experiments.md)."""
TRAINED_WHOLE = {"encoder": "full", **SMALL_RATES}
"""A network that is trained as a whole, at one rate: any that knows nothing, and a small encoder whatever it
knows. With 5 volumes of Dataset002 in ten minutes `2d_cnn` had a Dice of 0.65 so and 0.61 with the rates of
large encoders (5e-4, in the encoder 5e-5; one seed). Kept, it was as good with five volumes (0.61 against
0.60, three seeds) and 3 points behind with one (documentation/experiments.md)."""
FULL_LARGE = {"encoder": "full", "encoder_learning_rate_factor": 0.1}
"""SAM's own encoders, where the user wants them trained too."""
SEEING = {"image_skip": True}
"""Under a small encoder with weights of its own, frozen or not, a head that can see the picture does: with 5
volumes of Dataset002 0.54 against 0.53 Dice, on the demo's phantom 0.86 against 0.78 (documentation/
experiments.md, 2026-11-28)."""


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """What tells one head's row from another's.

    Attributes:
        method: registry name.
        prior: standing among the SAM heads when the data say nothing else (larger is better; negative for a
            head that a U-Net leads even with few cases).
        evidence: the sentence that backs the standing, with its source.
        config: its settings.
        work: kind of arithmetic of the head, a key of `Budget.gflops`.
        cost: (what it stands on, settings) -> cost of the head.
        cached_blocks: encoder blocks whose outputs it needs besides the neck's.
        elsewhere: for a head made for data from sites never seen, the sentence that backs it; it counts with
            SAM's weights only.
    """

    method: str
    prior: float
    evidence: str
    config: type[SamHeadConfig]
    work: str
    cost: Callable[[HeadInput, Any], PartCost]
    cached_blocks: int = 0
    elsewhere: str = ""


@dataclass(frozen=True, kw_only=True)
class SamOption:
    """One resolved way to run a head, with its cost.

    Attributes:
        fitted: its settings, schedule and costs in the budget.
        slice_seconds: encoding one slice, which prediction does for every slice.
        stored: slices that the cache holds, all views counted; 0 without one.
    """

    variant: SamVariant
    input_size: int
    weights: str
    batch_size: int
    config: SamHeadConfig
    fitted: Fitted
    slice_seconds: float
    stored: int

    @property
    def useful_steps(self) -> int:
        """Steps of the schedule, as far as more of them still matter."""
        return min(self.fitted.schedule.steps, ENOUGH_STEPS)

    @property
    def cached(self) -> bool:
        return is_cached(self.config)

    @property
    def comfortable(self) -> bool:
        """Whether it fits with a long enough schedule: the whole one, or less for a frozen encoder."""
        if self.fitted.lacks or self.slice_seconds > SLOWEST_SLICE_SECONDS:
            return False
        enough = self.config.encoder == "frozen" and self.fitted.schedule.steps >= ENOUGH_STEPS
        return self._whole or enough

    @property
    def unhurried(self) -> bool:
        """Whether it fits with its full schedule."""
        return self.comfortable and self._whole

    @property
    def _whole(self) -> bool:
        return self.fitted.fixed_length or not self.fitted.schedule.shortened


def is_cached(config: SamHeadConfig) -> bool:
    """Whether these settings train on stored encoder outputs."""
    return config.encoder == "frozen" and config.cache and config.channel_map == "fixed"


def slice_size(data: DataConfiguration) -> tuple[int, ...]:
    """The planned slice: whole slices are padded to it, larger ones tiled."""
    return tuple(
        min(largest, math.ceil(MARGIN * median)) for largest, median in zip(data.max_shape, data.median_shape)
    )


def best_option(context: PlanningContext, spec: HeadSpec) -> tuple[SamOption, SamOption | None]:
    """The furthest option of the chain that fits, else the first; and the one beyond it.

    A larger input may cut the schedule down to what is enough; a larger encoder must leave it whole.
    """
    chain = option_chain(context, spec)
    options = [evaluate(context, spec, variant, size) for variant, size in chain]
    first = options[0].variant
    reached = max(
        (i for i, o in enumerate(options) if (o.comfortable if o.variant is first else o.unhurried)),
        default=0,
    )
    return options[reached], options[reached + 1] if reached + 1 < len(options) else None


def option_chain(context: PlanningContext, spec: HeadSpec) -> list[tuple[SamVariant, int]]:
    """Encoder and input size, ascending.

    Raises:
        SamunetError: the encoder asked for is unknown, refused, or has no weights.
    """
    user = settings_of(spec.config, context.settings)
    data = context.data["2d"]
    if context.encoder is not None:
        variant = get_variant(context.encoder)
        require_weights(context, variant, user)
        weights = context.weights.get(variant.name, "none")
        return [(variant, size) for size in input_sizes(variant, data, variant.prior(weights))]
    if user.get("encoder_weights") == RANDOM:  # sized as SAM's own, whose speed it stands for
        return [(VARIANTS["vit_b"], size) for size in input_sizes(VARIANTS["vit_b"], data, "sam")]
    at_hand = sorted((VARIANTS[name] for name in context.weights), key=lambda v: v.width * v.depth)
    large = [variant for variant in at_hand if not variant.from_scratch]
    if not large:
        tiny = VARIANTS["vit_tiny"]
        require_weights(context, tiny, user)
        prior = tiny.prior(context.weights.get(tiny.name, "none"))
        return [(tiny, size) for size in input_sizes(tiny, data, prior)]
    sizes = input_sizes(large[0], data, "sam")
    # A small encoder stands in only at its own size: a larger one would shrink where the large one begins.
    chain = [
        (variant, sizes[0]) for variant in at_hand if variant.from_scratch and variant.input_size == sizes[0]
    ]
    chain += [(large[0], size) for size in sizes]
    return chain + [(variant, sizes[-1]) for variant in large[1:]]


def require_weights(context: PlanningContext, variant: SamVariant, user: dict[str, Any]) -> None:
    """Refuse an encoder without weights, unless it is trained too or meant to be random.

    Raises:
        SamunetError: says how to get weights or do without.
    """
    if variant.name in context.weights or user.get("encoder_weights") == RANDOM:
        return
    if variant.from_scratch and user.get("encoder") == "frozen":
        raise SamunetError(
            f"--set encoder=frozen: there are no weights of {variant.name}, and random ones should not be "
            "frozen. Fetch some (`samunet_download_weights vit_b`) or name a file with -w; leave the setting "
            "out to train the encoder too; as a control, add --set encoder_weights=random."
        )
    if variant.from_scratch or user.get("encoder") == "full":
        return
    raise SamunetError(
        f"There are no weights of the encoder {variant.name}. Fetch them with `samunet_download_weights "
        f"{variant.name}`, or train it from scratch with --set encoder=full, or (for speed figures only) "
        "freeze a random one with --set encoder_weights=random."
    )


def input_sizes(variant: SamVariant, data: DataConfiguration, prior: Prior) -> tuple[int, ...]:
    """Input sizes worth planning for slices of this data, ascending, the wanted one last."""
    if variant.native_size < INPUT_SIZES[0]:
        return (variant.native_size,)
    wanted = max(slice_size(data)) * ENLARGEMENT[prior]
    enough = [size for size in INPUT_SIZES if size >= NEAR_ENOUGH * wanted]
    last = enough[0] if enough else INPUT_SIZES[-1]
    return tuple(size for size in INPUT_SIZES if size <= last)


def evaluate(context: PlanningContext, spec: HeadSpec, variant: SamVariant, input_size: int) -> SamOption:
    """Cost of one option in the better of its ways: with a cache of as many views as fit, or without."""
    user = settings_of(spec.config, context.settings)
    weights = RANDOM if user.get("encoder_weights") == RANDOM else context.weights.get(variant.name, "none")
    adapted = context.starts_adapted(variant.name, weights)
    ways = _ways(variant.prior(weights), weights, context.settings, adapted=adapted)
    if not user.get("paper_compat"):
        seeing = SEEING if variant.prior(weights) == "own weights" else {}
        ways = [{**seeing, **way, **(SMALL_RATES if variant.from_scratch else {})} for way in ways]
    options = [_cost_out(context, spec, _Way(variant, input_size, weights, {**way, **user})) for way in ways]
    options = [option for option in options if not _is_lavish(context, option)]
    sound = [option for option in options if not option.fitted.lacks] or options
    longest = max(option.useful_steps for option in sound)
    sound = [option for option in sound if option.useful_steps == longest]
    # As many views as fit; without a cache only where that is quicker for as many steps.
    cached = [option for option in sound if option.cached]
    direct = [option for option in sound if not option.cached]
    return min(
        [*cached[:1], *direct[:1]],
        key=lambda option: (-option.fitted.schedule.steps, option.fitted.forecast.train_hours),
    )


def _is_lavish(context: PlanningContext, option: SamOption) -> bool:
    """Whether more views than usual are stored although there are slices enough, or at too high a price."""
    if not option.cached or "views" in context.settings or option.config.views <= USUAL_VIEWS:
        return False
    costly = option.stored * option.slice_seconds / 3600 > ENCODING_SHARE * option.fitted.schedule.hours
    large = option.fitted.forecast.cache_gb > ENCODING_SHARE * context.budget.disk_gb
    return option.stored > STORED_SLICES or costly or large


def _ways(prior: Prior, weights: str, asked: Mapping[str, Any], *, adapted: bool) -> list[dict[str, Any]]:
    """Recipes to weigh, the preferred one first; what the user asked for is laid over them.

    An adapted encoder is kept whatever its size: its adapters are what was to be trained in it.
    """
    kept = adapted or asked.get("encoder") == "frozen" or bool(asked.get("cache"))
    if asked.get("encoder") == "full" or weights == "none" or (prior == "own weights" and not kept):
        return [{"encoder": "full", "cache": False, **(FULL_LARGE if prior == "sam" else TRAINED_WHOLE)}]
    if asked.get("channel_map") == "stem":
        return [{"cache": False}]
    caches = _caches(asked)
    if "cache" in asked:
        return caches if asked["cache"] else [{}]
    return [*caches, {"cache": False}]


def _caches(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Views and how they are kept, the preferred first; views beyond the usual are not worth fewer bits."""
    ways = []
    for views in [asked["views"]] if "views" in asked else VIEWS:
        ways.append({"views": views})
        if (views <= USUAL_VIEWS or "views" in asked) and "cache_storage" not in asked:
            ways.append({"views": views, "cache_storage": COMPACT})
    return ways


@dataclass(frozen=True)
class _Way:
    variant: SamVariant
    input_size: int
    weights: str
    settings: dict[str, Any]


def _cost_out(context: PlanningContext, spec: HeadSpec, way: _Way) -> SamOption:
    settings = known_settings(spec.config, way.settings)
    config = cast(SamHeadConfig, build_config(get_method(spec.method), settings))
    encode, train = _loads(context, spec, way, config)
    wanted = train.batch_size
    while train.batch_size > LEAST_BATCH and memory_gb(train, context.budget) > context.budget.memory_gb:
        train = replace(train, batch_size=max(LEAST_BATCH, train.batch_size // 2))
    if train.batch_size < wanted and "accumulate" not in context.settings:
        settings["accumulate"] = wanted // train.batch_size
        config = replace(config, accumulate=settings["accumulate"])
    slice_seconds = step_seconds(encode, context.budget) / ENCODE_BATCH
    stored = context.num_slices * config.views if is_cached(config) else 0
    cache_gb = stored * cache_bytes(way.variant, way.input_size, config, spec.cached_blocks) / 1e9
    cache = CacheCost(load=encode, hours=stored * slice_seconds / 3600, size_gb=cache_gb)
    return SamOption(
        variant=way.variant,
        input_size=way.input_size,
        weights=way.weights,
        batch_size=train.batch_size,
        config=config,
        fitted=fit(context, config, settings, train, cache if is_cached(config) else None),
        slice_seconds=slice_seconds,
        stored=stored,
    )


def cache_bytes(variant: SamVariant, input_size: int, config: SamHeadConfig, blocks: int = 0) -> int:
    """Bytes of one slice: the neck's output, those of some blocks, and the picture for an image skip."""
    channels = (variant.prompt_dim, *(variant.width for _ in range(blocks)))
    levels = Storage.parse(config.cache_storage).bytes(channels, (input_size // PATCH) ** 2)
    return levels + (PICTURE_BYTES * input_size**2 if config.sees_picture(variant) else 0)


def _loads(context: PlanningContext, spec: HeadSpec, way: _Way, config: SamHeadConfig) -> tuple[Load, Load]:
    """Load of encoding a few slices for the cache, and of one training step."""
    encoder = encoder_cost(way.variant, way.input_size)
    frozen, shown = config.encoder == "frozen", slice_size(context.data["2d"])
    place = HeadInput(
        variant=way.variant,
        input_size=way.input_size,
        patch_size=shown,
        num_outputs=context.num_outputs,
        detail=config.sees_picture(way.variant),
        normalised=not config.as_published,
        exclusive=context.exclusive,
    )
    head = spec.cost(place, config)
    parameters = encoder.parameters + head.parameters
    values = head.values + LOGIT_COPIES * context.num_outputs * math.prod(shown)
    trained = {spec.work: head.multiply_adds}
    if not frozen:
        lean = config.checkpointing
        values += encoder.lean_values if lean else encoder.values
        trained["vit"] = trained.get("vit", 0.0) + encoder.multiply_adds
        if context.budget.device == "cpu":
            values += attention_bias_values(way.variant, way.input_size, lean=lean)
    encodes = frozen and not is_cached(config)
    again = config.checkpointing and not frozen
    train = Load(
        batch_size=min(BATCH, max(LEAST_BATCH, context.num_slices)),
        parameters=parameters,
        trainable=head.parameters if frozen else parameters,
        optimizer_values=2,
        trained=trained,
        frozen={"vit": encoder.multiply_adds} if encodes or again else {},
        values=values,
        value_cost=TOKEN_VALUES,
        passing_values=encoder.passing_values if encodes else 0.0,
    )
    encode = Load(
        batch_size=ENCODE_BATCH,
        parameters=parameters,
        trainable=0,
        optimizer_values=0,
        trained={},
        frozen={"vit": encoder.multiply_adds},
        passing_values=encoder.passing_values,
    )
    return encode, train
