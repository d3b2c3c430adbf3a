"""Source group -> target group: scores of trainings on one group, collected for several methods.

The cases of a validation are put into the groups that are declared now, whichever they were when scored.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from samunet.data.dataset import RawDataset
from samunet.data.labels import LabelSet
from samunet.data.splits import SINGLE_SOURCE, read_splits
from samunet.errors import SamunetError
from samunet.evaluation.scores import OTHER_METRICS, Evaluation, mean_of
from samunet.evaluation.summary_file import read_summary
from samunet.pipeline.models import configuration_name
from samunet.pipeline.run_commands import TrainedAs
from samunet.trainers.checkpoint import FINAL, LATEST
from samunet.trainers.identity import RunRecord, read_run
from samunet.workspace import (
    DEFAULT_PLANS,
    SUMMARY_FILE,
    Workspace,
    fold_folders,
    split_tag,
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
        runs: metric -> value of each run that was scored on all of them (mean over the classes of their
            means over the cases).
        folders: of these runs.
    """

    cases: int
    runs: dict[str, tuple[float, ...]]
    folders: tuple[str, ...]

    def mean(self, metric: str) -> float:
        """Mean over the runs where the metric is defined; NaN where it never is."""
        return mean_of(self.runs[metric])


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Empty places of one method and source.

    Attributes:
        targets: groups that nothing trained on the source was scored on as a whole.
        command: that fills them.
        first: what the user has to do before; empty where nothing.
    """

    method: str
    source: str
    targets: tuple[str, ...]
    command: str
    first: str = ""

    def lines(self) -> list[str]:
        """For the screen; the command stands alone in its line."""
        before = f" {self.first}, then" if self.first else ""
        return [f"{self.method}, {self.source} -> {', '.join(self.targets)}:{before}", f"  {self.command}"]


@dataclass(frozen=True, kw_only=True)
class GroupMatrix:
    """Cells by method, source and target.

    Attributes:
        sources / groups: groups that can be trained on (two cases or more), and all groups.
        cells: method -> (source, target) -> cell.
        missing: the empty places, each pair of a source and another group, with what fills them.
    """

    dataset: str
    plans: str
    sources: tuple[str, ...]
    groups: tuple[str, ...]
    cells: dict[str, dict[tuple[str, str], Cell]]
    missing: tuple[Missing, ...] = field(default=())

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
    raw = RawDataset.load(workspace.raw_folder(request.dataset), strict=False)
    members: dict[str, list[str]] = {}
    for case, group in sorted(raw.groups.items()):
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
    cells: dict[str, dict[tuple[str, str], Cell]] = {}
    missing: list[Missing] = []
    for method in methods:
        runs = [run for run in _runs(workspace, request, method, raw.groups) if run.source in sources]
        cells[method] = _cells(method, runs, members, raw.labels)
        for source in sources:
            lacking = [t for t in sorted(members) if t != source and (source, t) not in cells[method]]
            if lacking:
                mending = _Mending(workspace=workspace, request=request, method=method, order=order)
                missing.append(mending.of(source, lacking, runs, members))
    matrix = GroupMatrix(
        dataset=request.dataset,
        plans=request.plans,
        sources=sources,
        groups=tuple(sorted(members)),
        cells=cells,
        missing=tuple(missing),
    )
    if not any(cells.values()):
        told = "\n".join(f"  {line}" for entry in missing for line in entry.lines())
        raise SamunetError(f"No training on a single group of {request.dataset} is scored yet. Run:\n{told}")
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
    def is_trained(self) -> bool:
        return (self.folder / FINAL).exists()

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


def _cells(
    method: str, runs: Sequence[_Run], members: Mapping[str, Sequence[str]], labels: LabelSet
) -> dict[tuple[str, str], Cell]:
    """Mean over runs of the same settings (seeds); runs that are not scored yet are left out.

    A run counts for a target whose cases of today it was all scored on: means over other cases would not
    compare.
    """
    cells: dict[tuple[str, str], Cell] = {}
    scored = [run for run in runs if run.is_trained and run.summary.exists()]
    kinds = {run.record.configuration_hash: run.tag for run in scored}
    if len(kinds) > 1:
        raise SamunetError(
            f"Trainings of {method} with different settings would be mixed; their tags are "
            f"{', '.join(sorted({run.tag for run in scored}))}. Say which belong together with --tag."
        )
    grouped = [(run, _grouped_now(run, members, labels).by_group()) for run in scored]
    for source in dict.fromkeys(run.source for run in scored):
        for target, cases in members.items():
            found = [
                (run, groups[target])
                for run, groups in grouped
                if run.source == source and target in groups and groups[target]["cases"] == len(cases)
            ]
            if not found or target == source:
                continue
            cells[source, target] = Cell(
                cases=len(cases),
                runs={m: tuple(float(entry["foreground_mean"][m]) for _, entry in found) for m in METRICS},
                folders=tuple(str(run.folder) for run, _ in found),
            )
    return cells


def _grouped_now(run: _Run, members: Mapping[str, Sequence[str]], labels: LabelSet) -> Evaluation:
    """The scores of a run's validation, each case in the group that it is declared to be of today."""
    groups = {case: group for group, cases in members.items() for case in cases}
    summary = read_summary(run.summary, labels)
    entries = tuple(replace(entry, group=groups.get(entry.name)) for entry in summary.entries)
    return Evaluation(labels=labels, tolerance_mm=summary.tolerance_mm, cases=entries)


