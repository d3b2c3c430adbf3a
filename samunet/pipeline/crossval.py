"""Out-of-fold results of a cross-validation: the folds' validation predictions, scored as one set."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samunet.data.dataset import RawDataset
from samunet.data.readers import files_of, segmentation_ending
from samunet.data.splits import read_splits
from samunet.errors import SamunetError
from samunet.evaluation.folder import evaluate_cases
from samunet.evaluation.scores import Evaluation
from samunet.inference.folds import find_folds
from samunet.inference.probabilities import probability_files
from samunet.listing import counted_cases, listed
from samunet.pipeline.predicted_as import PredictedAs, not_by_itself, predicted_as, told_apart
from samunet.pipeline.run_commands import TrainedAs
from samunet.planning.plan import Plan
from samunet.progress import Progress
from samunet.records import write_json
from samunet.trainers.checkpoint import checkpoints_in
from samunet.trainers.identity import RunRecord, read_run
from samunet.whole_files import partial_folder, remove_partials, replace_folder
from samunet.workspace import (
    DATASET_FILE,
    PLAN_FILE,
    SUMMARY_FILE,
    TABLE_FILE,
    Workspace,
    fold_folder,
    is_validated,
    validation_folder,
)

logger = logging.getLogger(__name__)

RECORD_FILE = "crossval.json"


@dataclass(frozen=True, kw_only=True)
class CrossvalRecord:
    """Content of crossval.json.

    Attributes:
        model: name of the model folder.
        folds: that were gathered.
        fold_of_case: case -> fold that kept it out of its training.
        configuration_hash: of the folds' configuration.
        checkpoint: file that predicted.
        probabilities: whether those of every case are there.
        left_out: cases that no fold of the split validates.
    """

    model: str
    folds: tuple[int, ...]
    fold_of_case: dict[str, int]
    configuration_hash: str
    checkpoint: str
    probabilities: bool
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CrossvalResult:
    """Where the gathered predictions lie, what they are, and their scores."""

    folder: Path
    record: CrossvalRecord
    evaluation: Evaluation

    def text(self) -> str:
        """The scores in plain words."""
        kept = (
            "with probabilities" if self.record.probabilities else "without probabilities (--npz keeps them)"
        )
        count = len(self.record.fold_of_case)
        folds = ", ".join(map(str, self.record.folds))
        return (
            f"{self.evaluation.describe()}\n{count} cases of folds {folds}, {kept}: "
            f"{self.folder / SUMMARY_FILE}"
        )


def crossval_folder(model_folder: Path, folds: Sequence[int]) -> Path:
    """Folder of the gathered predictions, nnU-Net's name."""
    return model_folder / f"crossval_results_folds_{'_'.join(map(str, folds))}"


def accumulate_crossval(
    workspace: Workspace,
    model_folder: Path,
    output: Path | None = None,
    *,
    workers: int | None = 1,
    progress: Progress | None = None,
) -> CrossvalResult:
    """Gather the validation predictions of all trained folds of a model and score them as one set.

    Segmentations are copied; probabilities, where the validation kept them, are hard links where the file
    system has those. The folder appears once it is complete, scores included, and takes the place of an
    older one.

    Args:
        workspace: where raw data and splits lie.
        model_folder: results/DATASET/CONFIGURATION__PLANS[__TAG].
        output: None is `crossval_folder` inside the model folder.
        workers: processes that score.
        progress: called with (cases scored, all cases).

    Raises:
        SamunetError: cases are missing (with the commands that make them) or validated twice, or the folds
            were trained or validated differently.
    """
    plan = Plan.load(model_folder / PLAN_FILE)
    dataset = RawDataset.load(workspace.raw_folder(plan.dataset))
    numbers = tuple(fold for fold in find_folds(model_folder, flag=None) if isinstance(fold, int))
    if not numbers:
        raise SamunetError(f"{model_folder} has no numbered fold; fold `all` keeps no case out of training.")
    runs = {fold: _run_of(model_folder, fold) for fold in numbers}
    ending = segmentation_ending(plan.file_ending)
    fold_of_case = _owners(model_folder, runs)
    left_out = _check_complete(workspace, model_folder, dataset, runs, fold_of_case, ending)
    predicted = _check_alike(model_folder, dataset.name, runs)
    sources = {
        name: validation_folder(model_folder, fold) / f"{name}{ending}"
        for name, fold in sorted(fold_of_case.items())
    }
    record = CrossvalRecord(
        model=model_folder.name,
        folds=numbers,
        fold_of_case={name: fold_of_case[name] for name in sources},
        configuration_hash=runs[numbers[0]].configuration_hash,
        checkpoint=predicted.checkpoint,
        probabilities=all(file.is_file() for s in sources.values() for file in probability_files(s)),
        left_out=left_out,
    )
    folder = output or crossval_folder(model_folder, numbers)
    _check_place(folder)
    pairs = {name: (_label(dataset, name), file) for name, file in sources.items()}
    evaluation = _as_in(
        folder,
        evaluate_cases(pairs, plan.labels, origins=dataset.origins, workers=workers, progress=progress),
    )
    _gather(sources, folder, record, model_folder, evaluation)
    return CrossvalResult(folder=folder, record=record, evaluation=evaluation)


