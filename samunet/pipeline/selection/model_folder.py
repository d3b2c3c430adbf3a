"""One model folder looked through: which folds are trained and scored, and whether they belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from samunet.data.dataset import RawDataset
from samunet.data.splits import Split
from samunet.errors import SamunetError
from samunet.evaluation.summary_file import Summary, read_summary
from samunet.listing import fold_words
from samunet.pipeline.predicted_as import PredictedAs, not_by_itself, predicted_as, told_apart
from samunet.pipeline.run_commands import TrainedAs
from samunet.planning.fingerprint import Fingerprint
from samunet.planning.plan import Plan
from samunet.records import content_hash
from samunet.trainers.checkpoint import checkpoints_in
from samunet.trainers.identity import RunRecord, read_run
from samunet.workspace import (
    FINAL,
    PLAN_FILE,
    SUMMARY_FILE,
    Workspace,
    fold_folder,
    fold_folders,
    validation_folder,
)


@dataclass(frozen=True, kw_only=True)
class ScoredFold:
    """A trained fold with the scores of its validation cases."""

    run: RunRecord
    summary: Summary
    predicted: PredictedAs


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model and its folds; it can be compared when there are no faults.

    Attributes:
        faults: in words, everything that keeps it out, with the commands that mend it.
    """

    trained: TrainedAs
    folder: Path
    folds: dict[int, ScoredFold]
    faults: tuple[str, ...]

    def validation(self, fold: int) -> Path:
        """Folder of the predictions of a fold's validation cases."""
        return validation_folder(self.folder, fold)

    def validation_again(self, folds: Sequence[int], *, probabilities: bool) -> str:
        """The command that predicts the validation cases of these folds in the same way again.

        Args:
            probabilities: keep them this time.
        """
        first = next(iter(self.folds.values()))
        kept = ["--npz"] if probabilities else []
        return self.trained.command(folds, *first.predicted.flags(), *kept)

    def told(self) -> str:
        """All faults in one line."""
        return f"{self.trained.name}: {'; '.join(self.faults)}."


@dataclass
class _Faults:
    """Folds by what is wrong with them, so that one command mends all of a kind.

    Attributes:
        folder: of the model; new folds are to be like those that were begun, asked for or not.
    """

    folder: Path
    of_model: list[str] = field(default_factory=list)
    untrained: list[int] = field(default_factory=list)
    unfinished: list[int] = field(default_factory=list)
    unscored: list[int] = field(default_factory=list)
    other_split: list[int] = field(default_factory=list)

    @property
    def _any_fold(self) -> bool:
        return any((self.untrained, self.unfinished, self.unscored, self.other_split))

    def told(self, trained: TrainedAs) -> tuple[str, ...]:
        parts, runs = list(self.of_model), _runs(self.folder) if self._any_fold else {}
        for folds, words, flags in (
            (self.untrained, "not trained", ()),
            (self.unfinished, "not trained to the end", ("--c",)),
            (self.unscored, "trained, but without scores and predictions of all its cases", ("--val",)),
            (
                self.other_split,
                "trained on another split; name its scheme with --splits, or train anew",
                ("--overwrite",),
            ),
        ):
            if folds:
                like = runs.get(str(folds[0])) or next(iter(runs.values()), None)
                command = trained.command(folds, *flags, like=like)
                parts.append(f"{fold_words(folds)} {words}: {command}")
        return tuple(parts)


def look_at(
    workspace: Workspace, raw: RawDataset, trained: TrainedAs, splits: dict[int, Split]
) -> ModelFolder:
    """Read what a model folder holds of the folds in `splits`; never raises for what is wrong with it."""
    folder = workspace.model_folder(trained.dataset, trained.configuration, trained.plans, trained.tag)
    faults, folds = _Faults(folder=folder), {}
    faults.of_model += _plan_faults(workspace, raw, trained, folder)
    for number, split in splits.items():
        fold = _scored_fold(trained, folder, (number, split), raw, faults)
        if fold is not None:
            folds[number] = fold
    faults.of_model += _odd_folds(trained, folds)
    return ModelFolder(trained=trained, folder=folder, folds=folds, faults=faults.told(trained))


def _runs(folder: Path) -> dict[str, RunRecord]:
    """Fold -> record of every run in a model folder that can be read; what is wrong is told of each fold."""
    found = {}
    for fold in fold_folders(folder).values():
        with suppress(SamunetError):
            run = read_run(fold)
            if run is not None:
                found[str(run.fold)] = run
    return found


