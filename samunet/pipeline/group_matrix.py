"""Source group -> target group: scores of trainings on one group, collected for several methods."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from samunet.data.dataset import RawDataset
from samunet.data.splits import SINGLE_SOURCE
from samunet.errors import SamunetError
from samunet.evaluation.scores import OTHER_METRICS
from samunet.pipeline.models import configuration_name
from samunet.pipeline.run_commands import command_like
from samunet.records import read_json
from samunet.trainers.checkpoint import FINAL, LATEST
from samunet.trainers.identity import RunRecord, read_run
from samunet.workspace import (
    DEFAULT_PLANS,
    SUMMARY_FILE,
    Workspace,
    fold_folders,
    split_tag,
    training_command,
    validation_folder,
)

logger = logging.getLogger(__name__)

METRICS = ("Dice", "IoU", *OTHER_METRICS)


@dataclass(frozen=True, kw_only=True)
class MatrixRequest:
    """Which trainings are collected.

    Attributes:
        dataset: full name.
        configurations: methods; none takes every one that was trained on a single group.
        plans: name of the plan.
        tags: of the trainings; none takes the tags that `--splits single_source...` gives by itself.
    """

    dataset: str
    configurations: tuple[str, ...] = ()
    plans: str = DEFAULT_PLANS
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Scores of one method trained on one group and tested on another.

    Attributes:
        cases: of the target group.
        runs: metric -> value of each run (mean over the classes of their means over the cases).
        folders: of the runs.
    """

    cases: int
    runs: dict[str, tuple[float, ...]]
    folders: tuple[str, ...]

    def mean(self, metric: str) -> float:
        """Mean over the runs where the metric is defined; NaN where it never is."""
        return _mean(self.runs[metric])


@dataclass(frozen=True, kw_only=True)
class GroupMatrix:
    """Cells by method, source and target.

    Attributes:
        sources / groups: groups that can be trained on (two cases or more), and all groups.
        cells: method -> (source, target) -> cell.
        missing: what has to be run for the empty places: (method, source, command).
    """

    dataset: str
    plans: str
    sources: tuple[str, ...]
    groups: tuple[str, ...]
    cells: dict[str, dict[tuple[str, str], Cell]]
    missing: tuple[tuple[str, str, str], ...] = field(default=())

    def value(self, method: str, source: str, target: str, metric: str) -> float:
        """NaN where nothing is known."""
        cell = self.cells[method].get((source, target))
        return math.nan if cell is None else cell.mean(metric)

    def to_others(self, method: str, source: str, metric: str) -> float:
        """Mean over the other groups, each counted alike; NaN while one of them is missing."""
        values = [self.value(method, source, target, metric) for target in self.groups if target != source]
        return fmean(values) if values and not any(map(math.isnan, values)) else math.nan

    def overall(self, method: str, metric: str) -> float:
        """Mean over the sources of `to_others`; NaN while one of them is missing."""
        values = [self.to_others(method, source, metric) for source in self.sources]
        return fmean(values) if values and not any(map(math.isnan, values)) else math.nan


def collect_matrix(workspace: Workspace, request: MatrixRequest) -> GroupMatrix:
    """Read the validation scores of trainings on a single group.

    Raises:
        SamunetError: no groups, no such training, or trainings with different settings in one place.
    """
    groups = RawDataset.load(workspace.raw_folder(request.dataset), strict=False).groups
    members: dict[str, list[str]] = {}
    for case, group in sorted(groups.items()):
        members.setdefault(group, []).append(case)
    if len(members) < 2:
        raise SamunetError(
            f"{request.dataset} has {len(members)} group(s); the matrix needs two or more. Declare them in "
            "groups.csv (columns case,group) or under `groups` in dataset.json."
        )
    sources = tuple(sorted(group for group, cases in members.items() if len(cases) > 1))
    # A group of one case is no source, and keeps `single_source` from splitting at all.
    order = sources if len(sources) == len(members) else ()
    names = [configuration_name(name, None, "") for name in request.configurations]
    methods = tuple(dict.fromkeys(names)) or _trained_methods(workspace, request)
    if not methods:
        example = _command(request, "2d_unet", sources[0], order) if sources else "-"
        raise SamunetError(f"Nothing of {request.dataset} was trained on a single group. Train: {example}")
    cells, missing = {}, []
    for method in methods:
        runs = [run for run in _runs(workspace, request, method, groups) if run.source in sources]
        cells[method] = _cells(method, runs, sorted(members))
        for source in sources:
            if not any((source, target) in cells[method] for target in members):
                missing.append((method, source, _mending(request, method, source, runs, order)))
    matrix = GroupMatrix(
        dataset=request.dataset,
        plans=request.plans,
        sources=sources,
        groups=tuple(sorted(members)),
        cells=cells,
        missing=tuple(missing),
    )
    if not any(cells.values()):
        commands = "\n".join(f"  {command}" for _, _, command in missing)
        raise SamunetError(
            f"No training on a single group of {request.dataset} is scored yet. Run:\n{commands}"
        )
    return matrix


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A fold that was trained on one group."""

    folder: Path
    fold: int | str
    tag: str
    source: str
    record: RunRecord

    @property
    def summary(self) -> Path:
        return validation_folder(self.folder.parent, self.fold) / SUMMARY_FILE

    @property
    def splits(self) -> str:
        """Scheme that it was trained on; where that was not written down, as fold and tag tell it."""
        is_one_of_all = self.fold != 0 or self.tag == SINGLE_SOURCE
        guess = SINGLE_SOURCE if is_one_of_all else f"{SINGLE_SOURCE}:{self.source}"
        return str(self.record.overrides.get("splits") or guess)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a training goes."""

    fold: int | str
    splits: str
    tag: str | None


