"""A pretraining as the loop sees it: no plan, no fold, no labels; its checkpoint, and its result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samunet.errors import SamunetError
from samunet.networks.sam.weights import PARTS, SamWeights
from samunet.preprocessing.streams import SampleSource
from samunet.records import content_hash, to_data
from samunet.trainers.augmentation import fixed_random
from samunet.trainers.base import Phase
from samunet.trainers.budget import FEW_STEPS, measure, tell_overrun
from samunet.trainers.checkpoint import BaseWeights, network_state
from samunet.trainers.devices import Precision
from samunet.trainers.loop import Outcome, fit
from samunet.trainers.pretrain_teacher import Teacher
from samunet.trainers.pretraining import SCORES, PretrainModule, PretrainNetwork, PretrainSettings, phase_of
from samunet.trainers.reporter import Reporter
from samunet.trainers.sampling import Batching
from samunet.trainers.schedule import fit_to_budget, phase_seconds
from samunet.trainers.torch_files import read_torch, write_torch

FORMAT = 2
ENCODER_PREFIX = "sam.image_encoder."
NAMES = ("case_names_hash", "excluded_names")
"""Keys of a source's description that a checkpoint or a card may lack."""


@dataclass(frozen=True, kw_only=True)
class PretrainCheckpoint:
    """Content of a pretraining's checkpoint.

    Attributes:
        identity: hash of settings and data; another one is another pretraining.
        length: epochs, steps and validation batches an epoch, as they were fixed at the start.
        epoch: complete epochs.
        network: state dict of the SAM and the objectives' heads.
        training: what only continuing needs.
        data: description of the sources; None in a checkpoint without it.
        licences: of sources, as the user declared them.
        time_budget_minutes: to which the length was fitted; None where it was not, or it is not written down.
    """

    identity: str
    length: tuple[int, int, int]
    epoch: int
    network: dict[str, Tensor]
    training: dict[str, Any]
    base_weights: BaseWeights | None = None
    data: Any = None
    licences: dict[str, str] = field(default_factory=dict)
    time_budget_minutes: float | None = None

    @property
    def case_names_hashes(self) -> dict[str, str] | None:
        """Of each source with cases; None where the checkpoint does not say."""
        if self.data is None:
            return None
        told = [entry for entry in self.data if isinstance(entry, dict)]
        return {entry["source"]: entry[NAMES[0]] for entry in told if NAMES[0] in entry}


