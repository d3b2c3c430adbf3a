"""A configuration planned again because the user overrode what the planner decides from."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samunet.errors import SamunetError
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import file_has_adapters
from samunet.pipeline.plan_and_preprocess import (
    PlanOptions,
    encoder_of_file,
    planning_request,
    weights_in_reach,
)
from samunet.pipeline.said_once import SaidOnce, Say
from samunet.planning.fingerprint import Fingerprint
from samunet.planning.methods import Method, MethodConfig, get_method, list_methods
from samunet.planning.plan import RANDOM, Configuration, Plan
from samunet.planning.planner import make_plan
from samunet.workspace import Workspace

RECIPE = {field.name for field in dataclasses.fields(MethodConfig)} | {"encoder_learning_rate_factor"}
"""Settings that change how a network is trained but not what fits into memory."""


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the user gave with a training: settings, encoder, and file or folder of weights."""

    settings: dict[str, Any] = field(default_factory=dict)
    encoder: str | None = None
    weights: Path | None = None


def replan(workspace: Workspace, plan: Plan, name: str, options: Overrides, say: Say | None = None) -> Plan:
    """The plan, with configuration `name` planned again where the overrides or a new method ask for it.

    The plan's own budget is kept. Nothing is written: the derived configuration is stored with the run.

    Args:
        workspace / plan / name / options: what is planned again, and why.
        say: tells the user that it was, or that weights are here which the plan has not; by default to the
            log.

    Raises:
        SamunetError: the method does not suit the dataset; gives the planner's reasons.
    """
    say = say or SaidOnce()
    method = get_method(name)
    structural = structural_settings(method, options)
    encoder = _wanted_encoder(workspace, plan, method, options, say)
    if name in plan.configurations and not structural and encoder is None:
        return plan
    fingerprint_file = workspace.fingerprint_file(plan.dataset)
    if not fingerprint_file.exists():
        raise SamunetError(
            f"There is no {fingerprint_file}, which is needed to plan {name} with these settings. "
            f"Run samunet_extract_fingerprint -d {plan.dataset}."
        )
    wanted = PlanOptions(
        plans=plan.name,
        spacing_mm=plan.overrides.get("spacing"),
        encoder=encoder or options.encoder or plan.overrides.get("encoder"),
        weights=options.weights or planned_weights(plan),
        settings={**plan.overrides.get("settings", {}), **structural},
        goal=plan.goal,
    )
    files = weights_in_reach(workspace, wanted.weights, wanted.encoder)
    request = planning_request(wanted, plan.budget, files)
    if name not in list_methods():  # a dotted name: a method of somebody else's
        request = dataclasses.replace(request, extra_methods=(name,))
    made = make_plan(Fingerprint.load(fingerprint_file), request)
    replanned = _with_configuration(plan, made, name)
    say(_told(replanned.configuration(name), structural, options.settings))
    return replanned


def planned_weights(plan: Plan, name: str | None = None) -> Path | None:
    """Weights that the user named when the plan was made; trainings take them unless they are told others.

    Args:
        plan: as it was made.
        name: a configuration: None where its weights are not from there.

    Raises:
        SamunetError: they are gone.
    """
    told = plan.overrides.get("weights")
    if told is None:
        return None
    chosen = None if name is None else plan.configuration(name)
    if chosen is not None and (chosen.encoder is None or chosen.encoder_weights in ("none", RANDOM)):
        return None
    path = Path(told)
    if not path.exists():
        raise SamunetError(
            f"Plan {plan.name} was made with the weights {path}, which are not there now. Name them with -w, "
            "or plan again."
        )
    if chosen is None or path.is_dir():
        return path
    return path if chosen.encoder == (plan.overrides.get("encoder") or encoder_of_file(path)) else None


def _wanted_encoder(
    workspace: Workspace, plan: Plan, method: Method, options: Overrides, say: Say
) -> str | None:
    """The encoder that flags or newly given weights ask for, or None when the plan's stays.

    Raises:
        SamunetError: -encoder or -w for a method without an encoder; weights that are not there.
    """
    if not method.uses_encoder:
        if options.encoder or options.weights:
            raise SamunetError(f"{method.name} has no encoder, so -encoder and -w do not apply to it.")
        return None
    present = plan.configurations.get(method.name)
    is_file = options.weights is not None and not options.weights.is_dir()
    named = options.encoder or (encoder_of_file(options.weights) if is_file and options.weights else None)
    if present is None or named not in (None, present.encoder):
        return named
    at_hand = weights_in_reach(workspace, options.weights, named or present.encoder)
    if options.weights is not None and _is_adapted_otherwise(plan, at_hand, present.encoder):
        return present.encoder
    if present.encoder_weights == "none" and at_hand:
        if options.weights is not None or named in at_hand:
            return named or next(iter(at_hand))
        _say_weights_came(say, "pretrained weights", at_hand)
    elif present.encoder_weights == "shipped" and options == Overrides(settings=options.settings):
        came = [v for v in at_hand if v not in plan.weights and get_variant(v).prior("file") == "sam"]
        if came and "encoder" not in plan.overrides:
            _say_weights_came(say, "SAM's weights", came)
    return None


def _say_weights_came(say: Say, what: str, names: Iterable[str]) -> None:
    say(
        f"The plan was made without {what}, but those of {', '.join(names)} are here now. Plan again to use "
        "them, or name one with -encoder.",
        logging.WARNING,
    )


def _is_adapted_otherwise(plan: Plan, at_hand: Mapping[str, Path], encoder: str | None) -> bool:
    """Whether weights have adapters where the planned ones have none, or the other way round."""
    planned, given = plan.weights.get(encoder or ""), at_hand.get(encoder or "")
    return given is not None and file_has_adapters(given) != (planned is not None and planned.adapted)


def structural_settings(method: Method, options: Overrides) -> dict[str, object]:
    """The overrides that change encoder, memory or cache of a method on an encoder, or a patch."""
    known = set(method.replanned_by)
    if method.uses_encoder:
        known = {field.name for field in dataclasses.fields(method.config)} - RECIPE
    return {key: value for key, value in options.settings.items() if key in known}


def _with_configuration(plan: Plan, made: Plan, name: str) -> Plan:
    derived = made.configuration(name)
    if made.data_hash(derived.data) != plan.data_hash(derived.data):
        raise SamunetError(
            f"{name} needs other preprocessed cases than plan {plan.name} has. Plan with these settings: "
            f"samunet_plan_and_preprocess -d {plan.dataset} -p NEW_NAME."
        )
    return dataclasses.replace(plan, configurations={**plan.configurations, name: derived})


def _told(derived: Configuration, structural: dict[str, object], given: dict[str, Any]) -> str:
    """What was chosen anew, and what for; not what the user gave."""
    why = ", ".join(f"{key}={value}" for key, value in structural.items()) or f"encoder {derived.encoder}"
    chosen = []
    if derived.encoder:
        chosen.append(f"encoder {derived.encoder} (weights: {derived.encoder_weights})")
    if "patch_size" not in given:
        chosen.append(f"patch {'x'.join(map(str, derived.patch_size))}")
    if "batch_size" not in given:
        chosen.append(f"batch {derived.batch_size}")
    shown = ", ".join(chosen)
    return f"{derived.name} is planned again for this run ({why}){f': {shown}' if shown else ''}"