def _label(dataset: RawDataset, name: str) -> Path:
    label = dataset.case(name).label
    assert label is not None
    return label


def _run_of(model_folder: Path, fold: int) -> RunRecord:
    found = read_run(fold_folder(model_folder, fold))
    if found is None:
        raise SamunetError(f"{fold_folder(model_folder, fold)} has no run.json, so its cases are not known.")
    return found


def _owners(model_folder: Path, runs: Mapping[int, RunRecord]) -> dict[str, int]:
    """Case -> the fold that validated it.

    Raises:
        SamunetError: several folds did.
    """
    owners: dict[str, list[int]] = {}
    for fold, run in runs.items():
        for name in set(run.val) - set(run.train):
            owners.setdefault(name, []).append(fold)
    twice = {name: folds for name, folds in sorted(owners.items()) if len(folds) > 1}
    if twice:
        by_folds = [f"{name} by folds {', '.join(map(str, folds))}" for name, folds in twice.items()]
        told = listed(by_folds, between="; ")
        raise SamunetError(
            f"{len(twice)} cases were validated by several folds of {model_folder} ({told}). Out-of-fold "
            "results need every case once: train all folds on one split (--splits kfold, group_kfold "
            "or patient_kfold)."
        )
    return {name: folds[0] for name, folds in owners.items()}


def _check_complete(
    workspace: Workspace,
    model_folder: Path,
    dataset: RawDataset,
    runs: Mapping[int, RunRecord],
    fold_of_case: Mapping[str, int],
    ending: str,
) -> tuple[str, ...]:
    """Every case that a fold of the split validates must be there; returns those that none does.

    Raises:
        SamunetError: lists what is missing fold by fold, with the command that makes it.
    """
    lacking: dict[int, list[str]] = {}
    for name, fold in sorted(fold_of_case.items()):
        there = (validation_folder(model_folder, fold) / f"{name}{ending}").is_file()
        if not (there and is_validated(model_folder, fold)):
            lacking.setdefault(fold, []).append(name)
    first = next(iter(runs.values()))
    faults = [
        f"fold {fold} lacks {counted_cases(names)}: "
        f"{_command(model_folder, dataset.name, fold, runs[fold], '--val')}"
        for fold, names in sorted(lacking.items())
    ]
    elsewhere = _splits_of(workspace, dataset.name, runs)
    absent = [name for name in dataset.case_names if name not in fold_of_case]
    untrained: dict[int, list[str]] = {}
    for name in absent:
        if name in elsewhere:
            untrained.setdefault(elsewhere[name], []).append(name)
    for fold, names in sorted(untrained.items()):
        folder = fold_folder(model_folder, fold)
        flags = ["--c"] * bool(checkpoints_in(folder))
        command = _command(model_folder, dataset.name, fold, read_run(folder) or first, *flags)
        faults.append(f"fold {fold} is not trained, {counted_cases(names)}: {command}")
    if faults:
        count = sum(map(len, (*lacking.values(), *untrained.values())))
        raise SamunetError(
            "\n".join(
                [
                    f"{model_folder} has no out-of-fold prediction of {count} of {len(dataset.cases)} cases:",
                    *(f"  {fault}" for fault in faults),
                ]
            )
        )
    left_out = tuple(name for name in absent if name not in elsewhere)
    if left_out:
        told = counted_cases(left_out)
        logger.warning("No fold of the split validates %s; the results are without them.", told)
    return left_out


