"""A shift suite's results: table, CSV, JSON, degradation curves, and a picture of what the images became."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from samunet.data.readers import read_image, read_label
from samunet.evaluation.bootstrap import FEWEST_UNITS, Interval
from samunet.evaluation.scores import DISTANCES, SHARES, csv_score, json_score, mean_of, shown_score
from samunet.evaluation.shifts import SHIFTS, Condition, shifted
from samunet.pipeline.overlays import OverlayCase, shown_slice
from samunet.pipeline.shift_suite.result import SuiteResult
from samunet.records import write_json
from samunet.whole_files import atomic_path, write_text

METRICS = ("Dice", "IoU", "SurfaceDice", "HD95", "ASSD")
"""Which an object that was not found at all does not have, so that missing it may lower the mean."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which all eyes tell apart; markers differ as well."""
MARKERS = "osD^vPX*"
TITLE_INCHES = 6.5
"""Width that the title of the curves needs, however few panels there are."""


def asked(result: SuiteResult) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Kinds and severities of a result, in order."""
    conditions = [o.condition for o in next(iter(result.outcomes.values())) if o.condition.severity]
    return tuple(dict.fromkeys(c.kind for c in conditions)), tuple(sorted({c.severity for c in conditions}))


def describe(result: SuiteResult, metric: str) -> str:
    """A table: methods in rows, the clean images, the mean of all changed ones, each kind at its worst."""
    kinds, severities = asked(result)
    width = max(12, *(len(kind) + 4 for kind in kinds))
    first = max(14, *(len(method) + 2 for method in result.outcomes))
    heads = ("clean", "all shifts", *(f"{kind} {severities[-1]}" for kind in kinds))
    lines = [
        f"{metric} on {_cases(result)} of {result.dataset}, fold {result.fold}",
        f"{'method':{first}}" + "".join(f"{head:>{width}}" for head in heads),
    ]
    for method in result.outcomes:
        values = [
            result.value(method, "", 0, metric),
            result.mean_shifted(method, metric),
            *(result.value(method, kind, severities[-1], metric) for kind in kinds),
        ]
        lines.append(f"{method:{first}}" + "".join(f"{shown_score(value):>{width}}" for value in values))
    return "\n".join([*lines, *_misses(result, metric), *_between(result)])


def _misses(result: SuiteResult, metric: str) -> list[str]:
    """How many objects have no distance, where one does not."""
    kinds, severities = asked(result)
    changed = [(kind, severity) for kind in kinds for severity in severities]
    told = []
    for method in result.outcomes:
        worst = max(changed, key=lambda condition: result.missed(method, *condition))
        if metric in DISTANCES and result.missed(method, *worst):
            clean, most = result.missed(method, "", 0), result.missed(method, *worst)
            told.append(
                f"{method} misses {clean} objects on clean images and up to {most} "
                f"({' '.join(map(str, worst))}): they have no {metric}, and the means are of the others."
            )
    return told


def _between(result: SuiteResult) -> list[str]:
    """How far the methods are apart."""
    if not result.between:
        return []
    few = f" (too narrow: a class is held by {result.fewest_units})" * (result.fewest_units < FEWEST_UNITS)
    lines = [
        "",
        "Dice points between methods, mean over all shifts; 95 % intervals, all at once, draw "
        f"patients{few}:",
    ]
    for pair in result.between:
        lines.append(
            f"  {pair.first} - {pair.second}: {pair.changed.in_points()} on the changed images; against its "
            f"own clean images it keeps {pair.kept.in_points()} more"
        )
    return lines


def _cases(result: SuiteResult) -> str:
    return "1 case" if len(result.cases) == 1 else f"{len(result.cases)} cases"


def save_csv(result: SuiteResult, file: Path) -> None:
    """A row a method and condition."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["method", "shift", "severity", "strength", *METRICS, "missed", "Dice_minus_clean", "low", "high"]
    )
    for method, outcomes in result.outcomes.items():
        for outcome in outcomes:
            condition, mean = outcome.condition, outcome.foreground_mean
            fall = result.fall(method, condition.kind, condition.severity)
            means = [csv_score(mean[metric]) for metric in METRICS]
            falls = [csv_score(value) for value in (fall.value, fall.low, fall.high)]
            place = (method, condition.kind, condition.severity, condition.strength)
            writer.writerow([*place, *means, outcome.missed, *falls])
    write_text(file, text.getvalue())


