"""Where a run stands: what the loop counts, and what a checkpoint keeps of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Sums:
    """What has been added up within an epoch.

    Attributes:
        values: name -> sum over steps (losses) or over voxels (`tp`, `fp`, `fn`).
        steps: how many steps were added; `left_out` how many of them are in no sum.
    """

    values: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    left_out: Tensor | int = 0

    def add(self, parts: dict[str, Tensor], *, finite_only: bool = False) -> None:
        """Add a step; with `finite_only` none of which the loss is not finite."""
        counts = parts["loss"].detach().isfinite() if finite_only else None
        if counts is not None:
            self.left_out = self.left_out + ~counts
        for name, value in parts.items():
            value = value.detach()
            if counts is not None:
                value = torch.where(counts, value, 0)
            self.values[name] = self.values[name] + value if name in self.values else value.clone()
        self.steps += 1

    def means(self) -> dict[str, float]:
        """Mean per step of the scalar values."""
        steps = max(self.steps - int(self.left_out), 1)
        return {k: float(v) / steps for k, v in self.values.items() if v.ndim == 0}

    def state(self) -> dict[str, Any]:
        values = {k: v.cpu() for k, v in self.values.items()}
        return {"values": values, "steps": self.steps, "left_out": int(self.left_out)}


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