def _trained_methods(workspace: Workspace, request: MatrixRequest) -> tuple[str, ...]:
    folders = (workspace.results / request.dataset).glob(f"*__{request.plans}__*")
    found = {
        folder.name.split("__")[0] for folder in folders if _wanted(request, folder.name.split("__")[-1])
    }
    return tuple(sorted(found))


def _wanted(request: MatrixRequest, tag: str) -> bool:
    return tag in request.tags if request.tags else tag.startswith(SINGLE_SOURCE)


def _runs(workspace: Workspace, request: MatrixRequest, method: str, groups: Mapping[str, str]) -> list[_Run]:
    """Folds of the method whose training cases are all of one group."""
    start, runs = f"{method}__{request.plans}__", []
    models = sorted((workspace.results / request.dataset).glob(f"{start}*"))
    wanted = [model for model in models if _wanted(request, model.name.removeprefix(start))]
    for fold, folder in [item for model in wanted for item in fold_folders(model).items()]:
        record = read_run(folder)
        if record is None:
            continue
        tag = folder.parent.name.removeprefix(start)
        trained_on = {groups.get(case, "") for case in record.train}
        if len(trained_on) == 1:
            source = trained_on.pop()
            runs.append(_Run(folder=folder, fold=fold, tag=tag, source=source, record=record))
        else:
            logger.info("%s was trained on %d groups and is left out.", folder, len(trained_on))
    return runs


def _cells(method: str, runs: Sequence[_Run], groups: Sequence[str]) -> dict[tuple[str, str], Cell]:
    """Mean over runs of the same settings (seeds); runs that are not scored yet are left out."""
    cells: dict[tuple[str, str], Cell] = {}
    scored = [run for run in runs if (run.folder / FINAL).exists() and run.summary.exists()]
    kinds = {run.record.configuration_hash: run.tag for run in scored}
    if len(kinds) > 1:
        raise SamunetError(
            f"Trainings of {method} with different settings would be mixed; their tags are "
            f"{', '.join(sorted({run.tag for run in scored}))}. Say which belong together with --tag."
        )
    for source in dict.fromkeys(run.source for run in scored):
        mine = [run for run in scored if run.source == source]
        summaries = [read_json(run.summary)["by_group"] for run in mine]
        for target in groups:
            found = [summary[target] for summary in summaries if target in summary]
            if not found or target == source:
                continue
            cells[source, target] = Cell(
                cases=found[0]["cases"],
                runs={m: tuple(float(entry["foreground_mean"][m]) for entry in found) for m in METRICS},
                folders=tuple(str(run.folder) for run in mine),
            )
    return cells


def _mending(
    request: MatrixRequest, method: str, source: str, runs: Sequence[_Run], order: Sequence[str]
) -> str:
    """The command that makes a source's row: what its own run lacks, or a training like the other sources'.

    Args:
        order: sources by the fold that `single_source` gives them; empty where it cannot split.
    """
    mine = next((run for run in runs if run.source == source), None)
    if mine is not None:
        is_trained, is_begun = ((mine.folder / name).exists() for name in (FINAL, LATEST))
        flags = ["--val"] if is_trained else ["--c"] * is_begun
        like, place = mine.record, _Place(fold=mine.fold, splits=mine.splits, tag=mine.tag)
    elif runs:
        flags, like, place = [], runs[0].record, _place_beside(runs, source, order)
    else:
        return _command(request, method, source, order)
    return command_like(
        like,
        request.dataset,
        method,
        [place.fold],
        plans=request.plans,
        tag=place.tag,
        splits=place.splits,
        flags=flags,
    )


def _command(request: MatrixRequest, method: str, source: str, order: Sequence[str]) -> str:
    """A first training on one group; with a tag of one's own every source is a fold of it."""
    place = _place_alone(source, request.tags[0] if request.tags else None)
    if request.tags and order:
        place = _Place(fold=order.index(source), splits=SINGLE_SOURCE, tag=request.tags[0])
    return training_command(
        request.dataset, method, [place.fold], plans=request.plans, tag=place.tag, splits=place.splits
    )


def _place_beside(runs: Sequence[_Run], source: str, order: Sequence[str]) -> _Place:
    """Where a source is trained so that it meets the others' runs and takes no place of theirs."""
    like = runs[0]
    tag = None if like.tag == split_tag(like.splits) else like.tag
    if tag is None and like.splits != SINGLE_SOURCE:
        return _place_alone(source, None)
    if order and all((run.tag, run.fold) != (like.tag, order.index(source)) for run in runs):
        return _Place(fold=order.index(source), splits=SINGLE_SOURCE, tag=tag)
    return _place_alone(source, like.tag)


def _place_alone(source: str, tag: str | None) -> _Place:
    """The split with this source alone is fold 0, so each source needs a tag of its own."""
    splits = f"{SINGLE_SOURCE}:{source}"
    ending = str(split_tag(splits)).removeprefix(SINGLE_SOURCE)
    return _Place(fold=0, splits=splits, tag=None if tag is None else f"{tag}{ending}")


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return fmean(defined) if defined else math.nan
