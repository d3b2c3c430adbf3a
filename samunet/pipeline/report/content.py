"""The report's words and tables as plain data for the page's template."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from samunet.data.geometry import voxel_volume_mm3
from samunet.evaluation.bootstrap import Interval
from samunet.evaluation.scores import mean_of, shown_groups
from samunet.pipeline.report.collect import FoldRun, Model
from samunet.planning.explain import data_lines, method_table
from samunet.planning.fingerprint import Fingerprint
from samunet.planning.plan import RANDOM, Plan

DASH = "–"
METRIC_HEADS = {"Dice": "Dice", "SurfaceDice": "surface Dice", "HD95": "HD95 mm", "ASSD": "ASSD mm"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure with its 95 % interval in smaller type."""

    text: str
    interval: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; `words` are the columns that hold sentences and may break their lines."""

    head: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    words: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a data URI; an empty source leaves only the caption."""

    caption: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures under one title."""

    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class PlanContent:
    """A plan: its data, the table of methods, and per method its status and reasons."""

    name: str
    lines: tuple[str, ...]
    methods: Table
    reasons: tuple[tuple[str, str, tuple[str, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the template shows."""

    dataset: str
    summary: str
    date: str
    version: str
    sections: tuple[tuple[str, str], ...]
    verdict: tuple[str, ...]
    comparisons: Table | None
    scores: Table
    scores_note: str
    scores_chart: str
    classes: Table
    groups: Table
    cases: Table
    case_classes: Table
    key: tuple[tuple[str, str], ...]
    galleries: tuple[Gallery, ...]
    curves: tuple[Gallery, ...]
    runs: Table
    hardware: tuple[str, ...]
    weights: tuple[str, ...]
    plans: tuple[PlanContent, ...]
    data: Table
    commands: tuple[str, ...] = field(default=())


Intervals = Mapping[str, Interval]
"""95 % interval of a mean by what it is of."""


