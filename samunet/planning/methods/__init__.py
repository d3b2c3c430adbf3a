"""Registry of methods. A module in this folder (no torch) registers its methods; that is all it takes.

A method of somebody else's is one importable module that calls `register`; its dotted name works wherever
a method's name does (`samunet_train 101 my_lab.sam_moe 0`).
"""

from __future__ import annotations

import dataclasses
import pkgutil
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from samunet.errors import SamunetError, unknown_name
from samunet.records import Count, Natural, NotNegative, Positive, RecordError, Share, from_data

if TYPE_CHECKING:
    from samunet.planning.candidates import Candidate, PlanningContext

LAST = ("student",)
"""Modules whose methods stand at the end of lists, after those that they learn from."""
ALIASES = {"2d": "2d_unet", "3d_fullres": "3d_unet"}
REFUSED = {
    "3d_lowres": "3d_lowres and the cascade are out of scope; use 3d_unet (3d_fullres).",
    "3d_cascade_fullres": "3d_lowres and the cascade are out of scope; use 3d_unet (3d_fullres).",
}


AugmentationPreset = typing.Literal[
    "full",
    "light",
    "none",
    "generalize",
    "generalize_intensity",
    "generalize_bias_field",
    "generalize_resolution",
]


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings every method has. A method's own Config subclasses this and changes or adds fields.

    Each field can be set with `--set name=value`; the plan stores only what differs from the defaults.
    """

    epochs: Count = 100
    """Length of the schedule in epochs."""
    iterations: Count = 250
    """Training steps an epoch."""
    val_iterations: Count = 20
    """Validation steps an epoch (patch Dice, not whole cases)."""
    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NotNegative = 1e-2
    """Weight decay of the optimizer."""
    warmup_steps: Natural = 0
    """Steps of linear warm-up before the decay, at most a tenth of the training."""
    accumulate: Count = 1
    """Batches accumulated before an optimizer step."""
    oversample_foreground: Share = 0.33
    """Share of each batch that is forced to contain foreground."""
    augmentation: AugmentationPreset = "full"
    """Preset: nnU-Net's `full`, `light`, `none`, or `generalize` for data from other scanners."""
    precision: typing.Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto`: the method's own on CUDA, fp32 elsewhere; bf16 pays on CPUs that have instructions for it."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One entry of the registry.

    Attributes:
        name: what the user types.
        dimension: 2 or 3, the data configuration that it trains on (`2d` or `3d`).
        summary: one line for lists and help.
        source: paper and section.
        config: subclass of MethodConfig with the method's settings.
        uses_encoder: whether it stands on a SAM encoder.
        row: pure function; context -> Candidate (configuration, fit and reasons). No torch.
        trainer: `module:Class` of its trainers.base.MethodTrainer, imported only when trained or predicted.
        replanned_by: settings that change patch or memory of a method without an encoder, so that a training
            with them is planned again; of a method with one these are all that its recipe does not have.
        prediction_settings: settings that no trained tensor depends on, so that a trained model may predict
            with other values (`samunet_predict --set`).
    """

    name: str
    dimension: int
    summary: str
    source: str
    config: type[MethodConfig]
    uses_encoder: bool
    row: Callable[[PlanningContext], Candidate]
    trainer: str
    replanned_by: tuple[str, ...] = ()
    prediction_settings: tuple[str, ...] = ()


_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method. Registering the same name from two modules is refused."""
    present = _METHODS.get(method.name)
    if present is not None and present.trainer != method.trainer:
        raise SamunetError(f"Two modules register the method {method.name!r}; rename one.")
    _METHODS[method.name] = method
    return method


def list_methods() -> dict[str, Method]:
    """All registered methods by name, the built-in ones first discovered from this folder."""
    found = [module.name for module in pkgutil.iter_modules(__path__)]
    for module in sorted(found, key=lambda name: (name in LAST, name)):
        import_module(f"{__name__}.{module}")
    return dict(_METHODS)


def get_method(name: str) -> Method:
    """The method of that name; nnU-Net's names of the U-Nets and dotted module names are accepted.

    Raises:
        SamunetError: unknown, or out of scope; lists the closest names.
    """
    if name in REFUSED:
        raise SamunetError(REFUSED[name])
    methods = list_methods()
    key = ALIASES.get(name, name)
    if key not in methods and "." in key:
        return _import_outside(key)
    if key not in methods:
        raise unknown_name("method", name, [*methods, *ALIASES])
    return methods[key]


def _import_outside(dotted: str) -> Method:
    before = set(_METHODS)
    try:
        import_module(dotted)
    except ModuleNotFoundError as error:
        raise SamunetError(
            f"Method {dotted!r}: no module of that name can be imported ({error}). "
            "Install it or put its folder on PYTHONPATH."
        ) from error
    named = [m for n, m in _METHODS.items() if n == dotted] or [_METHODS[n] for n in set(_METHODS) - before]
    if len(named) != 1:
        raise SamunetError(f"Module {dotted} must register exactly one method named {dotted!r}.")
    return named[0]


def settings_of(config: type[MethodConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that this method has; a user's stand above the recipe of a row, defaults too."""
    known = {f.name for f in dataclasses.fields(config)}
    return {key: value for key, value in settings.items() if key in known}


def known_settings(config: type[MethodConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that this method has and that differ from its defaults, as a plan stores them."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    return {key: value for key, value in settings_of(config, settings).items() if value != defaults[key]}


def build_config(method: Method, settings: dict[str, Any]) -> MethodConfig:
    """The method's Config with `settings` applied over its defaults.

    Raises:
        SamunetError: unknown setting or wrong type, naming the setting and those that exist.
    """
    known = [f.name for f in dataclasses.fields(method.config)]
    for key in settings:
        if key not in known:
            raise unknown_name(f"setting of {method.name}", key, known)
    try:
        return from_data(method.config, settings, where=f"{method.name} settings")
    except RecordError as error:
        raise SamunetError(f"{error} Correct it with --set key=value.") from error
