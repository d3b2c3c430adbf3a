"""Where a run stands: what the loop counts, and what a checkpoint keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Sums:
    """What has been added up within an epoch.

    Attributes:
        values: name -> sum over steps (losses) or over voxels (`tp`, `fp`, `fn`).
        steps: how many steps they are of.
    """

    values: dict[str, Any] = field(default_factory=dict)
    steps: int = 0

    def add(self, parts: dict[str, Tensor]) -> None:
        for name, value in parts.items():
            value = value.detach()
            self.values[name] = self.values[name] + value if name in self.values else value.clone()
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Mean per step of the scalar values."""
        return {k: float(v) / self.steps for k, v in self.values.items() if v.ndim == 0}

    def state(self) -> dict[str, Any]:
        return {"values": {k: v.cpu() for k, v in self.values.items()}, "steps": self.steps}


@dataclass
class Progress:
    """Where a run stands; all of it goes into the checkpoint.

    Attributes:
        epoch: complete epochs.
        iteration: optimizer steps done in the present epoch; above 0 only after an interruption.
        ema: moving average of patch Dice; `best` its highest value.
        sums: of the present epoch's training steps.
        seconds / waiting: of the present epoch; training_seconds: without its validation.
    """

    epoch: int = 0
    iteration: int = 0
    ema: float | None = None
    best: float | None = None
    sums: Sums = field(default_factory=Sums)
    seconds: float = 0.0
    waiting: float = 0.0
    training_seconds: float = 0.0