def number(value: float, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    return DASH if math.isnan(value) else f"{value:.{digits}f}"


def with_interval(value: float, interval: Interval | None, digits: int = 3) -> Cell:
    """`0.812` with `[0.790, 0.830]` beside it, and `n = 3` where only so many patients are behind it."""
    if interval is None or math.isnan(value):
        return Cell(text=number(value, digits))
    bounds = [] if math.isnan(interval.low) else [f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"]
    few = [f"n = {interval.units}"] if interval.is_narrow else []
    return Cell(text=number(value, digits), interval=" ".join(bounds + few))


def score_table(models: Sequence[Model], intervals: Intervals) -> Table:
    """A row a model: folds, cases and the means of the metrics."""
    rows = []
    for model in models:
        if not model.cases:
            continue
        means = {metric: mean_of(list(model.class_means(metric).values())) for metric in METRIC_HEADS}
        rows.append(
            (
                model.title,
                ", ".join(fold.fold for fold in model.folds if fold.cases),
                str(len(model.cases)),
                with_interval(means["Dice"], intervals.get(model.title)),
                number(means["SurfaceDice"]),
                number(means["HD95"], 1),
                number(means["ASSD"], 2),
            )
        )
    return Table(head=("method", "folds", "cases", *METRIC_HEADS.values()), rows=tuple(rows))


def class_table(models: Sequence[Model], intervals: Mapping[str, Intervals]) -> Table:
    """Mean Dice of each class (rows) by each model (columns)."""
    shown = [model for model in models if model.cases]
    names = dict.fromkeys(name for model in shown for name in model.plan.labels.foreground)
    rows: list[tuple[str | Cell, ...]] = [
        (
            name,
            *(
                with_interval(m.class_means("Dice").get(name, math.nan), intervals.get(m.title, {}).get(name))
                for m in shown
            ),
        )
        for name in names
    ]
    return Table(head=("class", *(model.title for model in shown)), rows=tuple(rows))


def group_table(models: Sequence[Model], intervals: Mapping[str, Intervals]) -> Table:
    """Mean Dice of each group's cases (rows) by each model (columns); no rows where groups are no matter."""
    shown = [model for model in models if model.cases]
    groups = shown_groups(case.group for model in shown for case in model.cases)
    rows: list[tuple[str | Cell, ...]] = []
    for group in groups:
        found = [intervals[model.title].get(group) for model in shown]
        cells = [with_interval(math.nan if one is None else one.value, one) for one in found]
        cases = {case.name for model in shown for case in model.cases if case.group == group}
        rows.append((group, str(len(cases)), *cells))
    return Table(head=("group", "cases", *(model.title for model in shown)), rows=tuple(rows))


def case_table(models: Sequence[Model]) -> Table:
    """Mean Dice of each case by each model; the case that the models do worst on comes first."""
    shown = [model for model in models if model.cases]
    scores = {model.title: {case.name: case.mean() for case in model.cases} for model in shown}
    groups = {case.name: case.group for model in shown for case in model.cases}
    names = sorted(
        groups, key=lambda n: (_worst_first(mean_of([s[n] for s in scores.values() if n in s])), n)
    )
    grouped = any(groups.values())
    rows = [
        (
            name,
            *([groups[name] or DASH] if grouped else []),
            *(number(scores[model.title].get(name, math.nan)) for model in shown),
        )
        for name in names
    ]
    head = ("case", *(["group"] if grouped else []), *(model.title for model in shown))
    return Table(head=head, rows=tuple(rows))


def _worst_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def case_class_table(models: Sequence[Model]) -> Table:
    """A row for each model, case and class with its metrics."""
    rows = [
        (
            case.name,
            model.title,
            name,
            case.fold,
            *(number(scores[metric]) for metric in METRIC_HEADS),
        )
        for model in models
        for case in model.cases
        for name, scores in case.metrics.items()
    ]
    return Table(head=("case", "method", "class", "fold", *METRIC_HEADS.values()), rows=tuple(rows))


def run_table(models: Sequence[Model]) -> Table:
    """A row a fold: length, time, memory, device, what was overridden."""
    rows = [(model.title, *_run_cells(fold)) for model in models for fold in model.folds]
    head = ("method", "fold", "epochs", "time", "samples/s", "memory", "device", "overridden")
    return Table(head=head, rows=tuple(rows), words=(7,))


def _run_cells(fold: FoldRun) -> tuple[str, ...]:
    wanted = sum(phase.epochs for phase in fold.run.phases)
    done = len(fold.history)
    speed = mean_of([record.samples_per_second for record in fold.history])
    memory = max((record.memory_gb for record in fold.history), default=math.nan)
    overrides = {**fold.run.overrides.get("settings", {}), **fold.run.overrides}
    for name in ("settings", "distillation"):  # the first is spread out, the second stands among the weights
        overrides.pop(name, None)
    return (
        fold.fold,
        f"{done}" if done == wanted and fold.finished else f"{done} of {wanted}",
        seconds_words(fold.seconds),
        number(speed, 1),
        f"{memory:.1f} GB",
        f"{fold.run.device}, {fold.run.precision}",
        ", ".join(f"{key} {value}" for key, value in overrides.items()) or DASH,
    )


def seconds_words(seconds: float) -> str:
    """`45 s`, `12 min` or `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def hardware_lines(models: Sequence[Model]) -> tuple[str, ...]:
    """Each different machine with its package versions, once."""
    lines: dict[str, None] = {}
    for model in models:
        for fold in model.folds:
            parts = [f"{key} {value}" for key, value in {**fold.run.hardware, **fold.run.versions}.items()]
            lines[", ".join(parts)] = None
    return tuple(lines)


def weight_lines(models: Sequence[Model]) -> tuple[str, ...]:
    """What each model's encoder started from; every figure of a model stands on these weights."""
    lines: dict[str, None] = {}
    for model in models:
        for fold in model.folds:
            used, encoder = fold.run.weights, fold.run.configuration.get("encoder")
            if encoder is None:
                words = "no encoder of SAM; trained from scratch"
            elif used is None:
                words = (
                    f"{encoder}, {'random and frozen' if _is_random_kept(fold) else 'trained from scratch'}"
                )
            else:
                words = f"{encoder} from {used.file} ({used.kind} weights, SHA-256 {used.sha256[:16]}…)"
            if fold.run.distillation:
                words += f"; distilled from {fold.run.distillation.get('teacher')}"
            lines[f"{model.title}: {words}"] = None
    return tuple(lines)


def _is_random_kept(fold: FoldRun) -> bool:
    """Whether the encoder stayed as it was drawn."""
    configuration = fold.run.configuration
    trained = configuration.get("settings", {}).get("encoder") == "full"
    return configuration.get("encoder_weights") == RANDOM and not trained


def plan_content(plan: Plan) -> PlanContent:
    """A plan with the reasons for each method."""
    head, *rows = method_table(plan)
    verdicts = {verdict.method: verdict for verdict in plan.verdicts}
    ordered = [verdicts[row[0]] for row in rows]
    return PlanContent(
        name=f"{plan.name}, made for {plan.budget.device} with {plan.budget.memory_gb:g} GB and "
        f"{plan.budget.hours:g} hours a fold",
        lines=tuple(data_lines(plan)),
        methods=Table(head=head, rows=tuple(rows)),
        reasons=tuple((v.method, v.status, v.reasons) for v in ordered),
    )


def data_table(fingerprint: Fingerprint) -> Table:
    """The dataset in figures; smallest, median and largest over its cases."""
    cases = fingerprint.cases
    rows: list[tuple[str, ...]] = [("cases", str(len(cases)), "", "")]
    for axis, letter in enumerate("zyx"):
        rows.append((f"spacing {letter}, mm", *_spread([case.spacing_mm[axis] for case in cases])))
    for axis, letter in enumerate("zyx"):
        rows.append((f"voxels {letter}", *_spread([float(case.shape[axis]) for case in cases])))
    for name in fingerprint.labels.foreground:
        volumes = [
            case.class_voxels[name] * voxel_volume_mm3(case.spacing_mm, case.is_2d) / 1000 for case in cases
        ]
        rows.append((f"{name}, ml", *_spread(volumes)))
    if fingerprint.groups:
        rows.append(("groups", str(len(set(fingerprint.groups.values()))), "", ""))
    for name, channel in zip(fingerprint.channel_names, fingerprint.intensity):
        low, high = f"{channel.percentile_00_5:.4g}", f"{channel.percentile_99_5:.4g}"
        rows.append((f"{name} in the foreground (0.5 %, median, 99.5 %)", low, f"{channel.median:.4g}", high))
    return Table(head=("", "smallest", "median", "largest"), rows=tuple(rows))


def _spread(values: Sequence[float]) -> tuple[str, str, str]:
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return f"{ordered[0]:.4g}", f"{middle:.4g}", f"{ordered[-1]:.4g}"
