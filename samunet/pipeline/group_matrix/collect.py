"""Source group -> target group: scores of trainings on one group, collected for several methods.

The cases of a validation are put into the groups that are declared now, whichever they were when scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

import numpy as np

from samunet.data.dataset import RawDataset
from samunet.data.groups import UnitName, unit_numbers, units_in_order
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.evaluation.bootstrap import Interval, score_array
from samunet.evaluation.scores import OTHER_METRICS, mean_of
from samunet.evaluation.stratified import mean_over_runs
from samunet.evaluation.summary_file import origins_of
from samunet.listing import listed
from samunet.pipeline.group_matrix.missing import Mending, Missing, first_command
from samunet.pipeline.group_matrix.patients import Place, Targets, targets_of
from samunet.pipeline.group_matrix.runs import MatrixRequest, runs_of, trained_methods
from samunet.pipeline.group_matrix.scored import ScoredRun, check_references, scored_runs
from samunet.pipeline.models import configuration_name
from samunet.pipeline.predicted_as import PredictedAs
from samunet.workspace import Workspace

METRICS = ("Dice", "IoU", *OTHER_METRICS)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Scores of one method trained on one group and tested on another.

    Attributes:
        cases: of the target group, but for those whose patients have cases in the source too.
        runs: metric -> value of each run that was scored on all of them (mean over the classes of their
            means over the cases).
        folders: of these runs.
        dice: (runs, cases, classes), NaN where it is not defined.
        present: bool (cases, classes), which references hold which classes.
        missed: of each run, objects (a class of a case) that are not found at all, and have no distance.
        units: (cases,) number of the patient of each case; the case's own where none are declared.
        unit_names: of these patients, by their numbers.
    """

    cases: int
    runs: dict[str, tuple[float, ...]]
    folders: tuple[str, ...]
    dice: np.ndarray
    present: np.ndarray
    missed: tuple[int, ...]
    units: np.ndarray
    unit_names: tuple[UnitName, ...]

    def mean(self, metric: str) -> float:
        """Mean over the runs where the metric is defined; NaN where it never is."""
        return mean_of(self.runs[metric])

    @cached_property
    def dice_interval(self) -> Interval:
        """95 % interval of the mean Dice, patients of the group drawn anew; no bounds where it has one."""
        return mean_over_runs(self.dice, self.units)

    @property
    def missed_share(self) -> float:
        """Of the objects in the references, mean over the runs; 0 where there are none."""
        return fmean(self.missed) / max(1, int(self.present.sum()))

    @property
    def num_holders(self) -> int:
        """Patients (cases) whose references hold any class."""
        return len(set(self.units[self.present.any(axis=1)].tolist()))


@dataclass(frozen=True, kw_only=True)
class GroupMatrix:
    """Cells by method, source and target.

    Attributes:
        sources / groups: groups that can be trained on (two cases or more), and all groups.
        cells: method -> (source, target) -> cell.
        predicted: method -> how its cases were predicted; methods that are not scored are not in it.
        missing: the empty places, each pair of a source and another group, with what fills them.
        left_out: (source, target) -> cases of the target that do not count, because their patients have cases
            in the source too.
        untestable: those places where no case is left; they are neither scored nor missing.
    """

    dataset: str
    plans: str
    sources: tuple[str, ...]
    groups: tuple[str, ...]
    cells: dict[str, dict[tuple[str, str], Cell]]
    predicted: dict[str, PredictedAs]
    missing: tuple[Missing, ...] = field(default=())
    left_out: dict[Place, int] = field(default_factory=dict)
    untestable: tuple[Place, ...] = ()

    def value(self, method: str, source: str, target: str, metric: str) -> float:
        """NaN where nothing is known, and where the metric is defined in no case."""
        cell = self.cells[method].get((source, target))
        return math.nan if cell is None else cell.mean(metric)

    def others(self, source: str) -> list[str]:
        """The other groups, but for those whose patients are all in the source."""
        return [t for t in self.groups if t != source and (source, t) not in self.untestable]

    def is_scored(self, method: str, source: str, *targets: str) -> bool:
        """Whether all of these places have a cell."""
        return all((source, target) in self.cells[method] for target in targets)

    def without_value(self, metric: str) -> list[tuple[str, str, str]]:
        """(method, source, target) that are scored, though the metric is defined in no case."""
        return [
            (method, source, target)
            for method, cells in self.cells.items()
            for (source, target), cell in sorted(cells.items())
            if math.isnan(cell.mean(metric))
        ]

    def to_others(self, method: str, source: str, metric: str) -> float:
        """Mean over the other groups, each counted alike; NaN while one of them has no value."""
        values = [self.value(method, source, target, metric) for target in self.others(source)]
        return fmean(values) if values and not any(map(math.isnan, values)) else math.nan

    def overall(self, method: str, metric: str) -> float:
        """Mean over the sources of `to_others`, but for those without a group to test on; NaN while one of
        them has none."""
        values = [self.to_others(method, source, metric) for source in self.sources if self.others(source)]
        return fmean(values) if values and not any(map(math.isnan, values)) else math.nan


