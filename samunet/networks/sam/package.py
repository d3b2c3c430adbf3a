"""The modules of the `segment-anything` package, imported without torchvision.

`import segment_anything` pulls in its mask generator and with it torchvision, which many installations lack
or have in a build that does not fit their torch. Its `modeling` part needs torch alone, so only that is
imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import TYPE_CHECKING, Any

from samunet.errors import SamunetError

_NAME = "segment_anything"


def import_modeling() -> types.ModuleType:
    """`segment_anything.modeling`.

    The parent package is entered into `sys.modules` without being run. It runs as soon as something that
    only it has is asked for: `from segment_anything import SamPredictor` still works in the same process.

    Raises:
        SamunetError: the package is not installed.
    """
    if _NAME not in sys.modules:
        spec = importlib.util.find_spec(_NAME)
        if spec is None or spec.loader is None:
            raise SamunetError(
                "The package segment-anything is not installed; SAM's modules come from it. "
                "Install it: pip install segment-anything"
            )
        module = importlib.util.module_from_spec(spec)
        module.__dict__["__getattr__"] = _run_on_demand(module)
        sys.modules[_NAME] = module
    return importlib.import_module(f"{_NAME}.modeling")


def _run_on_demand(module: types.ModuleType) -> Any:
    def missing_attribute(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        assert module.__spec__ is not None
        assert module.__spec__.loader is not None
        del module.__dict__["__getattr__"]
        try:
            module.__spec__.loader.exec_module(module)
        except BaseException:
            module.__dict__["__getattr__"] = missing_attribute
            raise
        return getattr(module, name)

    return missing_attribute


if TYPE_CHECKING:  # the package has no types; this says so
    from segment_anything import modeling as modeling
else:
    modeling = import_modeling()