def save_json(result: SuiteResult, file: Path) -> None:
    """Everything, with the Dice of each case."""
    methods: dict[str, Any] = {}
    for method, outcomes in result.outcomes.items():
        methods[method] = {
            "mean_over_shifts": {m: json_score(result.mean_shifted(method, m)) for m in METRICS},
            "conditions": [
                {
                    "shift": o.condition.kind,
                    "severity": o.condition.severity,
                    "strength": o.condition.strength,
                    "foreground_mean": {m: json_score(o.foreground_mean[m]) for m in METRICS},
                    "missed": o.missed,
                    "dice_minus_clean": _record(result.fall(method, o.condition.kind, o.condition.severity)),
                    "case_dice": {
                        case.name: json_score(mean_of(row.tolist()))
                        for case, row in zip(result.cases, o.dice)
                    },
                }
                for o in outcomes
            ],
        }
    content = {
        "dataset": result.dataset,
        "fold": result.fold,
        "seed": result.seed,
        "cases": [case.name for case in result.cases],
        "strengths": {kind: {"values": s.strengths, "meaning": s.meaning} for kind, s in SHIFTS.items()},
        "methods": methods,
        "fewest_units": result.fewest_units,
        "between": [
            {
                "first": pair.first,
                "second": pair.second,
                "dice_on_changed": _record(pair.changed),
                "dice_kept": _record(pair.kept),
            }
            for pair in result.between
        ],
    }
    write_json(file, content)


def _record(interval: Interval) -> dict[str, float | None]:
    return {name: json_score(getattr(interval, name)) for name in ("value", "low", "high")}


def draw_curves(result: SuiteResult, metric: str, file: Path) -> None:
    """A panel a kind: the metric over the severity, a line a method; of Dice the interval of its loss too."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds, severities = asked(result)
    columns = min(3, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    width = max(3.6 * columns, TITLE_INCHES)
    figure = Figure(figsize=(width, 2.9 * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, kind in zip(panels, kinds):
        for number, method in enumerate(result.outcomes):
            values = [result.value(method, kind, severity, metric) for severity in (0, *severities)]
            colour = COLOURS[number % len(COLOURS)]
            if metric == "Dice":
                falls = [result.fall(method, kind, severity) for severity in (0, *severities)]
                low, high = ([values[0] + getattr(fall, end) for fall in falls] for end in ("low", "high"))
                axes.fill_between((0, *severities), low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                (0, *severities),
                values,
                marker=MARKERS[number % len(MARKERS)],
                color=colour,
                markersize=5,
                label=method,
            )
            if metric in DISTANCES:
                lacking = [s for s in (0, *severities) if result.missed(method, kind, s)]
                heights = [result.value(method, kind, severity, metric) for severity in lacking]
                axes.plot(lacking, heights, MARKERS[number % len(MARKERS)], color=colour, mfc="white")
        strengths = [f"{SHIFTS[kind].strengths[severity - 1]:g}" for severity in severities]
        axes.set_xticks((0, *severities), ["clean", *strengths], fontsize=8)
        axes.set_xlabel(SHIFTS[kind].meaning, fontsize=8)
        axes.set_title(kind.replace("_", " "), fontsize=10)
        axes.grid(alpha=0.3)
        if metric in SHARES:
            axes.set_ylim(0, 1)
    for axes in panels[len(kinds) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel(metric)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(names)), fontsize=9)
    title = f"{result.dataset}, fold {result.fold}, {_cases(result)}: {metric} on changed images"
    title += "\n(hollow: some objects are missed, the mean is of those found)" * (metric in DISTANCES)
    figure.suptitle(title, fontsize=10)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def draw_images(result: SuiteResult, file: Path) -> None:
    """One slice of the first case as every condition has it: a row a kind, severities from left to right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    case, (kinds, severities) = result.cases[0], asked(result)
    assert case.label is not None
    image, geometry = read_image(case.images)
    reference, _ = read_label(case.label)
    shown = OverlayCase(
        name=case.name,
        image=image,
        reference=reference,
        prediction=reference,
        spacing_mm=geometry.spacing_mm,
    ).by_slice()
    image, spacing, position = shown.image, shown.spacing_mm, shown_slice(shown)
    low, high = np.percentile(image[0, position], (0.5, 99.5))
    levels = (0, *severities)
    figure = Figure(figsize=(1.5 * len(levels), 1.55 * len(kinds) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for row, kind in zip(figure.subplots(len(kinds), len(levels), squeeze=False), kinds):
        for axes, severity in zip(row, levels):
            condition = Condition(kind=kind, severity=severity, seed=result.seed)
            changed = shifted(image, spacing, case.name, condition, result.colours)[0, position]
            axes.imshow(changed, cmap="gray", vmin=low, vmax=high, aspect=spacing[1] / spacing[2])
            axes.set_xticks([])
            axes.set_yticks([])
            told = f"{SHIFTS[kind].strengths[severity - 1]:g}" if severity else "clean"
            axes.set_title(told, fontsize=7)
        row[0].set_ylabel(kind.replace("_", " "), fontsize=8)
    figure.suptitle(f"{case.name}, slice {position + 1}, one grey scale for all", fontsize=9)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
