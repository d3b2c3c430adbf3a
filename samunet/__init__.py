"""samunet: self-configuring medical image segmentation with Segment Anything and an honest baseline.

Public names are resolved lazily so that `import samunet` and every `samunet_* -h` stay free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Predictor": "samunet.inference.predictor",
    "EnsemblePredictor": "samunet.inference.ensemble_predictor",
    "Workspace": "samunet.workspace",
    "RawDataset": "samunet.data.dataset",
    "Plan": "samunet.planning.plan",
    "SamunetError": "samunet.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'samunet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
