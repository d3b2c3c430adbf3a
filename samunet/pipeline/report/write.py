"""Compose the report of a dataset: one HTML file that needs no network."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np

from samunet import __version__
from samunet.data.dataset import RawDataset
from samunet.errors import SamunetError
from samunet.evaluation.bootstrap import FEWEST_UNITS
from samunet.evaluation.scores import shown_groups
from samunet.pipeline.overlays import colour_of, legend_names
from samunet.pipeline.report import content
from samunet.pipeline.report.collect import Model, ScoredCase, collect_models
from samunet.pipeline.report.commands import training_commands
from samunet.pipeline.report.content import Gallery, Page, Picture, Table
from samunet.pipeline.report.intervals import dice_interval, group_interval
from samunet.pipeline.report.pictures import draw_curves, draw_planes, draw_scores
from samunet.pipeline.report.remarks import score_remarks
from samunet.pipeline.report.verdict import VerdictContent, verdict_content
from samunet.pipeline.run_commands import TrainedAs
from samunet.planning.fingerprint import Fingerprint
from samunet.planning.plan import Plan
from samunet.whole_files import write_text
from samunet.workspace import DATASET_FILE, Workspace, short_dataset_name

logger = logging.getLogger(__name__)

SEED = 12345
SECTIONS = (
    ("verdict", "Verdict"),
    ("scores", "Scores"),
    ("pictures", "Pictures"),
    ("curves", "Training"),
    ("weights", "Weights"),
    ("plan", "Plan"),
    ("data", "Data"),
    ("repeat", "Repeat"),
)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is reported.

    Attributes:
        dataset: full name.
        plans: only models of this plan; None takes all.
        output: the file; None is `report.html` in the dataset's results.
        pictures: worst, median and best case of every model; they show patients.
        ignore_groups: declared groups are sites, not patients: intervals draw patients or cases.
    """

    dataset: str
    plans: str | None = None
    output: Path | None = None
    pictures: bool = True
    ignore_groups: bool = False


def write_report(workspace: Workspace, options: ReportOptions) -> Path:
    """Write the report of everything that is trained for a dataset.

    Returns:
        The HTML file.

    Raises:
        SamunetError: nothing is trained, or a file of a run cannot be read.
    """
    models = collect_models(workspace, options.dataset, options.plans)
    page = _page(workspace, options, models)
    file = options.output or workspace.results / options.dataset / "report.html"
    write_text(file, render(page))
    return file


def render(page: Page) -> str:
    """The page as HTML; everything that comes from files is escaped."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    folder = files("samunet.pipeline.report")
    sources = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.html", "table.html")}
    environment = Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(page=page)


def _page(workspace: Workspace, options: ReportOptions, models: Sequence[Model]) -> Page:
    scored = [model for model in models if model.cases]
    draw = partial(dice_interval, ignore_groups=options.ignore_groups)
    overall = {model.title: draw(model) for model in scored}
    by_class = {m.title: {name: draw(m, (name,)) for name in m.plan.labels.foreground} for m in scored}
    by_group = {
        m.title: {group: group_interval(m, group) for group in shown_groups(c.group for c in m.cases)}
        for m in scored
    }
    fingerprint_file = workspace.fingerprint_file(options.dataset)
    fingerprint = Fingerprint.load(fingerprint_file) if fingerprint_file.exists() else None
    galleries = _galleries(workspace.raw / options.dataset, scored) if options.pictures else ()
    verdict = _verdict(workspace, options, models)
    hidden = {"pictures"} if not galleries else set()
    return Page(
        dataset=options.dataset,
        summary=_summary(models[0]),
        date=datetime.now(timezone.utc).date().isoformat(),
        version=__version__,
        sections=tuple(section for section in SECTIONS if section[0] not in hidden),
        verdict=verdict.sentences,
        comparisons=verdict.comparisons,
        scores=content.score_table(models, overall),
        scores_note=_scores_note(options, scored),
        scores_chart=draw_scores(scored, overall, np.random.default_rng(SEED)) if scored else "",
        classes=content.class_table(models, by_class),
        groups=content.group_table(models, by_group),
        cases=content.case_table(models),
        case_classes=content.case_class_table(models),
        key=_key(models[0]),
        galleries=galleries,
        curves=tuple(
            Gallery(title=m.title, pictures=(Picture(caption=f"curves of {m.title}", source=draw_curves(m)),))
            for m in models
        ),
        runs=content.run_table(models),
        hardware=content.hardware_lines(models),
        weights=content.weight_lines(models),
        plans=tuple(content.plan_content(plan) for plan in _plans(workspace, models)),
        data=Table(head=("",), rows=()) if fingerprint is None else content.data_table(fingerprint),
        commands=(*training_commands(options.dataset, models), *verdict.commands),
    )


def _verdict(workspace: Workspace, options: ReportOptions, models: Sequence[Model]) -> VerdictContent:
    """Of the plan that was named, else of one whose models have been compared, the best model's first."""
    names = list(dict.fromkeys(model.plan.name for model in models))
    compared = [name for name in names if workspace.selection_file(options.dataset, name).is_file()]
    plans = options.plans or next(iter(compared), names[0])
    scored = {model.plan.name for model in models if model.cases}
    found = verdict_content(workspace, options.dataset, plans, scored=bool(scored))
    others = [name for name in names if name in scored - {plans}]
    if not others:
        return found
    commands = "; ".join(f"samunet_report {short_dataset_name(options.dataset)} -p {name}" for name in others)
    told = f"This is of the plan {plans} alone; models of other plans are scored too ({commands})."
    return replace(found, sentences=(*found.sentences, told))


