"""The planner: fingerprint, budget and weights at hand to a plan. A pure function; disk is not touched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samunet.errors import SamunetError, unknown_name
from samunet.planning.candidates import Candidate, PlanningContext
from samunet.planning.evidence import generalist_without_sam
from samunet.planning.fingerprint import Fingerprint
from samunet.planning.methods import Method, build_config, get_method, known_settings, list_methods
from samunet.planning.plan import Budget, DataConfiguration, Plan, Verdict
from samunet.planning.rules import (
    REFERENCE_GB,
    masked_normalization,
    needs_low_resolution,
    normalization_scheme,
    plan_unet_patch,
    resampled_shapes,
    target_spacing,
    transpose_axes,
)
from samunet.planning.standing import NEVER, count_sites, other_sites, sam_variants_at_hand
from samunet.planning.windows import display_windows, mirroring

GOALS = ("accuracy", "speed", "generalize")
PLANNED = ("batch_size", "patch_size", "input_size", "batch_dice", "mirror_axes")
"""Of a configuration; a training may change them (`--set`)."""
OVERRIDES = ("spacing", "encoder", "weights", "settings")
GENERALIST = "2d_desam"
"""The method made for sites never seen."""


@dataclass(frozen=True, kw_only=True)
class PlanningRequest:
    """What a plan is made for.

    Attributes:
        name: of the plan.
        budget: for the SAM rows, and what every row is judged by.
        unet_memory_gb: GPU memory that U-Net patches are planned for; nnU-Net's 8 GB unless the user said.
        weights: SAM variant -> `official`, `shipped` or `file`, for every variant at hand.
        adapted: those of them whose file has adapters in the encoder's blocks.
        goal: `accuracy` recommends what is expected to segment best, `speed` the quickest to train,
            `generalize` what is expected to do so on data from other sites.
        overrides: the user's `spacing` (z, y, x of the file, mm), `encoder`, `weights` (where `weights` come
            from), `settings`; kept in the plan.
        extra_methods: dotted names of methods outside the package, planned too.
    """

    name: str = "samunetPlans"
    budget: Budget
    unet_memory_gb: float = REFERENCE_GB
    weights: Mapping[str, str] = field(default_factory=dict)
    adapted: frozenset[str] = frozenset()
    goal: str = "accuracy"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    extra_methods: tuple[str, ...] = ()


def make_plan(fingerprint: Fingerprint, request: PlanningRequest) -> Plan:
    """Plan every method and recommend one.

    Raises:
        SamunetError: an unknown or unusable override; names it and what exists.
    """
    if request.goal not in GOALS:
        raise unknown_name("goal", request.goal, GOALS)
    for key in request.overrides:
        if key not in OVERRIDES:
            raise unknown_name("override", key, OVERRIDES)
    grid = _grid(fingerprint, request.overrides.get("spacing"))
    methods = {**list_methods(), **{name: get_method(name) for name in request.extra_methods}}
    _check_settings(methods, request.overrides.get("settings", {}))
    context = _context(fingerprint, request, grid)
    candidates = [method.row(context) for method in methods.values()]
    recommended = recommend(candidates, request.goal)
    return Plan(
        name=request.name,
        dataset=fingerprint.dataset,
        fingerprint_hash=fingerprint.data_hash,
        file_ending=fingerprint.file_ending,
        channel_names=fingerprint.channel_names,
        labels=fingerprint.labels,
        num_training=len(fingerprint.cases),
        transpose_forward=grid.forward,
        transpose_backward=grid.backward,
        original_median_spacing_mm=_median(fingerprint.spacings_mm, grid.forward),
        original_median_shape=_median(fingerprint.shapes, grid.forward),
        intensity=fingerprint.intensity,
        budget=request.budget,
        goal=request.goal,
        data=context.data,
        configurations={c.method: c.configuration for c in candidates if c.configuration is not None},
        recommended=recommended,
        verdicts=tuple(_verdict(candidate, recommended, candidates, context) for candidate in candidates),
        overrides=dict(request.overrides),
    )


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Target spacing and case shapes, in transposed axes."""

    forward: tuple[int, int, int]
    backward: tuple[int, int, int]
    spacing_mm: tuple[float, ...]
    shapes: np.ndarray


