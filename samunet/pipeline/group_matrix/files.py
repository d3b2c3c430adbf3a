"""The source -> target matrix as a table for the screen, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from samunet.evaluation.bootstrap import FEWEST_UNITS, Interval
from samunet.evaluation.scores import DISTANCES, SHARES, csv_score, json_score, shown_score
from samunet.pipeline.group_matrix.collect import METRICS, Cell, GroupMatrix
from samunet.pipeline.group_matrix.differences import Differences
from samunet.pipeline.predicted_as import PredictedAs, chosen_on
from samunet.records import to_data, write_json
from samunet.whole_files import atomic_path, write_text
from samunet.workspace import BEST

TITLE_INCHES = 6.5
"""Width that the picture's title needs, however few groups there are."""
NOTE_CHARACTERS = 16
"""Of the notes below the picture that an inch has room for."""
MISSING = "missing"
"""Stands in the picture where nothing is scored."""
SAME_PATIENTS = "same\npatients"
"""Stands where every patient of the target has cases in the source too."""
NO_PLACE = "there is no pair that all of them have, with two patients or more who hold a class in the target."
OTHERS = "others"
"""Head of the column with the mean over the other groups."""


def describe(matrix: GroupMatrix, differences: Differences | None, metric: str) -> str:
    """A table a method: rows are groups trained on, columns groups tested on."""
    width = max(8, *(len(group) for group in (*matrix.groups, OTHERS)))
    lines = [f"{metric}; rows: trained on, columns: tested on; {OTHERS}: mean over the other groups"]
    for method in matrix.cells:
        lines += [
            "",
            f"{method:{width}}  " + "  ".join(f"{group:>{width}}" for group in (*matrix.groups, OTHERS)),
        ]
        for source in matrix.sources:
            values = [matrix.value(method, source, target, metric) for target in matrix.groups]
            values.append(matrix.to_others(method, source, metric))
            lines.append(
                f"{source:{width}}  " + "  ".join(f"{shown_score(value):>{width}}" for value in values)
            )
        overall = matrix.overall(method, metric)
        if not math.isnan(overall):
            lines.append(f"mean over the sources: {shown_score(overall)}")
    untrainable = sorted(set(matrix.groups) - set(matrix.sources))
    if untrainable:
        lines += ["", f"With a single case no source: {', '.join(untrainable)}."]
    undefined = [f"{method} {source} -> {target}" for method, source, target in matrix.without_value(metric)]
    if undefined:
        lines += ["", f"Scored, but {metric} is defined in no case: {', '.join(undefined)}."]
    notes = [*_predicted(matrix), *_missed(matrix, metric), *_left_out(matrix)]
    if notes:
        lines += ["", *notes]
    if differences is not None:
        lines += ["", *_compared(differences)]
    elif sum(map(bool, matrix.cells.values())) > 1:
        lines += ["", "The methods are not compared: " + NO_PLACE]
    if matrix.missing:
        lines += ["", "Missing; run:", *(f"  {line}" for entry in matrix.missing for line in entry.lines())]
    return "\n".join(lines)


def _predicted(matrix: GroupMatrix) -> list[str]:
    """Methods whose cases were predicted otherwise than a training does by itself."""
    ways = {method: way for method, way in matrix.predicted.items() if way != PredictedAs()}
    told = []
    for method, way in ways.items():
        chosen = chosen_on(way.checkpoint, "the target cases")  # its validation cases are the targets here
        told.append(f"{method} is predicted with {way.text()}{'; ' * bool(chosen)}{chosen}.")
    return told


def _left_out(matrix: GroupMatrix) -> list[str]:
    """Target cases whose patients the training knew."""
    partly = [
        f"{source} -> {target} {number}"
        for (source, target), number in matrix.left_out.items()
        if (source, target) not in matrix.untestable
    ]
    told = []
    if partly:
        told.append(
            "Cases left out, because their patients have cases in the source too: " + ", ".join(partly) + "."
        )
    if matrix.untestable:
        pairs = ", ".join(" -> ".join(place) for place in matrix.untestable)
        told.append(
            f"Not tested, because all patients of the target have cases in the source too: {pairs}; such "
            "targets are in no mean."
        )
    return told


def _missed(matrix: GroupMatrix, metric: str) -> list[str]:
    """Where a method misses most of the objects, which have no distance."""
    told = []
    for method, cells in matrix.cells.items():
        if metric not in DISTANCES or not cells:
            continue
        place = max(sorted(cells), key=lambda place: cells[place].missed_share)
        worst = cells[place]
        if worst.missed_share > 0:
            told.append(
                f"{method} misses up to {worst.missed_share:.0%} of the objects ({' -> '.join(place)}): they "
                f"have no {metric}, and the means are of the others."
            )
    return told


