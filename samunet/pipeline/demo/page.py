"""The demo's one-page summary: scores, pictures, what was changed and why; one HTML file without links."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samunet.data.readers import read_image, read_label
from samunet.evaluation.scores import Evaluation
from samunet.pipeline.demo.phantom import FILE_ENDING, ORGANS
from samunet.pipeline.overlays import OverlayCase, colour_layer, colour_of, display_picture, shown_slice
from samunet.planning.plan import Configuration, Plan
from samunet.whole_files import atomic_path, write_text

NAMES = {index + 1: name for index, name in enumerate(ORGANS)}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: right }
td:first-child, th:first-child { text-align: left }
tr.mean td { border-top: 1px solid #999; font-weight: 600 }
img { width: 100%; margin: .3rem 0 } code, pre { font-size: 12.5px; background: #f4f4f4 }
pre { padding: .7rem; overflow-x: auto } .plain { color: #555 }
"""


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """One method of the demo.

    Attributes:
        folder: its predictions.
        evaluation: on the held-out cases.
        settings: what was changed against the plan, and `why`.
        configuration: as trained.
        parameters: of the network, all of them trained.
        history: one JSON record an epoch.
    """

    name: str
    folder: Path
    evaluation: Evaluation
    settings: dict[str, Any]
    why: str
    configuration: Configuration
    parameters: int
    history: Path


@dataclass(frozen=True, kw_only=True)
class DemoPage:
    """What the page tells; `commands` do the same by hand, `machine` says where it ran."""

    root: Path
    plan: Plan
    results: tuple[MethodResult, ...]
    quick: bool
    num_training: int
    commands: tuple[str, ...]
    machine: str


def draw_comparisons(raw: Path, page: DemoPage) -> tuple[Path, ...]:
    """Write pictures/CASE.png for every held-out case: image, reference, one panel a method."""
    files = []
    for case in page.results[0].evaluation.cases:
        image, geometry = read_image((raw / "imagesTs" / f"{case.name}_0000{FILE_ENDING}",))
        maps = {"reference": read_label(raw / "labelsTs" / f"{case.name}{FILE_ENDING}")[0]}
        for result in page.results:
            dice = next(_mean_dice(c.metrics) for c in result.evaluation.cases if c.name == case.name)
            maps[f"{result.name}, Dice {dice:.2f}"] = read_label(result.folder / f"{case.name}{FILE_ENDING}")[
                0
            ]
        shown = OverlayCase(
            name=case.name,
            image=image,
            reference=None,
            prediction=maps["reference"],
            spacing_mm=geometry.spacing_mm,
        )
        file = page.root / "pictures" / f"{case.name}.png"
        _draw_case(shown, maps, file)
        files.append(file)
    return tuple(files)


def _mean_dice(metrics: Mapping[str, Mapping[str, float]]) -> float:
    return float(np.nanmean([scores["Dice"] for scores in metrics.values()]))