def _plan_faults(workspace: Workspace, raw: RawDataset, trained: TrainedAs, folder: Path) -> list[str]:
    """What is wrong with the data that the model was trained on."""
    try:
        plan = Plan.load(folder / PLAN_FILE)
    except SamunetError as fault:
        return [str(fault).rstrip(".")]
    told = []
    if plan.labels != raw.labels:
        told.append(
            f"trained with other labels than {raw.folder / 'dataset.json'} declares; plan and train it again"
        )
    file = workspace.plan_file(trained.dataset, trained.plans)
    if file.is_file() and not _of_the_same_data(workspace, Plan.load(file), plan):
        told.append(
            f"trained on another plan, made from other data than {file} (it was planned again since); train "
            "it again"
        )
    return told


def _of_the_same_data(workspace: Workspace, current: Plan, earlier: Plan) -> bool:
    if current.fingerprint_hash == earlier.fingerprint_hash:
        return True
    file = workspace.fingerprint_file(current.dataset)
    if not file.is_file():
        return False
    measured = Fingerprint.load(file)
    return all(measured.describes(plan.fingerprint_hash) for plan in (current, earlier))


def _scored_fold(
    trained: TrainedAs, model_folder: Path, asked: tuple[int, Split], raw: RawDataset, faults: _Faults
) -> ScoredFold | None:
    """The fold's run and scores; None, with a fault noted, where something is missing."""
    number, split = asked
    folder, validation = fold_folder(model_folder, number), validation_folder(model_folder, number)
    try:
        run = read_run(folder)
        if run is None:
            faults.untrained.append(number)
            return None
        if run.split_hash != content_hash([sorted(split.train), sorted(split.val)]):
            faults.other_split.append(number)
            return None
        if not (validation / SUMMARY_FILE).is_file():
            _unscored(folder, number, faults)
            return None
        summary = read_summary(validation / SUMMARY_FILE, raw.labels)
        predicted = predicted_as(validation, trained.command([number], "--val"))
    except SamunetError as fault:
        faults.of_model.append(str(fault).rstrip("."))
        return None
    files = [validation / f"{case}{raw.label_ending}" for case in split.val]
    if not set(split.val) <= set(summary.cases) or not all(file.is_file() for file in files):
        faults.unscored.append(number)
        return None
    return ScoredFold(run=run, summary=summary, predicted=predicted)


def _unscored(folder: Path, number: int, faults: _Faults) -> None:
    """Note how far a fold without scores has come."""
    if (folder / FINAL).is_file():
        faults.unscored.append(number)
    elif checkpoints_in(folder):
        faults.unfinished.append(number)
    else:
        faults.untrained.append(number)


def _odd_folds(trained: TrainedAs, folds: dict[int, ScoredFold]) -> list[str]:
    """Folds that were not trained alike, or not predicted alike.

    Which of them are meant nobody knows, so each way is given: what is replaced took hours.
    """
    told = []
    kinds = _alike({number: (f.run.configuration_hash, _teacher(f.run)) for number, f in folds.items()})
    if len(kinds) > 1:
        ways = [
            f"to have all like {fold_words(kind)}: "
            + trained.command(sorted(set(folds) - set(kind)), "--overwrite", like=folds[kind[0]].run)
            for kind in kinds
        ]
        told.append(
            f"{' and '.join(map(fold_words, kinds))} were trained on different plans or with different "
            f"settings; {'; '.join(ways)}; to keep both kinds, train one of them with a --tag"
        )
    predicted = {number: fold.predicted for number, fold in folds.items()}
    if len(set(predicted.values())) > 1:
        told.append(
            f"the validation cases were predicted in different ways ({told_apart(predicted)}); to have all "
            f"as samunet_train does it by itself: {trained.command(not_by_itself(predicted), '--val')}"
        )
    return told


def _alike(kinds: Mapping[int, object]) -> list[list[int]]:
    """Folds of each kind, the largest group first."""
    groups: dict[object, list[int]] = {}
    for number, kind in kinds.items():
        groups.setdefault(kind, []).append(number)
    return sorted(groups.values(), key=len, reverse=True)


def _teacher(run: RunRecord) -> str:
    return "" if run.distillation is None else str(run.distillation.get("teacher"))