@dataclass(kw_only=True)
class PretrainRun:
    """Everything that the loop needs (see LoopRun).

    Attributes:
        settings: what is pretrained.
        data: plain description of the sources; part of the run's identity.
        teacher: whose embeddings are learnt, for the task of that name.
        start: weights to begin with.
        licences: of sources, as the user declared them; for the card, no part of the identity.
        time_budget_minutes: to which the length was fitted, if it was.
    """

    settings: PretrainSettings
    data: Any
    source: SampleSource
    folder: Path
    device: torch.device
    reporter: Reporter
    workers: int = 0
    teacher: Teacher | None = None
    start: SamWeights | None = None
    licences: dict[str, str] = field(default_factory=dict)
    time_budget_minutes: float | None = field(default=None, init=False)
    precision: Precision = field(init=False)
    module: PretrainModule = field(init=False)
    phases: tuple[Phase, ...] = field(init=False)
    resume_from: PretrainCheckpoint | None = None

    def __post_init__(self) -> None:
        self.precision = Precision.choose(self.device, "bf16", self.settings.precision)
        self.phases = (phase_of(self.settings),)
        with fixed_random(self.settings.seed):
            channels = 0 if self.teacher is None else self.teacher.channels
            network = PretrainNetwork(self.settings, channels, self.start)
            self.module = PretrainModule(network, self.settings, self.teacher)

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    @property
    def batching(self) -> Batching:
        return Batching(size=self.batch_size, oversample=0.0)

    @property
    def class_names(self) -> Sequence[str]:
        return SCORES if "prompt" in self.settings.tasks else ()

    @property
    def identity(self) -> str:
        """Hash of what decides the numbers."""
        return self._identity(self.data)

    def _identity(self, data: Any) -> str:
        teacher = None
        if self.teacher is not None:
            teacher = {"sha256": self.teacher.card.sha256, "input_size": self.teacher.card.input_size}
        told = {"settings": to_data(self.settings), "data": data, "teacher": teacher}
        return content_hash(told if self.start is None else {**told, "start": self.start.sha256})

    @property
    def base_weights(self) -> BaseWeights | None:
        """What stays as it is, so that checkpoints leave it out."""
        if self.start is None or not self.settings.adapters:
            return None
        return BaseWeights(
            variant=self.settings.encoder,
            file=self.start.path.name,
            sha256=self.start.sha256,
            prefix=ENCODER_PREFIX,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return sum(phase.epochs * phase.iterations for phase in self.phases)

    def sam_state(self) -> dict[str, Tensor]:
        """The result: a whole SAM's state dict, float32, on the CPU; with adapters, its encoder's too.

        What was not trained is the file's own: its position tables fit the native input size.
        """
        network = self.module.network
        own, kept = network.sam.state_dict(), {}
        if self.start is not None and self.settings.adapters:
            kept = {f"{part}.{key}": v for part in PARTS for key, v in getattr(self.start, part).items()}
            trained = {name.removeprefix("sam.") for name, _ in network.trained_parameters()}
            own = {name: value for name, value in own.items() if name in trained}
        copied = {k: v.detach().to("cpu", torch.float32, copy=True).contiguous() for k, v in own.items()}
        return kept | copied

    def take_checkpoint(self) -> PretrainCheckpoint | None:
        """What is continued, handed over: the run does not keep it in memory."""
        taken, self.resume_from = self.resume_from, None
        return taken

    def save(self, path: Path, epoch: int, training: dict[str, Any]) -> None:
        """Write a checkpoint after `epoch` complete epochs, atomically."""
        phase = self.phases[0]
        content = {
            "format": FORMAT,
            "kind": "pretraining",
            "identity": self.identity,
            "length": [phase.epochs, phase.iterations, phase.val_iterations],
            "epoch": epoch,
            "data": self.data,
            "licences": self.licences,
            "time_budget_minutes": self.time_budget_minutes,
            "network": network_state(self.module.network, self.base_weights),
            "training": training,
        }
        write_torch(path, content)

    def resume(self, checkpoint: PretrainCheckpoint) -> None:
        """Continue from a checkpoint of this pretraining; its length is kept.

        A checkpoint without case names is known by the rest: whether its slices are of the same cases has to
        be settled before.

        Raises:
            SamunetError: it is of other settings or data.
        """
        wanted = self.identity if checkpoint.data is not None else self._identity(_without_names(self.data))
        if checkpoint.identity != wanted:
            raise SamunetError(
                f"{self.folder} holds a pretraining with other settings or data. Repeat the command that "
                "started it and add --c, or take another -o NAME."
            )
        self._set_length(*checkpoint.length)
        self.licences = {**checkpoint.licences, **self.licences}
        self.time_budget_minutes = checkpoint.time_budget_minutes
        self.resume_from = replace(checkpoint, base_weights=self.base_weights)

    def fit_to_budget(self, minutes: float) -> None:
        """Time a few steps, undo them, and shorten the run to what fits."""
        started = time.monotonic()
        with fixed_random(self.settings.seed):
            timing = measure(self, minutes * 60)
            left = max(minutes * 60 - (time.monotonic() - started), 1.0)
            phase = fit_to_budget(self.phases, timing, left)[0]
        self._set_length(phase.epochs, phase.iterations, phase.val_iterations)
        self.time_budget_minutes = minutes
        expected = phase_seconds(phase, timing)
        self.reporter.message(
            f"Time budget {minutes:g} min: {timing.train_step:.3g} s a step; {self.steps} steps, about "
            f"{expected / 60:.1f} min."
        )
        tell_overrun(self, expected, left)
        if self.steps < FEW_STEPS:
            self.reporter.message(f"Warning: {self.steps} steps teach an encoder next to nothing.")

    def _set_length(self, epochs: int, iterations: int, val_iterations: int) -> None:
        phase = self.phases[0]
        self.phases = (replace(phase, epochs=epochs, iterations=iterations, val_iterations=val_iterations),)

    def train(self) -> Outcome:
        """Run the loop; see `fit`."""
        with fixed_random(self.settings.seed):
            return fit(self)


def _without_names(data: Any) -> Any:
    """Descriptions of sources as they were before case names belonged to them."""
    return [
        {key: value for key, value in entry.items() if key not in NAMES} if isinstance(entry, dict) else entry
        for entry in data
    ]


def load_checkpoint(path: Path) -> PretrainCheckpoint:
    """Read a pretraining's checkpoint onto the CPU.

    Raises:
        SamunetError: there is none, it is cut off, or something else.
    """
    if not path.is_file():
        raise SamunetError(f"There is no {path} to continue. Start the pretraining without --c.")
    data = read_torch(path, "Delete the folder and start again.")
    if not isinstance(data, dict) or data.get("kind") != "pretraining" or data.get("format") != FORMAT:
        raise SamunetError(f"{path} is no checkpoint of a pretraining (format {FORMAT}).")
    return PretrainCheckpoint(
        identity=data["identity"],
        length=tuple(data["length"]),
        epoch=data["epoch"],
        network=data["network"],
        training=data["training"],
        data=data.get("data"),
        licences=data.get("licences", {}),
        time_budget_minutes=data.get("time_budget_minutes"),
    )