@dataclass(frozen=True, kw_only=True)
class _Mending:
    """Finds the command for what a source lacks.

    Attributes:
        order: sources by the fold that `single_source` gives them; empty where it cannot split.
    """

    workspace: Workspace
    request: MatrixRequest
    method: str
    order: Sequence[str]

    def of(
        self,
        source: str,
        targets: Sequence[str],
        runs: Sequence[_Run],
        members: Mapping[str, Sequence[str]],
    ) -> Missing:
        """What the source's own run lacks, or a training like the other sources'."""
        mine = next((run for run in runs if run.source == source), None)
        flags: list[str] = []
        first = ""
        if mine is not None:
            wanted = {case for target in targets for case in members[target]}
            flags, first = self._what_it_lacks(mine, wanted)
            like, place = mine.record, _Place(fold=mine.fold, splits=mine.splits, tag=mine.tag)
        elif runs:
            like, place = runs[0].record, _place_beside(runs, source, self.order)
        else:
            command = _command(self.request, self.method, source, self.order)
            return Missing(method=self.method, source=source, targets=tuple(targets), command=command)
        command = _trained_as(self.request, self.method, place).command([place.fold], *flags, like=like)
        return Missing(
            method=self.method, source=source, targets=tuple(targets), command=command, first=first
        )

    def _what_it_lacks(self, run: _Run, wanted: set[str]) -> tuple[list[str], str]:
        """Flags, and what to do before: a split that does not know the cases is no use to any flag."""
        if wanted <= set(run.record.val):
            if run.is_trained:
                return ["--val"], ""
            return ["--c"] * (run.folder / LATEST).exists(), ""
        file = self.workspace.splits_file(self.request.dataset, run.splits)
        known = {case for split in read_splits(file) for case in split.val} if file.is_file() else wanted
        return ["--overwrite"], "" if wanted <= known else f"delete {file}, which lacks cases of today"


def _command(request: MatrixRequest, method: str, source: str, order: Sequence[str]) -> str:
    """A first training on one group; with a tag of one's own every source is a fold of it."""
    place = _place_alone(source, request.tags[0] if request.tags else None)
    if request.tags and order:
        place = _Place(fold=order.index(source), splits=SINGLE_SOURCE, tag=request.tags[0])
    return _trained_as(request, method, place).command([place.fold])


def _trained_as(request: MatrixRequest, method: str, place: _Place) -> TrainedAs:
    return TrainedAs(
        dataset=request.dataset,
        configuration=method,
        plans=request.plans,
        tag=place.tag,
        splits=place.splits,
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
