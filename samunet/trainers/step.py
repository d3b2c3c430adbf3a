"""One optimizer step and one validation step, the same for the loop and for timing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samunet.trainers.base import Phase, build_optimizer
from samunet.trainers.devices import to_device
from samunet.trainers.progress import Sums

if TYPE_CHECKING:
    from samunet.trainers.loop_run import LoopRun


class TrainingStep:
    """Optimizer and loss scaler of a phase. Making it freezes what the phase does not train."""

    def __init__(self, run: LoopRun, phase: Phase) -> None:
        self.run, self.phase = run, phase
        run.module.enter_phase(phase)
        self.module = run.module.to(run.device)
        self.optimizer = build_optimizer(phase, run.module.network)
        self.scaler = run.precision.scaler(run.device)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]

    def train(self, next_batch: Callable[[], dict[str, Tensor]], rate_factor: float) -> dict[str, Tensor]:
        """Losses, averaged over the accumulated batches.

        Args:
            next_batch: gives a batch on the CPU.
            rate_factor: of the phase's learning rate at this step.
        """
        phase, run = self.phase, self.run
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = phase.learning_rate * group["lr_factor"] * rate_factor
        self.optimizer.zero_grad(set_to_none=True)
        parts = Sums()
        for _ in range(phase.accumulate):
            batch = to_device(next_batch(), run.device)
            with run.precision.autocast(run.device):
                losses = self.module(batch)
            self.scaler.scale(losses["loss"] / phase.accumulate).backward()
            parts.add(losses)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.trained, phase.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {name: value / phase.accumulate for name, value in parts.values.items()}

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses and voxel counts of a batch."""
        self.module.eval()
        with self.run.precision.autocast(self.run.device):
            return self.module(to_device(batch, self.run.device))
