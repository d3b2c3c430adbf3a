"""How methods stand against each other on a dataset, each judgement with the sentence that backs it.

A score is comparable between methods only within one plan; the highest that fits is recommended.
"""

from __future__ import annotations

from collections import Counter

from samunet.data.groups import Origins
from samunet.networks.sam.variants import SamVariant, get_variant
from samunet.planning.candidates import PlanningContext
from samunet.planning.memory import ENOUGH_STEPS, Schedule
from samunet.planning.plan import RANDOM, DataConfiguration, Forecast
from samunet.planning.rules import ANISOTROPY

FEW_VOLUMES = 10
"""AutoSAM's study: the frozen encoder's lead over a U-Net is gone at about ten labelled volumes."""
FEW_IMAGES = 100
"""Single images that hold about as many labelled slices as ten of that study's volumes."""
FEW_SLICES = 16
"""A 3D patch of fewer, thick slices is pooled at most once along them."""
UNET = 10.0
FITTING_DIMENSION = 1.0
PRETRAINED_FEW = 14.0
PRETRAINED_MANY = 7.0
FROM_SCRATCH = 3.0
OWN_WEIGHTS = 5.0
"""Weights of a small encoder that are not SAM's: a better start than none, below a U-Net, which they lead
in ten minutes with one labelled volume only; longer trainings are not measured. Three seeds of `2d_cnn` on
Dataset002; with five cases of Datasets 001 and 008 it was 5 points behind each
(`planning/evidence.py`)."""
GENERALIZING = 18.0
"""A method made for sites never seen, where these are to be expected and its weights are at hand."""
LEAST_CASES_A_GROUP = 5
"""Groups of fewer cases on average are patients rather than sites, unless patients are declared."""
NEVER = float("-inf")
"""Score of what must not be recommended although it runs."""
PRIOR_WEIGHT = 0.2
SHORT_SCHEDULE_PENALTY = 4.0
LOST_DETAIL_PENALTY = 2.0


def few_cases(context: PlanningContext) -> bool:
    """Whether the labels are so few that a pretrained encoder is expected to lead."""
    return context.num_cases <= (FEW_VOLUMES if has_volumes(context) else FEW_IMAGES)


def other_sites(context: PlanningContext) -> str:
    """Why images of sites never seen are to be expected, as the start of a sentence; empty when they are not.

    `speed` was asked for in place of the best segmentation, whatever the groups.
    """
    if context.goal == "generalize":
        return "You asked for a model for data from other sites (--goal generalize)"
    if context.goal != "accuracy" or context.sites == 0:
        return ""
    return (
        f"The cases are of {context.sites} declared groups, so that images to come may well be of others too"
    )


def count_sites(origins: Origins, num_cases: int) -> int:
    """Number of the declared groups, where they are sites; 0 where they are none.

    That takes groups of most of the cases, two of them or more with some cases each, and groups that are not
    patients: where patients are declared they are none, else ones of few cases on average may be.
    """
    groups, sizes = origins.groups, Counter(origins.groups.values())
    if 2 * len(groups) <= num_cases:
        return 0
    least = 2 if origins.patients else LEAST_CASES_A_GROUP
    is_few = not origins.patients and len(groups) < least * len(sizes)
    return 0 if is_few or sum(size >= least for size in sizes.values()) < 2 else len(sizes)


def sam_weights_at_hand(context: PlanningContext) -> bool:
    """Whether SAM's weights (or such as were tuned from them) are there for the methods of this plan."""
    if context.settings.get("encoder_weights") == RANDOM:
        return False
    found = sam_variants_at_hand(context)
    return bool(found) if context.encoder is None else context.encoder in found


def sam_variants_at_hand(context: PlanningContext) -> tuple[str, ...]:
    """Encoders that there are SAM's weights for, whether the user asked for one of them or not."""
    return tuple(n for n, kind in sorted(context.weights.items()) if get_variant(n).prior(kind) == "sam")


def standing_without_sam(variant: SamVariant, weights: str) -> float | None:
    """Standing of a method on an encoder that has not SAM's weights; None where it has them."""
    if weights == RANDOM:
        return NEVER
    lacking = {"encoder without prior": FROM_SCRATCH, "own weights": OWN_WEIGHTS}
    return lacking.get(variant.prior(weights))


def has_volumes(context: PlanningContext) -> bool:
    """Whether cases are volumes rather than single images."""
    return "3d" in context.data


def counted_cases(context: PlanningContext) -> str:
    """`5 labelled volumes (75 slices)` or `260 labelled images`."""
    if not has_volumes(context):
        return f"{context.num_cases} labelled image{'s' * (context.num_cases != 1)}"
    plural = "s" * (context.num_cases != 1)
    return f"{context.num_cases} labelled volume{plural} ({context.num_slices} slices)"


def thick_slices(context: PlanningContext) -> str:
    """Why the volumes suit a 2D network, with the figures; empty when they suit a 3D one."""
    data: DataConfiguration | None = context.data.get("3d")
    if data is None:
        return ""
    ratio = data.spacing_mm[0] / max(data.spacing_mm[1:])
    slices = data.median_shape[0]
    if ratio <= ANISOTROPY or slices >= FEW_SLICES:
        return ""
    return (
        f"the median case has {slices:g} slices of {data.spacing_mm[0]:.3g} mm against "
        f"{max(data.spacing_mm[1:]):.3g} mm in plane, too few and too thick for context across slices"
    )


def suits_dimension(context: PlanningContext, dimension: int) -> bool:
    """Whether slices (2) or volumes (3) are the fitting input."""
    return dimension == (3 if has_volumes(context) and not thick_slices(context) else 2)


def short_schedule_penalty(schedule: Schedule) -> float:
    """Score lost by a schedule that the hours cut very short."""
    return SHORT_SCHEDULE_PENALTY * max(0.0, 1 - schedule.steps / min(ENOUGH_STEPS, schedule.wanted_steps))


def length_reason(schedule: Schedule, hours: float, *, fixed: bool) -> str:
    """How long the training is, and why."""
    text = f"{schedule.epochs} epochs of {schedule.iterations} steps take about {shown_hours(schedule.hours)}"
    if fixed:
        return f"{text}; the length is the one you set."
    if not schedule.shortened:
        return f"{text}, the recipe's full length."
    full = shown_hours(schedule.hours * schedule.wanted / schedule.epochs)
    return (
        f"{text}; the recipe's {schedule.wanted} epochs would take about {full} on this machine, more than "
        f"the {hours:g} hours allowed, so the schedule is shortened."
    )


def shown_hours(hours: float) -> str:
    """`12 minutes`, `3.4 hours` or `8 days`."""
    if hours < 1:
        return f"{max(1, round(hours * 60))} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.0f} days"


def shortage(forecast: Forecast, schedule: Schedule, context: PlanningContext) -> tuple[str, ...]:
    """What of the budget is exceeded, one sentence each; empty when everything fits."""
    budget, found = context.budget, []
    kind = "main memory" if budget.device == "cpu" else "GPU memory"
    if forecast.memory_gb > budget.memory_gb:
        found.append(
            f"It needs about {forecast.memory_gb:.1f} GB of {kind}; {budget.memory_gb:g} GB may be used."
        )
    if forecast.cache_gb > budget.disk_gb:
        found.append(f"It needs {forecast.cache_gb:.1f} GB of disk; {budget.disk_gb:g} GB may be used.")
    if not schedule.fits:
        found.append(
            f"Its shortest useful schedule ({schedule.steps} steps) takes about "
            f"{shown_hours(schedule.hours)}; {budget.hours:g} hours are allowed."
        )
    return tuple(found)