def collect_matrix(workspace: Workspace, request: MatrixRequest) -> GroupMatrix:
    """Read the validation scores of trainings on a single group.

    Raises:
        SamunetError: no groups, none that can be a source, no such training, trainings with different
            settings or predictions in one place, or scores against different references.
    """
    raw = RawDataset.load(workspace.raw_folder(request.dataset), strict=False)
    members = _members(raw)
    sources = tuple(sorted(group for group, cases in members.items() if len(cases) > 1))
    # A group of one case is no source, and keeps `single_source` from splitting at all.
    order = sources if len(sources) == len(members) else ()
    names = [configuration_name(name, None, "") for name in request.configurations]
    methods = tuple(dict.fromkeys(names)) or trained_methods(workspace, request)
    if not methods:
        example = first_command(request, "2d_unet", sources[0], order)
        raise SamunetError(f"Nothing of {request.dataset} was trained on a single group. Train: {example}")
    runs = {
        method: [run for run in runs_of(workspace, request, method, raw.groups) if run.source in sources]
        for method in methods
    }
    scored = {method: scored_runs(method, found, raw) for method, found in runs.items()}
    targets = targets_of(raw.origins, members, sources)
    places = {method: _places(found, targets) for method, found in scored.items()}
    counted = [
        (one, target)
        for of_method in places.values()
        for (_, target), found in of_method.items()
        for one in found
    ]
    check_references(counted, raw)
    missing: list[Missing] = []
    for method in methods:
        mending = Mending(workspace=workspace, request=request, method=method, order=order)
        for source in sources:
            lacking = [t for t in targets.testable(source) if (source, t) not in places[method]]
            if lacking:
                missing.append(mending.of(source, lacking, runs[method], members))
    if not counted:
        raise _nothing_scored(request.dataset, missing)
    return GroupMatrix(
        dataset=request.dataset,
        plans=request.plans,
        sources=sources,
        groups=tuple(sorted(members)),
        cells={
            method: {place: _cell(found, place[1], raw.labels) for place, found in of_method.items()}
            for method, of_method in places.items()
        },
        predicted={method: found[0].predicted for method, found in scored.items() if found},
        missing=tuple(missing),
        left_out=targets.left_out(),
        untestable=targets.untestable(),
    )


def _nothing_scored(dataset: str, missing: Sequence[Missing]) -> SamunetError:
    """Why there is no matrix, with what can be done."""
    if not missing:
        return SamunetError(
            f"No pair of groups of {dataset} can be tested: every patient of a target has cases in the "
            "source too, so the training knew them. Test on cases of other patients, or correct the column "
            "patient of groups.csv (`patients` in dataset.json)."
        )
    told = "\n".join(f"  {line}" for entry in missing for line in entry.lines())
    return SamunetError(f"No training on a single group of {dataset} is scored yet. Run:\n{told}")


def _members(raw: RawDataset) -> dict[str, list[str]]:
    """Group -> its cases.

    Raises:
        SamunetError: fewer than two groups, or none of two cases or more.
    """
    members: dict[str, list[str]] = {}
    for case, group in sorted(raw.groups.items()):
        members.setdefault(group, []).append(case)
    if len(members) < 2:
        raise SamunetError(
            f"{raw.name} has {len(members)} group(s); the matrix needs two or more. Declare them in "
            "groups.csv (columns case,group) or under `groups` in dataset.json."
        )
    if all(len(cases) == 1 for cases in members.values()):
        raise SamunetError(
            f"In {raw.name} each of the {len(members)} groups ({listed(list(members))}) has one case, and "
            "none can be a source: training on one group needs two cases of it or more. Declare sites or "
            "scanners as groups, and patients in the column patient of groups.csv (case,group,patient)."
        )
    return members


def _places(scored: Sequence[ScoredRun], targets: Targets) -> dict[Place, list[ScoredRun]]:
    """(source, target) -> the runs that count there.

    A run counts for a target whose cases of today it was all scored on, as far as these count: means over
    other cases would not compare.
    """
    places: dict[Place, list[ScoredRun]] = {}
    for (source, target), cases in targets.counted.items():
        of_source = [one for one in scored if one.run.source == source]
        found = [one for one in of_source if len(one.of_group(target).cases) == len(cases)]
        if found and cases:
            places[source, target] = found
    return places


def _cell(found: Sequence[ScoredRun], target: str, labels: LabelSet) -> Cell:
    """Mean over runs of the same settings (seeds)."""
    scores = [one.of_group(target) for one in found]
    cases = scores[0].cases
    names, origins = [case.name for case in cases], origins_of(cases).without_groups
    metrics = [[case.metrics for case in one.cases] for one in scores]
    dice = np.array([score_array(entries, labels.foreground, "Dice") for entries in metrics])
    return Cell(
        cases=dice.shape[1],
        runs={m: tuple(float(one.foreground_mean[m]) for one in scores) for m in METRICS},
        folders=tuple(str(one.run.folder) for one in found),
        dice=dice,
        present=score_array(metrics[0], labels.foreground, "n_ref") > 0,
        missed=tuple(one.missed for one in scores),
        units=unit_numbers(names, origins),
        unit_names=units_in_order(names, origins),
    )
