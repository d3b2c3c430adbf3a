"""What has to be said of the scores of a report before they are believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from samunet.errors import SamunetError
from samunet.listing import fold_words
from samunet.pipeline.known_patients import known_patients
from samunet.pipeline.out_of_fold import read_origins
from samunet.pipeline.predicted_as import PredictedAs, predicted_as, told_apart
from samunet.pipeline.report.collect import FoldRun, Model
from samunet.workspace import validation_folder


def score_remarks(scored: Sequence[Model], *, ignore_groups: bool) -> str:
    """Sentences on what makes scores too good, and on folds that do not belong together.

    Args:
        scored: models with scored cases.
        ignore_groups: groups are sites: only declared patients may be in a training and among its cases.
    """
    found = (
        {model.title: _known(model, ignore_groups) for model in scored},
        {model.title: _trained_apart(model) for model in scored},
        {model.title: _predicted_apart(model) for model in scored},
    )
    return " ".join(sentence for kind in found for sentence in _of_models(kind))


def _known(model: Model, ignore_groups: bool) -> str:
    folds = _scored_folds(model)
    origins = read_origins(model.folder, [fold.fold for fold in folds], model.plan.labels)
    if ignore_groups:
        origins = origins.without_groups
    found = known_patients(origins, [(f.run.train, [case.name for case in f.cases]) for f in folds])
    return found.text()


def _scored_folds(model: Model) -> list[FoldRun]:
    """Those that keep cases out have a number."""
    return [fold for fold in model.folds if fold.cases and fold.fold.isdecimal()]


def _trained_apart(model: Model) -> str:
    """Folds of different configurations or teachers, which the selection would refuse to put together."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for fold in _scored_folds(model):
        teacher = "" if fold.run.distillation is None else str(fold.run.distillation.get("teacher"))
        kinds.setdefault((fold.run.configuration_hash, teacher), []).append(int(fold.fold))
    if len(kinds) < 2:
        return ""
    told = " and ".join(map(fold_words, kinds.values()))
    return (
        f"Folds that do not belong together are in the means: {told} were trained on different plans, with "
        "different settings or teachers."
    )


def _predicted_apart(model: Model) -> str:
    """Folds whose cases were predicted in different ways; those of which that is not known are left out."""
    ways: dict[int, PredictedAs] = {}
    for fold in _scored_folds(model):
        with suppress(SamunetError):
            ways[int(fold.fold)] = predicted_as(validation_folder(model.folder, fold.fold), "")
    if len(set(ways.values())) < 2:
        return ""
    return f"The cases were predicted in different ways ({told_apart(ways)}), which the means mix."


def _of_models(sentences: Mapping[str, str]) -> list[str]:
    """Each different sentence once, with the models that it is of where it is not of all."""
    told = []
    for sentence in dict.fromkeys(filter(None, sentences.values())):
        titles = [title for title, own in sentences.items() if own == sentence]
        told.append(sentence if len(titles) == len(sentences) else f"{', '.join(titles)}: {sentence}")
    return told
