"""Learning from a teacher: lambda * MSE to its outputs + (1 - lambda) * (Dice + CE) (AutoProSAM)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.preprocessing.soft_labels import SoftLabelIdentity, SoftLabelStore, output_of
from samunet.preprocessing.store import CaseStore
from samunet.trainers.base import Phase, SegmentationModule, TrainingModule, finest_of
from samunet.trainers.batches import SoftSource
from samunet.trainers.losses import LossSettings, patch_counts
from samunet.trainers.reporter import Reporter


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What a student learns from.

    Attributes:
        teacher: name of the teacher's model folder; `teacher_folder` where it lay.
        folds: of the teacher, whose logits are averaged; `checkpoint` the file's name in each.
        weight: lambda, the share of the teacher in the loss, 0 to 1.
        labels: where the teacher's outputs are; need not be complete before `label` has run.
        label: runs the teacher over the cases that have no soft labels yet. Composed above this layer, so
            that training knows nothing of inference.
        unlabelled_folder: where the images without labels came from.
    """

    teacher: str
    teacher_folder: str
    folds: tuple[int | str, ...]
    checkpoint: str
    weight: float
    labels: SoftSource
    label: Callable[[Reporter], None]
    unlabelled_folder: str | None = None

    def record(self) -> dict[str, Any]:
        """Plain data for run.json and checkpoints; all but the folders identifies the run."""
        identity = self.labels.identity
        return {
            "teacher": self.teacher,
            "teacher_folder": self.teacher_folder,
            "folds": list(self.folds),
            "checkpoint": self.checkpoint,
            "checkpoints_sha256": list(identity.checkpoints_sha256),
            "weight": self.weight,
            "target": identity.target,
            "step_size": identity.step_size,
            "mirroring": identity.mirroring,
            "unlabelled_folder": self.unlabelled_folder,
            "unlabelled": list(self.labels.unlabelled),
        }


class DistilledModule(TrainingModule):
    """A student's step with a teacher.

    Dice and CE are those of the student's own step, deep supervision included, over the samples that have
    labels. The MSE compares the finest logits with the teacher's outputs over all samples, ignored voxels
    left out. In probabilities it is summed over the outputs and averaged over voxels, so that its weight
    does not fall with the number of classes; in logits it is averaged over both.

    Args:
        student: the step of the method without a teacher.
        weight: lambda.
        labels: what the soft labels are.
    """

    def __init__(self, student: SegmentationModule, weight: float, labels: SoftSource) -> None:
        super().__init__(student.network)
        self.student = student
        self.weight = weight
        self.identity = labels.identity
        self.all_labelled = not labels.unlabelled

    def enter_phase(self, phase: Phase) -> None:
        self.student.enter_phase(phase)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs, target = self.student.outputs(batch), batch["target"]
        finest = finest_of(outputs)
        losses = self._own_losses(outputs, target, batch["labelled"])
        own = losses["loss"]
        mse = soft_label_error(finest, batch["soft"], target, self.identity, self.student.settings)
        # At the ends one term alone, so that lambda 0 is the training without a teacher to the last bit.
        total = (1 - self.weight) * own + self.weight * mse if 0 < self.weight < 1 else own
        losses = {**losses, "loss": mse if self.weight == 1 else total, "mse": mse}
        return losses if self.training else {**losses, **patch_counts(finest, target, self.student.settings)}

    def _own_losses(
        self, outputs: Tensor | Sequence[Tensor], target: Tensor, labelled: Tensor
    ) -> dict[str, Tensor]:
        """Dice + CE over the labelled samples; zeros where the batch has none."""
        if self.all_labelled or bool(labelled.all()):
            return self.student.losses(outputs, target)
        if not bool(labelled.any()):
            nothing = finest_of(outputs).float().sum() * 0.0
            return {"loss": nothing, "dice": nothing, "ce": nothing}
        chosen = outputs[labelled] if isinstance(outputs, Tensor) else [o[labelled] for o in outputs]
        return self.student.losses(chosen, target[labelled])


def soft_label_error(
    logits: Tensor, soft: Tensor, target: Tensor, identity: SoftLabelIdentity, settings: LossSettings
) -> Tensor:
    """Mean squared difference of a student's outputs from its teacher's, 0-dimensional.

    Args:
        logits: (B, K, *S).
        soft: (B, K, *S) of the identity's kind.
        target: as for SegmentationLoss; only where it is ignored matters.
        identity: says what is compared.
        settings: kind of labels.
    """
    squares = (output_of(logits.float(), identity) - soft.float()) ** 2
    squares = squares.sum(1, keepdim=True) if identity.target == "probabilities" else squares.mean(1, True)
    if settings.ignore_index is None:
        return squares.mean()
    counted = ~target[:, -1:].bool() if settings.regions else target != settings.ignore_index
    return (squares * counted).sum() / counted.sum().clamp_min(1)


def refuse_cached(method: str) -> None:
    """Say that a method trains from an embedding cache, whose views have no soft labels."""
    raise SamunetError(
        f"{method} trains from cached embeddings, which have no soft labels beside them. Give "
        "--set cache=false, or take 3d_student or a U-Net."
    )


def distilled(module: TrainingModule, method: str, distillation: Distillation) -> DistilledModule:
    """The student's step with its teacher.

    Args:
        module: the step of the method without a teacher.
        method: its name.
        distillation: teacher and share of its outputs.

    Raises:
        SamunetError: the method's step is not the usual one, so that nothing can be added to its loss.
    """
    plain = isinstance(module, SegmentationModule) and type(module).forward is SegmentationModule.forward
    if not plain:
        raise SamunetError(
            f"{method} has a training step of its own, so it cannot learn from a teacher. Take 3d_student, "
            "or a U-Net."
        )
    assert isinstance(module, SegmentationModule)
    return DistilledModule(module, distillation.weight, distillation.labels)


def check_soft_labels(labels: SoftSource, case_folder: Path, names: tuple[str, ...]) -> None:
    """See that every case has soft labels that were made from its present content.

    Raises:
        SamunetError: some have none; names them.
    """
    store = SoftLabelStore(labels.folder, labels.identity)
    store.check_identity()
    missing = store.missing(content_keys(case_folder, names))
    if labels.unlabelled_folder is not None:
        missing += store.missing(content_keys(labels.unlabelled_folder, labels.unlabelled))
    if missing:
        raise SamunetError(
            f"{len(missing)} cases have no soft labels of this teacher in {labels.folder}: "
            f"{listed(missing)}. Run samunet_distill again."
        )


def content_keys(case_folder: Path, names: tuple[str, ...]) -> Mapping[str, str]:
    """Case -> content key of the stored case."""
    store = CaseStore(case_folder)
    return {name: store.open(name).entry.key for name in names}