def _grid(fingerprint: Fingerprint, spacing: Any) -> _Grid:
    target = target_spacing(fingerprint.spacings_mm, fingerprint.shapes)
    if spacing is not None:
        wanted = tuple(float(s) for s in spacing)
        if len(wanted) != 3 or min(wanted) <= 0:
            raise SamunetError(f"Target spacing {spacing}: give three positive numbers, z y x in mm.")
        are_planes = all(case.is_2d for case in fingerprint.cases)
        target = (target[0] if are_planes else wanted[0], *wanted[1:])
    shapes = resampled_shapes(fingerprint.spacings_mm, fingerprint.shapes, target)
    stored = np.asarray(fingerprint.shapes)
    median = np.minimum(np.median(stored, axis=0), np.median(shapes, axis=0))
    forward, backward = transpose_axes(target, median.tolist())
    order = list(forward)
    if np.median(stored, axis=0)[order[0]] == 1:
        # Single slices stay what they are: 2D data are not resampled across them, whatever the spacing.
        shapes[:, order[0]] = stored[:, order[0]]
    return _Grid(
        forward=forward,
        backward=backward,
        spacing_mm=tuple(target[axis] for axis in order),
        shapes=shapes[:, order],
    )


def _median(values: Any, order: tuple[int, ...]) -> tuple[float, ...]:
    median = np.median(np.asarray(values, np.float64), axis=0)
    return tuple(float(median[axis]) for axis in order)


def _context(fingerprint: Fingerprint, request: PlanningRequest, grid: _Grid) -> PlanningContext:
    data = _data_configurations(fingerprint, grid)
    slices = np.asarray(fingerprint.shapes)[:, grid.forward[0]]
    mirror_axes, mirror_reason = mirroring(fingerprint, grid.forward)
    labels = fingerprint.labels
    median_voxels = float(np.prod(np.median(grid.shapes, axis=0)))
    context = PlanningContext(
        data=data,
        num_cases=len(fingerprint.cases),
        num_slices=int(slices.sum()),
        num_channels=len(fingerprint.channel_names),
        num_outputs=labels.num_outputs,
        exclusive=not labels.has_regions,
        num_labels=len(labels.labels) + (labels.ignore is not None),
        dataset_voxels=median_voxels * len(fingerprint.cases),
        batch_dice_3d=False,
        mirror_axes=mirror_axes,
        mirror_reason=mirror_reason,
        budget=request.budget,
        unet_memory_gb=request.unet_memory_gb,
        weights=dict(request.weights),
        adapted=request.adapted,
        encoder=request.overrides.get("encoder"),
        settings=dict(request.overrides.get("settings", {})),
        natural_image=fingerprint.natural_image,
        sites=count_sites(fingerprint.origins, len(fingerprint.cases)),
        goal=request.goal,
    )
    return dataclasses.replace(context, batch_dice_3d=_has_low_resolution(context))


def _has_low_resolution(context: PlanningContext) -> bool:
    if "3d" not in context.data:
        return False
    request = context.unet_request(context.data["3d"])
    return needs_low_resolution(request, plan_unet_patch(request))


def _data_configurations(fingerprint: Fingerprint, grid: _Grid) -> dict[str, DataConfiguration]:
    schemes = tuple(normalization_scheme(name) for name in fingerprint.channel_names)
    masked = masked_normalization(schemes, fingerprint.median_relative_size)
    median = tuple(float(n) for n in np.median(grid.shapes, axis=0))
    largest = tuple(int(n) for n in grid.shapes.max(axis=0))
    windows = display_windows(fingerprint, schemes, masked)

    def configuration(dimension: int) -> DataConfiguration:
        first = 3 - dimension
        return DataConfiguration(
            name=f"{dimension}d",
            dimension=dimension,
            spacing_mm=grid.spacing_mm[first:],
            median_shape=median[first:],
            max_shape=largest[first:],
            normalization=schemes,
            use_mask_for_norm=masked,
            display_window=windows,
        )

    # nnU-Net's test for 2D data: the median case is one slice thick.
    dimensions = (2,) if median[0] == 1 else (2, 3)
    return {f"{dimension}d": configuration(dimension) for dimension in dimensions}


