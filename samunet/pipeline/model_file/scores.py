"""scores.json of a shared model: its validation as means with intervals, cases without names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samunet.data.groups import Origins, Unit, unit_numbers
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.evaluation.bootstrap import mean_interval, score_array
from samunet.evaluation.scores import json_score
from samunet.evaluation.summary_file import Summary, read_summary
from samunet.pipeline.known_patients import KnownPatients, known_patients
from samunet.pipeline.out_of_fold import read_origins
from samunet.pipeline.predicted_as import PredictedAs, predicted_as
from samunet.trainers.identity import read_run
from samunet.workspace import SUMMARY_FILE, validation_folder

SHOWN_METRICS = ("Dice", "SurfaceDice", "HD95", "ASSD", "VolumeError_percent")


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Mean over the cases in which a score is defined; a 95 % interval for Dice with two patients or more."""

    cases: int
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class SharedScores:
    """Content of scores.json.

    Attributes:
        folds: whose validation cases were scored, each by the fold that had not seen them.
        cases: in all; of `units` patients, groups or cases (`unit`), which the bootstrap drew.
        tolerance_mm: of the surface Dice.
        dice: mean over the classes of the means over the cases.
        classes: class or region -> metric -> mean.
        per_case: case -> class -> metric -> score; None unless it was asked for.
        left_out: in words, folds without scores.
        known: of the cases, those of patients with other cases in the training of the fold.
    """

    folds: tuple[int | str, ...]
    cases: int
    units: int
    unit: Unit
    tolerance_mm: float
    dice: Mean
    classes: dict[str, dict[str, Mean]]
    per_case: dict[str, dict[str, dict[str, float | None]]] | None
    left_out: tuple[str, ...]
    known: KnownPatients


def shared_scores(
    model_folder: Path,
    folds: Sequence[int | str],
    labels: LabelSet,
    checkpoint: str,
    *,
    include_cases: bool = False,
) -> tuple[SharedScores | None, tuple[str, ...]]:
    """Scores of a model's folds on the cases that they kept out of training.

    Args:
        model_folder: results/DATASET/CONFIGURATION__PLANS.
        folds: that are shared.
        labels: of the plan.
        checkpoint: that is shared; scores of another one, or of cases that were predicted otherwise than the
            model does by itself (settings, step size, mirroring), are left out.
        include_cases: keep the scores of every case under its name.

    Returns:
        The scores, None where no fold has any; and in words, which folds have none.
    """
    read = _read(model_folder, folds, labels, checkpoint)
    if not read.summaries:
        return None, read.left_out
    cases = {name: scores for summary in read.summaries.values() for name, scores in summary.cases.items()}
    if len(cases) < sum(len(summary.cases) for summary in read.summaries.values()):
        raise SamunetError(
            f"Folds of {model_folder} validated the same cases, so they were trained with different splits. "
            "Name the folds that belong together with -f."
        )
    units, unit = _units(list(cases), read.origins)
    return SharedScores(
        folds=tuple(read.summaries),
        cases=len(cases),
        units=int(units.max()) + 1,
        unit=unit,
        tolerance_mm=next(iter(read.summaries.values())).tolerance_mm,
        dice=_with_interval(list(cases.values()), tuple(labels.foreground), units),
        classes={name: _of_class(name, list(cases.values()), units) for name in labels.foreground},
        per_case=_plain(cases) if include_cases else None,
        left_out=read.left_out,
        known=known_patients(
            read_origins(model_folder, tuple(read.summaries), labels),
            [(read.train[fold], summary.cases) for fold, summary in read.summaries.items()],
        ),
    ), read.left_out


@dataclass(frozen=True, kw_only=True)
class _Read:
    """Summaries of the folds that have one of this checkpoint, the folds' training cases; where the scored
    ones come from."""

    summaries: dict[int | str, Summary]
    train: dict[int | str, tuple[str, ...]]
    origins: Origins
    left_out: tuple[str, ...]


def _read(model_folder: Path, folds: Sequence[int | str], labels: LabelSet, checkpoint: str) -> _Read:
    summaries: dict[int | str, Summary] = {}
    trained: dict[int | str, tuple[str, ...]] = {}
    origins = Origins()
    left_out = []
    for fold in folds:
        file = validation_folder(model_folder, fold) / SUMMARY_FILE
        reason = _why_not(fold, file, checkpoint)
        if reason is not None:
            left_out.append(f"fold {fold}: {reason}")
            continue
        summary = read_summary(file, labels)
        run = read_run(file.parents[1])
        train = () if run is None else run.train
        seen = set(train) & set(summary.cases)
        if seen:
            left_out.append(
                f"fold {fold}: {len(seen)} of the cases that it was scored on are among those of its training"
            )
            continue
        summaries[fold], trained[fold] = summary, train
        origins = origins.merged(summary.origins)
    return _Read(summaries=summaries, train=trained, origins=origins, left_out=tuple(left_out))


def _why_not(fold: int | str, summary: Path, checkpoint: str) -> str | None:
    """Why a fold's scores are not shared, or None."""
    if fold == "all":
        return "it was trained on all cases, so none is left to validate on"
    if not summary.is_file():
        return "it was not validated"
    try:
        predicted = predicted_as(summary.parent, "samunet_train --val")
    except SamunetError:  # the message names folders of this machine, which are no part of a shared file
        return "it is not known how its cases were predicted"
    by_itself = PredictedAs(checkpoint=checkpoint)
    return None if predicted == by_itself else f"it was validated with {predicted.text()}"


def _units(names: list[str], origins: Origins) -> tuple[np.ndarray, Unit]:
    """Number of the unit of each case; patients or groups count where every case has one."""
    if any(name not in origins.units for name in names):
        return np.arange(len(names)), "case"
    return unit_numbers(names, origins), origins.unit


def _of_class(name: str, cases: list, units: np.ndarray) -> dict[str, Mean]:
    found = {metric: _mean([case[name][metric] for case in cases]) for metric in SHOWN_METRICS}
    return {**found, "Dice": _with_interval(cases, (name,), units)}


def _mean(values: list[float]) -> Mean:
    defined = [value for value in values if not math.isnan(value)]
    return Mean(cases=len(defined), value=math.fsum(defined) / len(defined) if defined else None)


def _with_interval(cases: list, names: tuple[str, ...], units: np.ndarray) -> Mean:
    """Mean Dice over classes; cases count in which any of them is defined."""
    values = score_array(cases, names, "Dice")
    count = int((~np.isnan(values)).any(axis=1).sum())
    found = mean_interval(values, units)
    value, low, high = (json_score(n) for n in (found.value, found.low, found.high))
    return Mean(cases=count, value=value, low=low, high=high)


def _plain(cases: dict) -> dict[str, dict[str, dict[str, float | None]]]:
    return {
        case: {
            name: {metric: json_score(scores[metric]) for metric in SHOWN_METRICS}
            for name, scores in classes.items()
        }
        for case, classes in cases.items()
    }
