"""Training: one loop, one file a method. `get_trainer` finds a method's trainer by its registered name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from samunet.errors import SamunetError
from samunet.planning.methods import get_method

if TYPE_CHECKING:
    from samunet.trainers.base import MethodTrainer


def get_trainer(method_name: str) -> type[MethodTrainer]:
    """The trainer of a registered method (or of a dotted module outside the package)."""
    return import_trainer(get_method(method_name).trainer)


def import_trainer(path: str) -> type[MethodTrainer]:
    """The class named `module:Class`.

    Raises:
        SamunetError: the module or the class does not exist.
    """
    module_name, _, class_name = path.partition(":")
    try:
        return getattr(import_module(module_name), class_name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise SamunetError(
            f"The trainer {path!r} cannot be imported ({error}). If the method is not part of samunet, "
            "install its module or put its folder on PYTHONPATH."
        ) from error
