"""What the loop asks of a run, be it one fold of a dataset or a pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from samunet.preprocessing.streams import SampleSource
from samunet.trainers.base import Phase, TrainingModule
from samunet.trainers.checkpoint import BaseWeights
from samunet.trainers.devices import Precision
from samunet.trainers.reporter import Reporter
from samunet.trainers.sampling import Batching


class Restorable(Protocol):
    """A checkpoint as the loop continues it."""

    @property
    def epoch(self) -> int:
        """Complete epochs."""

    @property
    def network(self) -> Mapping[str, Tensor]:
        """State dict without the tensors of `base_weights`."""

    @property
    def base_weights(self) -> BaseWeights | None:
        """What was left out."""

    @property
    def training(self) -> dict[str, Any]:
        """Optimizer, scaler, random states, position, averages."""


class LoopRun(Protocol):
    """A run that `fit` trains; all of it is settled before the loop starts."""

    phases: tuple[Phase, ...]
    workers: int
    device: torch.device
    precision: Precision
    folder: Path
    reporter: Reporter

    @property
    def source(self) -> SampleSource:
        """Makes the samples."""

    @property
    def module(self) -> TrainingModule:
        """Network and losses."""

    @property
    def batch_size(self) -> int:
        """Samples a batch."""

    @property
    def batching(self) -> Batching:
        """How the keys of samples are made."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the counts `tp`, `fp`, `fn` that validation returns."""

    def take_checkpoint(self) -> Restorable | None:
        """Checkpoint to continue from, once: a whole network and optimizer, which the run does not keep."""

    def save(self, path: Path, epoch: int, training: dict[str, Any]) -> None:
        """Write a checkpoint after `epoch` complete epochs, atomically."""
