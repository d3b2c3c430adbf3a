"""Ensembles of out-of-fold predictions: means of the probabilities that each member's own fold gave."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np

from samunet.data.labels import LabelSet
from samunet.data.readers import read_header
from samunet.data.workers import map_in_workers, worker_count
from samunet.errors import SamunetError
from samunet.evaluation.case_scores import PairScores, score_pair
from samunet.evaluation.folder import BYTES_PER_VOXEL, case_scores
from samunet.evaluation.scores import CaseScores, Evaluation
from samunet.evaluation.summary_file import read_summary
from samunet.inference.ensemble import average_probabilities
from samunet.inference.probabilities import probability_files
from samunet.listing import counted_cases
from samunet.pipeline.selection.out_of_fold import Collected, OutOfFold
from samunet.pipeline.selection.references import differing_cases, rescoring
from samunet.progress import Progress
from samunet.records import content_hash, read_json, write_json
from samunet.whole_files import remove_partials
from samunet.workspace import SUMMARY_FILE, Workspace

logger = logging.getLogger(__name__)

RECORD = "ensemble.json"


@dataclass(frozen=True, kw_only=True)
class EnsembleRecord:
    """Content of ensemble.json: of whom the predictions beside it are, and the hash of their scores."""

    version: Literal[1] = 1
    members: tuple[str, ...]
    made_from: str


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One case of one ensemble: average, write, score."""

    case: str
    members: tuple[Path, ...]
    target: Path
    reference: Path


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """An ensemble to be made, or made before."""

    members: tuple[OutOfFold, ...]
    folder: Path
    made_from: str
    is_there: bool


def make_ensembles(
    workspace: Workspace, collected: Collected, *, workers: int | None = 1, progress: Progress | None = None
) -> tuple[tuple[OutOfFold, ...], tuple[str, ...]]:
    """All pairs and the ensemble of all models, predicted and scored; what was made before is read.

    Returns:
        The ensembles, and in words which models cannot take part because their probabilities were not kept.

    Raises:
        SamunetError: probabilities are damaged or of other classes, or labels have changed since the models
            were scored.
    """
    able, left_out = _with_probabilities(collected)
    groups = [*combinations(able, 2), *([tuple(able)] if len(able) > 2 else [])]
    planned = [_plan(workspace, collected, group) for group in groups]
    tasks = [task for one in planned if not one.is_there for task in _tasks(one, collected)]
    if tasks:
        missing = sum(not one.is_there for one in planned)
        logger.info("%d ensemble(s) of out-of-fold predictions are made: %d cases.", missing, len(tasks))
        largest = max({task.reference for task in tasks}, key=lambda path: path.stat().st_size)
        voxels = int(np.prod(read_header(largest, is_label=True).geometry.shape))
        scored = map_in_workers(
            partial(_average_and_score, labels=collected.raw.labels, tolerance_mm=collected.tolerance_mm),
            tasks,
            worker_count(workers, BYTES_PER_VOXEL * voxels, len(tasks)),
            name=lambda task: task.target.name,
            progress=progress,
        )
        results = {
            task.target: case_scores(
                task.case, (task.reference, task.target), found, origins=collected.raw.origins
            )
            for task, found in zip(tasks, scored)
        }
        _check_references(collected, able, results)
        for one in planned:
            if not one.is_there:
                _finish(one, collected, results)
    return tuple(_candidate(one, collected) for one in planned), left_out


def _with_probabilities(collected: Collected) -> tuple[list[OutOfFold], tuple[str, ...]]:
    able, left_out = [], []
    for model in collected.models:
        absent = [
            case for case, file in model.predictions.items() if not probability_files(file)[0].is_file()
        ]
        if not absent:
            able.append(model)
            continue
        command = collected.folders[model.name].validation_again(collected.folds, probabilities=True)
        left_out.append(
            f"{model.name} takes part in no ensemble: the probabilities of {len(absent)} of "
            f"{len(collected.cases)} cases were not kept. {command}"
        )
    return able, tuple(left_out) if len(collected.models) > 1 else ()