def _summary(model: Model) -> str:
    plan = model.plan
    channels = ", ".join(plan.channel_names)
    return (
        f"{plan.num_training} training cases, channel{'s' * (len(plan.channel_names) > 1)} {channels}; "
        f"{', '.join(plan.labels.foreground)}."
    )


def _scores_note(options: ReportOptions, scored: Sequence[Model]) -> str:
    if not scored:
        command = TrainedAs(dataset=options.dataset, configuration="auto").command([0])
        return f"None yet: train a fold that keeps cases out, such as {command}."
    counts = {len(model.cases) for model in scored}
    unequal = " The methods were scored on different cases; compare only the cases they share." * (
        len({tuple(case.name for case in model.cases) for model in scored}) > 1
    )
    remarks = score_remarks(scored, ignore_groups=options.ignore_groups)
    note = (
        f"{' or '.join(map(str, sorted(counts)))} cases, each predicted by the fold that had not seen it. "
        f"Means over classes of means over cases; a class that is in neither map of a case does not count "
        f"there. n stands where fewer than {FEWEST_UNITS} patients (cases, where none are declared) hold the "
        f"class, of several the rarest: the interval is then too narrow, with one there is none.{unequal}"
    )
    return f"{note} {remarks}".rstrip()


def _key(model: Model) -> tuple[tuple[str, str], ...]:
    names = legend_names(model.plan.labels).values()
    return tuple((name, colour_of(position)) for position, name in enumerate(names))


def _galleries(raw: Path, scored: Sequence[Model]) -> tuple[Gallery, ...]:
    is_there = scored and (raw / DATASET_FILE).is_file()
    dataset = RawDataset.load(raw, strict=False) if is_there else None
    return tuple(_gallery(dataset, model) for model in scored)


def _gallery(dataset: RawDataset | None, model: Model) -> Gallery:
    pictures = [
        Picture(caption=_caption(rank, case), source=_planes(dataset, model, case))
        for rank, case in extremes(model.cases)
    ]
    return Gallery(title=model.title, pictures=tuple(pictures))


def extremes(cases: Sequence[ScoredCase]) -> list[tuple[str, ScoredCase]]:
    """Worst, median and best case by mean Dice, each once; cases without a Dice are left out."""
    ordered = sorted((c for c in cases if not math.isnan(c.mean())), key=lambda c: (c.mean(), c.name))
    if not ordered:
        return []
    ranks = {0: "worst", len(ordered) // 2: "median", len(ordered) - 1: "best"}
    return [(rank, ordered[position]) for position, rank in sorted(ranks.items())]


def _caption(rank: str, case: ScoredCase) -> str:
    scores = ", ".join(
        f"{name} {metrics['Dice']:.3f}"
        for name, metrics in case.metrics.items()
        if not math.isnan(metrics["Dice"])
    )
    return f"{rank}: {case.name}, fold {case.fold}, mean Dice {case.mean():.3f} ({scores})"


def _planes(dataset: RawDataset | None, model: Model, case: ScoredCase) -> str:
    """The picture, or nothing where a file has gone since or cannot be read; the caption stays."""
    found = None if dataset is None or case.name not in dataset.case_names else dataset.case(case.name)
    scored = (case.prediction_file, case.reference_file)
    if found is None or not all(file.is_file() for file in (*found.images, *scored)):
        logger.warning("%s: image, reference or prediction are no longer there; no picture.", case.name)
        return ""
    try:
        return draw_planes(case, found.images, legend_names(model.plan.labels))
    except SamunetError as fault:
        logger.warning("%s: no picture. %s", case.name, fault)
        return ""


def _plans(workspace: Workspace, models: Sequence[Model]) -> tuple[Plan, ...]:
    """Each plan once, as it was planned; a model's own copy, with what was overridden, where that is gone."""
    copies = {model.plan.name: model.plan for model in models}
    places = {name: workspace.plan_file(plan.dataset, name) for name, plan in copies.items()}
    return tuple(Plan.load(places[n]) if places[n].is_file() else plan for n, plan in copies.items())
