"""Running a teacher over whole preprocessed cases, once, into the soft-label store."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from samunet.data.cases import Case
from samunet.inference.folds import checkpoint_file
from samunet.inference.logit_storage import LogitStorage
from samunet.inference.predictor import Predictor
from samunet.planning.plan import Plan
from samunet.preprocessing.dataset import preprocess_unlabelled
from samunet.preprocessing.open_cases import made_anew
from samunet.preprocessing.soft_labels import SoftLabelStore, draw_foreground, pack_case
from samunet.preprocessing.store import CaseStore, StoredCase
from samunet.trainers.batches import SoftSource
from samunet.trainers.distillation import content_keys
from samunet.trainers.reporter import Reporter, duration
from samunet.whole_files import check_room

CHECKPOINT_FLAG = "--teacher_checkpoint"
SPREAD = 1.5
"""Other cases may compress worse than the first one, from which the disk need is estimated."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained model to be run.

    Attributes:
        model_folder / folds / checkpoint: which networks; their logits are averaged.
        device: None or `auto` takes the best one here.
        weights_folder: official encoder files.
    """

    model_folder: Path
    folds: tuple[int | str, ...]
    checkpoint: str
    device: str
    weights_folder: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """Checkpoint of each fold.

        Raises:
            SamunetError: a fold is not trained; says which are.
        """
        return tuple(
            checkpoint_file(self.model_folder, fold, self.checkpoint, flag=CHECKPOINT_FLAG)
            for fold in self.folds
        )


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """Labels what is missing, case by case; a call that is interrupted is continued by the next.

    Attributes:
        teacher: what labels.
        labels: where the soft labels go.
        plan / data_name: data configuration of the cases.
        case_folder / names: labelled cases, training and validation.
        unlabelled: images to preprocess first.
        workers: processes for that.
    """

    teacher: Teacher
    labels: SoftSource
    plan: Plan
    data_name: str
    case_folder: Path
    names: tuple[str, ...]
    unlabelled: tuple[Case, ...] = ()
    workers: int | None = None

    def __call__(self, reporter: Reporter) -> None:
        """Run the teacher over the cases without soft labels of it.

        Raises:
            SamunetError: images that cannot be preprocessed, soft labels of something else, no disk space.
        """
        store = SoftLabelStore(self.labels.folder, self.labels.identity)
        store.check_identity()
        missing = self._missing(store)
        if not missing:
            reporter.message(f"Soft labels of all {len(self.names) + len(self.unlabelled)} cases are there.")
            return
        teacher = self.teacher
        predictor = Predictor.load(
            teacher.model_folder,
            folds=teacher.folds,
            checkpoint=teacher.checkpoint,
            device=teacher.device,
            step_size=self.labels.identity.step_size,
            mirroring=self.labels.identity.mirroring,
            weights_folder=teacher.weights_folder,
        )
        reporter.message(f"The teacher labels {len(missing)} cases. {predictor.describe()}")
        if predictor.device.type == "cpu" and predictor.num_mirrorings > 1:
            reporter.message(
                f"Mirroring makes this about {predictor.num_mirrorings} times slower; --disable_tta turns it "
                "off."
            )
        started, to_estimate = time.monotonic(), missing
        for done, case in enumerate(missing):
            if not store.has(case.name, case.entry.key):  # another training may have labelled it meanwhile
                self._label(store, predictor, case, to_estimate)
                to_estimate = []
            elapsed = time.monotonic() - started
            left = duration(elapsed / (done + 1) * (len(missing) - done - 1))
            reporter.status(f"soft labels  {done + 1}/{len(missing)} cases  {left} left")
        device = predictor.device
        del predictor
        if device.type == "cuda":
            torch.cuda.empty_cache()
        reporter.message(f"Soft labels made in {duration(time.monotonic() - started)}: {store.folder}")

    def _missing(self, store: SoftLabelStore) -> list[StoredCase]:
        folders = [(self.case_folder, self.names)]
        if self.labels.unlabelled_folder is not None:
            folder = self.labels.unlabelled_folder
            preprocess_unlabelled(self.unlabelled, self.plan, self.data_name, folder, self.workers)
            folders.append((folder, self.labels.unlabelled))
        return [
            CaseStore(folder).open(name)
            for folder, names in folders
            for name in store.missing(content_keys(folder, names))
        ]

    def _label(
        self, store: SoftLabelStore, predictor: Predictor, case: StoredCase, to_estimate: list[StoredCase]
    ) -> None:
        store.folder.mkdir(parents=True, exist_ok=True)
        found = CaseStore(case.folder).open_whole(case.name)
        if found.entry.key != case.entry.key:
            raise made_anew(f"The preprocessed case {case.name} in {case.folder}", "in another way")
        case = found
        logits = predictor.predict_preprocessed(case.image[:], LogitStorage(store.folder))
        by_slice = self.plan.data[self.data_name].dimension == 2
        packed = pack_case(logits, self.labels.identity, by_slice)
        if to_estimate:
            voxels = sum(prod(other.record.shape) for other in to_estimate)
            check_space(store.folder, len(packed) / prod(case.record.shape) * voxels, len(to_estimate))
        own = case.name not in self.labels.unlabelled
        foreground = None if own else draw_foreground(logits, self.labels.identity)
        store.write(case.name, packed, case.entry.key, foreground)


def check_space(folder: Path, needed_bytes: float, cases: int) -> None:
    """See that the soft labels fit on the disk, before the first of them is written.

    Args:
        folder: where they go; need not exist.
        needed_bytes: what they take if all compress like the first.
        cases: how many.

    Raises:
        SamunetError: they do not fit; says what is needed and free.
    """
    advice = "Free some space, or set another --workspace."
    check_room(folder, SPREAD * needed_bytes, f"The soft labels of {cases} cases need about", advice)
