"""What the user overrides for a training or prediction: settings of the method, some of the configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from samunet.errors import SamunetError, unknown_name
from samunet.networks.sam.variants import PATCH
from samunet.planning.methods import Method, build_config, get_method
from samunet.planning.plan import Configuration, Plan
from samunet.planning.planner import PLANNED
from samunet.records import from_data, to_data

CONFIGURATION_FIELDS = (*PLANNED, "encoder")
"""Fields of a configuration that `--set` may change; the rest follows from the data or the method."""
OF_ENCODER = ("encoder", "input_size")
"""Those of them that say which encoder, and what it sees."""


def configuration_fields(method: Method) -> tuple[str, ...]:
    """CONFIGURATION_FIELDS without those that only a method with an encoder has."""
    return tuple(key for key in CONFIGURATION_FIELDS if method.uses_encoder or key not in OF_ENCODER)


def apply_overrides(plan: Plan, name: str, settings: dict[str, Any]) -> Plan:
    """The plan with configuration `name` as it will be trained.

    Args:
        plan: as planned.
        name: of the configuration.
        settings: `--set` pairs: settings of the method, or one of CONFIGURATION_FIELDS that it has.

    Raises:
        SamunetError: unknown setting, or a wrong type.
    """
    configuration = plan.configuration(name)
    method = get_method(configuration.method)
    known = {field.name for field in dataclasses.fields(method.config)}
    changed = to_data(configuration)
    for key, value in settings.items():
        if key in known:
            changed["settings"][key] = value
        elif key in CONFIGURATION_FIELDS:
            _check_applies(key, value, method, configuration)
            changed[key] = value
        else:
            fields = configuration_fields(method)
            raise unknown_name(f"setting of {method.name}", key, [*known, *fields])
    build_config(method, changed["settings"])  # refuses wrong types and values
    configuration = from_data(Configuration, changed, where="--set ")
    _check(configuration, method.dimension)
    return dataclasses.replace(plan, configurations={**plan.configurations, name: configuration})


def _check_applies(key: str, value: object, method: Method, configuration: Configuration) -> None:
    """Refuse a field that nothing would be read from: it would give the run another identity, no more.

    Raises:
        SamunetError: the method has no encoder, or one that sees patches as they are.
    """
    if key not in configuration_fields(method):
        raise SamunetError(f"--set {key}={value}: {method.name} has no encoder. Leave it out.")
    if key == "input_size" and configuration.input_size is None:
        raise SamunetError(
            f"--set input_size={value}: the encoder of {method.name} sees patches as they are. Leave it "
            "out, or set patch_size."
        )


def apply_prediction_settings(plan: Plan, name: str, settings: dict[str, Any]) -> Plan:
    """The plan with configuration `name` as a trained model is to predict.

    Raises:
        SamunetError: a setting that training has fixed, an unknown one, or a wrong value.
    """
    configuration = plan.configuration(name)
    method = get_method(configuration.method)
    fixed = sorted(set(settings) - set(method.prediction_settings))
    if fixed:
        allowed = ", ".join(method.prediction_settings)
        raise SamunetError(
            f"--set {fixed[0]}: a trained {method.name} cannot be predicted with another value. "
            + (f"What may be set at prediction: {allowed}." if allowed else "It has no setting that can be.")
        )
    return apply_overrides(plan, name, settings)


def differing_settings(plan: Plan, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `settings` that configuration `name` does not have already, unknown ones too."""
    configuration = plan.configuration(name)
    config = build_config(get_method(configuration.method), configuration.settings)
    fields = {key: getattr(configuration, key) for key in CONFIGURATION_FIELDS}
    there = {**fields, **to_data(config)}
    absent = object()
    return {key: value for key, value in settings.items() if to_data(there.get(key, absent)) != value}


def _check(configuration: Configuration, dimension: int) -> None:
    patch, side = configuration.patch_size, configuration.input_size
    if len(patch) != dimension:
        raise SamunetError(
            f"--set patch_size={list(patch)}: {configuration.name} needs {dimension} numbers of voxels."
        )
    if side is not None and (side < PATCH or side % PATCH):
        raise SamunetError(f"--set input_size={side}: must be a multiple of {PATCH}, SAM's patch.")
    outside = [axis for axis in configuration.mirror_axes if not 0 <= axis < len(configuration.patch_size)]
    if outside:
        raise SamunetError(
            f"--set mirror_axes: {outside} are no axes of the patch {configuration.patch_size}."
        )
