"""Source group -> target group: scores of trainings on one group, collected for several methods.

The cases of a validation are put into the groups that are declared now, whichever they were when scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean

import numpy as np

from samunet.data.dataset import RawDataset
from samunet.data.groups import unit_numbers
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.evaluation.bootstrap import Interval, mean_defined, mean_interval, score_array
from samunet.evaluation.scores import OTHER_METRICS, CaseScores, Evaluation, mean_of
from samunet.evaluation.summary_file import origins_of, read_summary
from samunet.pipeline.group_matrix.missing import Mending, Missing, first_command
from samunet.pipeline.group_matrix.runs import MatrixRequest, SourceRun, runs_of, trained_methods, unlike
from samunet.pipeline.models import configuration_name
from samunet.workspace import Workspace

METRICS = ("Dice", "IoU", *OTHER_METRICS)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Scores of one method trained on one group and tested on another.

    Attributes:
        cases: of the target group.
        runs: metric -> value of each run that was scored on all of them (mean over the classes of their
            means over the cases).
        folders: of these runs.
        dice: (cases, classes) of each case, mean over the runs; NaN where it is not defined.
        present: bool (cases, classes), which references hold which classes.
        units: (cases,) number of the patient of each case; the case's own where none are declared.
    """

    cases: int
    runs: dict[str, tuple[float, ...]]
    folders: tuple[str, ...]
    dice: np.ndarray
    present: np.ndarray
    units: np.ndarray

    def mean(self, metric: str) -> float:
        """Mean over the runs where the metric is defined; NaN where it never is."""
        return mean_of(self.runs[metric])

    @cached_property
    def dice_interval(self) -> Interval:
        """95 % interval of the mean Dice, patients of the group drawn anew; no bounds where it has one."""
        return mean_interval(self.dice, self.units)

    @property
    def num_units(self) -> int:
        """Patients (cases)."""
        return int(self.units.max()) + 1


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
    methods = tuple(dict.fromkeys(names)) or trained_methods(workspace, request)
    if not methods:
        example = first_command(request, "2d_unet", sources[0], order) if sources else "-"
        raise SamunetError(f"Nothing of {request.dataset} was trained on a single group. Train: {example}")
    cells: dict[str, dict[tuple[str, str], Cell]] = {}
    missing: list[Missing] = []
    for method in methods:
        runs = [run for run in runs_of(workspace, request, method, raw.groups) if run.source in sources]
        cells[method] = _cells(method, runs, members, raw)
        for source in sources:
            lacking = [t for t in sorted(members) if t != source and (source, t) not in cells[method]]
            if lacking:
                mending = Mending(workspace=workspace, request=request, method=method, order=order)
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


def _cells(
    method: str, runs: Sequence[SourceRun], members: Mapping[str, Sequence[str]], raw: RawDataset
) -> dict[tuple[str, str], Cell]:
    """Mean over runs of the same settings (seeds); runs that are not scored yet are left out.

    A run counts for a target whose cases of today it was all scored on: means over other cases would not
    compare.
    """
    cells: dict[tuple[str, str], Cell] = {}
    scored = [run for run in runs if run.is_trained and run.summary.exists()]
    differing = unlike([run.record for run in scored])
    if differing:
        raise SamunetError(
            f"Trainings of {method} with different {differing} would be mixed; their tags are "
            f"{', '.join(sorted({run.tag for run in scored}))}. Say which belong together with --tag."
        )
    evaluations = [(run, _grouped_now(run, raw)) for run in scored]
    for source in dict.fromkeys(run.source for run in scored):
        for target, cases in members.items():
            found = [
                (run, evaluation)
                for run, evaluation in evaluations
                if run.source == source and len(_of_group(evaluation, target)) == len(cases)
            ]
            if found and target != source:
                cells[source, target] = _cell(found, target, raw.labels)
    return cells


def _cell(found: Sequence[tuple[SourceRun, Evaluation]], target: str, labels: LabelSet) -> Cell:
    means = [evaluation.by_group()[target]["foreground_mean"] for _, evaluation in found]
    cases = [_of_group(evaluation, target) for _, evaluation in found]
    metrics = [[case.metrics for case in entries] for entries in cases]
    dice = mean_defined([score_array(entries, labels.foreground, "Dice") for entries in metrics])
    return Cell(
        cases=len(dice),
        runs={m: tuple(float(mean[m]) for mean in means) for m in METRICS},
        folders=tuple(str(run.folder) for run, _ in found),
        dice=dice,
        present=score_array(metrics[0], labels.foreground, "n_ref") > 0,
        units=unit_numbers([case.name for case in cases[0]], origins_of(cases[0]).without_groups),
    )


def _of_group(evaluation: Evaluation, group: str) -> list[CaseScores]:
    return sorted((case for case in evaluation.cases if case.group == group), key=lambda case: case.name)


def _grouped_now(run: SourceRun, raw: RawDataset) -> Evaluation:
    """The scores of a run's validation, each case of the group and patient that are declared today."""
    summary, origins = read_summary(run.summary, raw.labels), raw.origins
    entries = tuple(
        replace(entry, group=origins.groups.get(entry.name), patient=origins.patients.get(entry.name))
        for entry in summary.entries
    )
    return Evaluation(labels=raw.labels, tolerance_mm=summary.tolerance_mm, cases=entries)