def _splits_of(workspace: Workspace, dataset: str, runs: Mapping[int, RunRecord]) -> dict[str, int]:
    """Case -> fold in the split that the runs were trained on, as far as its file is there."""
    for file in sorted(workspace.preprocessed_folder(dataset).glob("splits_*.json")):
        splits = read_splits(file)
        if all(fold < len(splits) and set(splits[fold].val) == set(run.val) for fold, run in runs.items()):
            return {name: fold for fold, split in enumerate(splits) for name in split.val}
    return {}


def _command(model_folder: Path, dataset: str, fold: int, like: RunRecord, *flags: str) -> str:
    configuration, plans, *tag = model_folder.name.split("__")
    trained = TrainedAs(
        dataset=dataset, configuration=configuration, plans=plans, tag=tag[0] if tag else None
    )
    return trained.command([fold], *flags, like=like)


def _check_alike(model_folder: Path, dataset: str, runs: Mapping[int, RunRecord]) -> PredictedAs:
    """How the validation cases of all folds were predicted.

    Raises:
        SamunetError: folds of different configurations, or validated in different ways; names them.
    """
    kinds = {fold: f"{run.configuration_hash} on data {run.data_hash}" for fold, run in runs.items()}
    if len(set(kinds.values())) > 1:
        told = "; ".join(f"fold {fold}: {kind}" for fold, kind in kinds.items())
        raise SamunetError(
            f"The folds of {model_folder} were trained from different configurations ({told}). Train them "
            "again with the same settings, or keep them apart with --tag."
        )
    again = {fold: _command(model_folder, dataset, fold, run, "--val") for fold, run in runs.items()}
    ways = {
        fold: predicted_as(validation_folder(model_folder, fold), command) for fold, command in again.items()
    }
    if len(set(ways.values())) > 1:
        commands = "\n".join(f"  {again[fold]}" for fold in not_by_itself(ways))
        raise SamunetError(
            f"The validation cases of {model_folder} were predicted in different ways ({told_apart(ways)}). "
            f"To have all as samunet_train does it by itself:\n{commands}"
        )
    return next(iter(ways.values()))


def _check_place(folder: Path) -> None:
    """Refuse a folder that holds something else."""
    if folder.exists() and any(folder.iterdir()) and not (folder / RECORD_FILE).is_file():
        raise SamunetError(f"{folder} holds other files; name another folder with -o.")


def _as_in(folder: Path, evaluation: Evaluation) -> Evaluation:
    """The scores of files that are going to lie in a folder."""
    cases = [replace(c, prediction_file=str(folder / Path(c.prediction_file).name)) for c in evaluation.cases]
    return replace(evaluation, cases=tuple(cases))


def _gather(
    sources: Mapping[str, Path],
    folder: Path,
    record: CrossvalRecord,
    model_folder: Path,
    evaluation: Evaluation,
) -> None:
    """Copy the predictions into a new folder with their scores, which then takes the place of `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(folder.parent)
    with partial_folder(folder.parent) as partial:
        for file in sources.values():
            for part in files_of(file):
                shutil.copyfile(part, partial / part.name)
            for kept in probability_files(file) if record.probabilities else ():
                _link(kept, partial / kept.name)
        for name in (PLAN_FILE, DATASET_FILE):
            if (model_folder / name).is_file():
                shutil.copyfile(model_folder / name, partial / name)
        evaluation.save(partial / SUMMARY_FILE)
        evaluation.save_csv(partial / TABLE_FILE)
        write_json(partial / RECORD_FILE, record)
        replace_folder(partial, folder)


def _link(source: Path, target: Path) -> None:
    """A hard link, for probabilities are large; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