def _compared(differences: Differences) -> list[str]:
    """The best method against the others."""
    best = differences.pairs[0].first
    few = f" (too narrow: in one group a class is held by {differences.fewest_units})"
    lines = [
        f"Dice points between methods over {len(differences.places)} source -> target pair(s) that all have.",
        "95 % intervals, all at once; the patients (cases, where none are declared) of each group are drawn",
        f"anew{few * (differences.fewest_units < FEWEST_UNITS)}, neither other groups nor other trainings "
        "are in them:",
    ]
    for entry in differences.pairs:
        if entry.first == best:
            verdict = "" if entry.interval.low > 0 else "  (not certain)"
            lines.append(f"  {best} - {entry.second}: {entry.interval.in_points()}{verdict}")
    return lines


def save_csv(matrix: GroupMatrix, file: Path) -> None:
    """One row a method, source and target: cases, runs, metrics (mean over the runs), interval of Dice, share
    of the objects that were missed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["method", "source", "target", "cases", "runs", *METRICS, "Dice_low", "Dice_high", "missed"]
    )
    for method, cells in matrix.cells.items():
        for (source, target), cell in sorted(cells.items()):
            means = [cell.mean(metric) for metric in METRICS]
            bounds = (cell.dice_interval.low, cell.dice_interval.high)
            shown = [csv_score(value) for value in (*means, *bounds, cell.missed_share)]
            writer.writerow([method, source, target, cell.cases, len(cell.folders), *shown])
    write_text(file, text.getvalue())


def save_json(matrix: GroupMatrix, differences: Differences | None, file: Path) -> None:
    """Everything, with the value of each run and its folder."""
    methods: dict[str, Any] = {}
    for method, cells in matrix.cells.items():
        sources: dict[str, Any] = {}
        for (source, target), cell in sorted(cells.items()):
            row = sources.setdefault(source, {"targets": {}, "others": {}})
            row["others"] = {m: json_score(matrix.to_others(method, source, m)) for m in METRICS}
            row["targets"][target] = {
                "cases": cell.cases,
                "mean": {m: json_score(cell.mean(m)) for m in METRICS},
                "dice_interval": _bounds(cell.dice_interval),
                "runs": {m: [json_score(value) for value in cell.runs[m]] for m in METRICS},
                "missed": list(cell.missed),
                "run_folders": list(cell.folders),
            }
        overall = {m: json_score(matrix.overall(method, m)) for m in METRICS}
        methods[method] = {
            "sources": sources,
            "overall": overall,
            "predicted": _predicted_record(matrix.predicted.get(method)),
        }
    content = {
        "dataset": matrix.dataset,
        "plans": matrix.plans,
        "groups": matrix.groups,
        "sources": matrix.sources,
        "methods": methods,
        "left_out": [
            {
                "source": source,
                "target": target,
                "cases": number,
                "all": (source, target) in matrix.untestable,
                "reason": "their patients have cases in the source too",
            }
            for (source, target), number in matrix.left_out.items()
        ],
        "differences": None if differences is None else _compared_record(differences),
        "missing": [
            {
                "method": entry.method,
                "source": entry.source,
                "targets": entry.targets,
                "first": entry.first,
                "command": entry.command,
            }
            for entry in matrix.missing
        ],
    }
    write_json(file, content)


def _predicted_record(way: PredictedAs | None) -> dict[str, Any] | None:
    """How the cases were predicted; `chosen_on_targets`: by the epoch that was best on them."""
    return None if way is None else {**to_data(way), "chosen_on_targets": way.checkpoint == BEST}


def _compared_record(differences: Differences) -> dict[str, Any]:
    return {
        "places": differences.places,
        "fewest_units": differences.fewest_units,
        "pairs": [
            {
                "first": entry.first,
                "second": entry.second,
                "dice": json_score(entry.interval.value),
                "interval": _bounds(entry.interval),
            }
            for entry in differences.pairs
        ],
    }


def _bounds(interval: Interval) -> list[float | None]:
    return [json_score(interval.low), json_score(interval.high)]


def draw(matrix: GroupMatrix, metric: str, file: Path) -> None:
    """One panel a method, the values in the cells; cividis, whose colours all eyes tell apart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (len(matrix.groups) + 1, len(matrix.sources))
    panel = (1.6 + 0.75 * size[0], 1.5 + 0.62 * size[1])
    columns = min(len(matrix.cells), max(1, int(15 // panel[0])))
    rows = math.ceil(len(matrix.cells) / columns)
    width = max(panel[0] * columns, TITLE_INCHES)
    figure = Figure(figsize=(width, panel[1] * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    scale = _scale(matrix, metric)
    for axes, method in zip(panels, matrix.cells):
        _draw_panel(axes, matrix, method, metric, scale)
    for axes in panels[len(matrix.cells) :]:
        axes.set_axis_off()
    figure.suptitle(f"{matrix.dataset}: {metric}, trained on one group, tested on another", fontsize=10)
    notes = [line for note in _notes(matrix, metric) for line in wrap(note, int(width * NOTE_CHARACTERS))]
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=7)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _notes(matrix: GroupMatrix, metric: str) -> list[str]:
    """What stands below the picture."""
    undefined = f"-: {metric} is defined in no case of the target, or of one of them"
    return [
        *_predicted(matrix),
        *_missed(matrix, metric),
        *_left_out(matrix),
        *([undefined] if matrix.without_value(metric) else []),
    ]


def _small_interval(cell: Cell) -> str:
    interval = cell.dice_interval
    return "" if math.isnan(interval.low) else f"\n{interval.low:.2f} to {interval.high:.2f}"


def _scale(matrix: GroupMatrix, metric: str) -> tuple[float, float]:
    """Values of the darkest and the brightest colour; shares are 0 to 1 so that pictures compare."""
    if metric in SHARES:
        return 0.0, 1.0
    values = [cell.mean(metric) for cells in matrix.cells.values() for cell in cells.values()]
    defined = [value for value in values if not math.isnan(value)] or [0.0]
    return min(defined), max(max(defined), min(defined) + 1e-6)


@dataclass(frozen=True)
class _Shown:
    """A place in the picture: its value, NaN where it has none, and what stands there."""

    value: float
    text: str


def _row(matrix: GroupMatrix, method: str, source: str, metric: str) -> list[_Shown]:
    """What the targets and the mean over the others show of a source."""
    row = []
    for target in matrix.groups:
        value = matrix.value(method, source, target, metric)
        if target == source:
            text = "source"
        elif (source, target) in matrix.untestable:
            text = SAME_PATIENTS
        elif not matrix.is_scored(method, source, target):
            text = MISSING
        else:
            text = shown_score(value)
            if metric == "Dice" and not math.isnan(value):
                text += _small_interval(matrix.cells[method][source, target])
        row.append(_Shown(value, text))
    others = matrix.to_others(method, source, metric)
    is_scored = matrix.is_scored(method, source, *matrix.others(source))
    return [*row, _Shown(others, shown_score(others) if is_scored else MISSING)]


def _draw_panel(axes: Any, matrix: GroupMatrix, method: str, metric: str, scale: tuple[float, float]) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    colours = colormaps["cividis_r" if metric in DISTANCES else "cividis"]
    columns = (*matrix.groups, OTHERS)
    for row, source in enumerate(matrix.sources):
        for column, shown in enumerate(_row(matrix, method, source, metric)):
            last = column == len(matrix.groups)
            place = (column - 0.5 + 0.15 * last, row - 0.5)
            known = not math.isnan(shown.value)
            share = (shown.value - scale[0]) / (scale[1] - scale[0]) if known else 0.0
            face = colours(min(max(share, 0.0), 1.0)) if known else (0.93, 0.93, 0.93, 1.0)
            hatch = "///" if shown.text == MISSING else None
            axes.add_patch(
                Rectangle(place, 1, 1, facecolor=face, hatch=hatch, edgecolor="white", linewidth=1.5)
            )
            dark = known and 0.299 * face[0] + 0.587 * face[1] + 0.114 * face[2] < 0.5
            axes.text(
                place[0] + 0.5,
                row,
                shown.text,
                ha="center",
                va="center",
                fontsize=7 if known else 6.5,
                color="white" if dark else "black",
                fontweight="bold" if last else "normal",
            )
    axes.set_xlim(-0.5, len(columns) - 0.35)
    axes.set_ylim(len(matrix.sources) - 0.5, -0.5)
    axes.set_xticks([*range(len(matrix.groups)), len(matrix.groups) + 0.15], columns, rotation=35, ha="right")
    axes.set_yticks(range(len(matrix.sources)), matrix.sources)
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel("tested on", fontsize=8)
    axes.set_ylabel("trained on", fontsize=8)
    overall = matrix.overall(method, metric)
    axes.set_title(method if math.isnan(overall) else f"{method}   mean {shown_score(overall)}", fontsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