def _plan(workspace: Workspace, collected: Collected, members: Sequence[OutOfFold]) -> _Planned:
    plans = members[0].members[0].plans
    names = [model.name for model in members]
    folder = workspace.fold_ensemble_folder(collected.raw.name, plans, names)
    labels = collected.raw.labels
    sources = [model.sources for model in members]
    made_from = content_hash([sources, collected.cases, labels, *labels.regions_in_order])
    record = EnsembleRecord(members=tuple(names), made_from=made_from)
    is_ours = (folder / RECORD).is_file() and read_json(folder / RECORD).get("made_from") == made_from
    if not is_ours:
        if folder.exists():
            shutil.rmtree(folder)
        write_json(folder / RECORD, record)
    remove_partials(folder)
    return _Planned(
        members=tuple(members),
        folder=folder,
        made_from=made_from,
        is_there=is_ours and _is_scored(folder, collected),
    )


def _is_scored(folder: Path, collected: Collected) -> bool:
    """Whether there are scores of the predictions, on the labels that the models were scored on."""
    if not (folder / SUMMARY_FILE).is_file():
        return False
    found = read_summary(folder / SUMMARY_FILE, collected.raw.labels).references
    return not differing_cases(found, collected.models[0].references, collected.cases)


def _check_references(
    collected: Collected, models: Sequence[OutOfFold], results: Mapping[Path, CaseScores]
) -> None:
    """See that ensembles, which are scored now, are scored on the same labels as their members.

    Raises:
        SamunetError: labels have changed since; names the command for each model.
    """
    fresh = {entry.name: entry.reference for entry in results.values()}
    changed = differing_cases(fresh, collected.models[0].references, collected.cases)
    if not changed:
        return
    folds = sorted({collected.fold_of_case[case] for case in changed})
    told = [
        f"{model.name}: {rescoring(collected.folders[model.name], folds, probabilities=model in models)}."
        for model in collected.models
    ]
    start = f"The labels of {counted_cases(changed)} have changed since the models were scored:"
    raise SamunetError("\n".join([start, *told]))


def _tasks(planned: _Planned, collected: Collected) -> list[_Task]:
    return [
        _Task(
            case=case,
            members=tuple(model.predictions[case] for model in planned.members),
            target=_target(planned, collected, case),
            reference=collected.reference(case),
        )
        for case in collected.cases
    ]


def _target(planned: _Planned, collected: Collected, case: str) -> Path:
    return planned.folder / f"{case}{collected.raw.label_ending}"


def _average_and_score(task: _Task, labels: LabelSet, tolerance_mm: float) -> PairScores:
    """Average and score one case; what an interrupted run has written is kept."""
    if not task.target.is_file():
        average_probabilities(task.members, labels, task.target)
    return score_pair((task.reference, task.target), labels, tolerance_mm)


def _finish(planned: _Planned, collected: Collected, results: Mapping[Path, CaseScores]) -> None:
    """Write the scores; summary.json says that the ensemble is complete."""
    cases = tuple(results[_target(planned, collected, case)] for case in collected.cases)
    Evaluation(collected.raw.labels, collected.tolerance_mm, cases).save(planned.folder / SUMMARY_FILE)


def _candidate(planned: _Planned, collected: Collected) -> OutOfFold:
    summary = read_summary(planned.folder / SUMMARY_FILE, collected.raw.labels)
    return OutOfFold(
        name="+".join(model.name for model in planned.members),
        kind="ensemble",
        members=tuple(member for model in planned.members for member in model.members),
        predictions={case: _target(planned, collected, case) for case in collected.cases},
        scores=summary.cases,
        references=summary.references,
        sources={name: digest for model in planned.members for name, digest in model.sources.items()},
    )