def _check_settings(methods: Mapping[str, Method], settings: Mapping[str, Any]) -> None:
    """Refuse a setting that no method has, or that has the wrong type for a method that has it."""
    known = {f.name for method in methods.values() for f in dataclasses.fields(method.config)}
    for key in settings:
        if key in PLANNED:
            raise SamunetError(
                f"--set {key}: the planner decides it, method by method. Set it where one is trained: "
                f"samunet_train DATASET CONFIGURATION FOLD --set {key}={settings[key]}."
            )
        if key not in known:
            raise unknown_name("setting", key, known)
    for method in methods.values():
        build_config(method, known_settings(method.config, dict(settings)))


def recommend(candidates: list[Candidate], goal: str) -> str:
    """Name of the method to train, or an empty string when nothing fits."""
    fitting = [c for c in candidates if c.fits and c.configuration is not None and c.score > NEVER]
    if not fitting:
        return ""
    if goal == "speed":
        return min(fitting, key=lambda c: (_hours(c), -c.score)).method
    return max(fitting, key=lambda c: c.score).method


def _hours(candidate: Candidate) -> float:
    assert candidate.configuration is not None
    return candidate.configuration.forecast.train_hours


def _verdict(
    candidate: Candidate, recommended: str, rivals: list[Candidate], context: PlanningContext
) -> Verdict:
    """The planner's words on a method."""
    if candidate.configuration is None:
        return Verdict(method=candidate.method, status="unsuitable", reasons=candidate.reasons)
    if not candidate.fits:
        return Verdict(method=candidate.method, status="does not fit", reasons=candidate.reasons)
    if candidate.method != recommended:
        return Verdict(method=candidate.method, status="fits", reasons=candidate.reasons)
    reasons = (*_overtaken(candidate, rivals), *candidate.reasons)
    if other_sites(context):
        reasons = _for_other_sites(candidate, rivals, reasons, context)
    return Verdict(method=candidate.method, status="recommended", reasons=reasons)


def _for_other_sites(
    chosen: Candidate, rivals: list[Candidate], reasons: tuple[str, ...], context: PlanningContext
) -> tuple[str, ...]:
    """What data from other sites mean for the choice: what it would be without them, or what it lacks."""
    if chosen.method == GENERALIST:
        others = [c for c in rivals if c.fits and c.method != GENERALIST and c.score > NEVER]
        if not others:
            return reasons
        best = max(others, key=lambda c: c.score).method
        return (*reasons, f"For images of the same sites alone {best} would be recommended.")
    generalist = next((c for c in rivals if c.method == GENERALIST and c.configuration is not None), None)
    if generalist is None or generalist.configuration is None:
        return reasons
    if generalist.configuration.has_sam_weights:
        return reasons
    unused = sam_variants_at_hand(context)
    lacking = f"this plan leaves those at hand ({', '.join(unused)}) unused" if unused else "none are at hand"
    lack = (
        f"{other_sites(context)}. {GENERALIST} is made for that, but its study rests on SAM's pretrained "
        f"weights, and {lacking}. {generalist_without_sam()} What any method can do: train with "
        "--set augmentation=generalize."
    )
    return (lack, *reasons)


def _overtaken(chosen: Candidate, rivals: list[Candidate]) -> list[str]:
    """Which methods would stand higher than the chosen one on a larger budget, and what they lack."""
    sentences = []
    for rival in rivals:
        if rival.configuration is None or rival.potential is None or rival.potential <= chosen.score:
            continue
        if not rival.fits:
            lack = rival.reasons[0]
            sentences.append(f"{rival.method} would stand higher, but {lack[0].lower()}{lack[1:]}")
        elif rival.score < chosen.score:
            epochs = rival.configuration.settings.get("epochs", 0)
            sentences.append(
                f"{rival.method} would stand higher, but only {epochs} epochs fit into the hours."
            )
    return sentences