def _draw_case(case: OverlayCase, maps: Mapping[str, np.ndarray], file: Path) -> None:
    """Two rows of panels: the fullest axial slice, and the coronal slice through the kidneys and aorta."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    small = np.isin(case.prediction, [i for i, name in NAMES.items() if name not in ("liver", "spleen")])
    axial, coronal = shown_slice(case), int(small.sum(axis=(0, 2)).argmax())
    z, y, x = case.spacing_mm
    views: tuple[tuple[str, tuple[Any, ...], float], ...] = (
        (f"axial, slice {axial + 1}", (axial, slice(None)), y / x),
        ("coronal", (slice(None, None, -1), coronal), z / x),  # the head is up
    )
    heights = [case.image[0][view].shape[0] * aspect / case.image.shape[3] for _, view, aspect in views]
    figure = Figure(figsize=(2.9 * (1 + len(maps)), 2.9 * sum(heights) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[tuple[str, np.ndarray | None]] = [(f"{case.name}, {views[0][0]}", None), *maps.items()]
    grid = figure.subplots(len(views), len(panels), height_ratios=heights, squeeze=False)
    for number, (words, view, aspect) in enumerate(views):
        for axes, (title, labels) in zip(grid[number], panels):
            axes.imshow(display_picture(case.image[0][view][None]), cmap="gray", aspect=aspect)
            if labels is not None:
                axes.imshow(colour_layer(labels[view], NAMES), aspect=aspect, interpolation="nearest")
            axes.set_title("" if number and labels is not None else words if number else title, fontsize=9)
            axes.set_axis_off()
    handles = [Patch(color=colour_of(i), label=name) for i, name in enumerate(ORGANS)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def write_page(page: DemoPage, pictures: Sequence[Path], seconds: Mapping[str, float]) -> Path:
    """Write summary.html; the pictures are inside the file."""
    parts = [
        _introduction(page, seconds),
        "<h2>Dice on the held-out cases</h2>",
        _score_table(page.results),
        "<h2>Pictures</h2>",
        *(f'<img alt="{p.stem}" src="data:image/png;base64,{_base64(p)}">' for p in pictures),
        "<h2>What was trained</h2>",
        *(_training_words(result) for result in page.results),
        f"<p>{html.escape(_recommendation(page.plan))}</p>",
        "<h2>The same by hand</h2>",
        f"<pre>{html.escape(chr(10).join(page.commands))}</pre>",
        "<h2>Time</h2>",
        _time_table(seconds),
    ]
    text = f"<!doctype html><meta charset='utf-8'><title>samunet demo</title><style>{_STYLE}</style>\n"
    file = page.root / "summary.html"
    write_text(file, text + "\n".join(parts) + "\n")
    return file


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode("ascii")


def _introduction(page: DemoPage, seconds: Mapping[str, float]) -> str:
    cases = len(page.results[0].evaluation.cases)
    low = (
        " This was the quick form, which shows that everything runs; its Dice means nothing."
        if page.quick
        else ""
    )
    return (
        f"<h1>samunet demo</h1><p class='plain'>{html.escape(page.machine)}; "
        f"{sum(seconds.values()) / 60:.1f} minutes in all.</p>"
        f"<p>{page.num_training} generated abdominal volumes to train on, {cases} others to score. The "
        "organs are about as grey as their surroundings and vary from body to body: a rule that sees one "
        "voxel's grey value stays under 0.25 mean Dice, an average label map under 0.65. Every network below "
        f"was trained for minutes, {_beginnings(page.results)}.{low}</p>"
    )


def _beginnings(results: Sequence[MethodResult]) -> str:
    """From scratch, or what began with which weights."""
    begun = [
        f"{r.name} on {r.configuration.encoder} with pretrained weights ({r.configuration.encoder_weights})"
        for r in results
        if r.configuration.encoder_weights != "none"
    ]
    return " and ".join(begun) + ", the rest from scratch" if begun else "from scratch"


def _score_table(results: Sequence[MethodResult]) -> str:
    head = "".join(f"<th>{result.name}</th>" for result in results)
    rows = [
        f"<tr><td>{name}</td>"
        + "".join(f"<td>{result.evaluation.mean[name]['Dice']:.3f}</td>" for result in results)
        + "</tr>"
        for name in ORGANS
    ]
    means = "".join(f"<td>{result.evaluation.foreground_mean['Dice']:.3f}</td>" for result in results)
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}<tr class='mean'><td>mean</td>{means}</tr></table>"


def _training_words(result: MethodResult) -> str:
    chosen = result.configuration
    records = [json.loads(line) for line in result.history.read_text(encoding="utf-8").splitlines()]
    encoder = ""
    if chosen.encoder:
        state = "trained too" if chosen.settings.get("encoder") == "full" else "frozen"
        encoder = f", encoder {chosen.encoder} {state}, input {chosen.input_size}"
    patch = " x ".join(map(str, chosen.patch_size))
    settings = ", ".join(f"{key} {value}" for key, value in result.settings.items())
    return (
        f"<p><b>{result.name}</b>: {result.parameters / 1e6:.1f} M parameters{encoder}, patch {patch}, "
        f"batch {chosen.batch_size}, {len(records)} epochs. Changed against the plan: {settings} "
        f"({html.escape(result.why)}).</p>"
    )


def _recommendation(plan: Plan) -> str:
    verdict = next((v for v in plan.verdicts if v.method == plan.recommended), None)
    return f"The plan recommends {plan.recommended}. {' '.join(verdict.reasons) if verdict else ''}"


def _time_table(seconds: Mapping[str, float]) -> str:
    rows = "".join(f"<tr><td>{name}</td><td>{value:.0f} s</td></tr>" for name, value in seconds.items())
    return f"<table>{rows}</table>"
