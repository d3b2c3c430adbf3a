"""What has to be said of the scores of a report before they are believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samunet.pipeline.known_patients import known_patients
from samunet.pipeline.out_of_fold import read_origins
from samunet.pipeline.report.collect import Model


def score_remarks(scored: Sequence[Model], *, ignore_groups: bool) -> str:
    """Sentences on what makes scores too good.

    Args:
        scored: models with scored cases.
        ignore_groups: groups are sites: only declared patients may be in a training and among its cases.
    """
    return " ".join(_of_models({model.title: _known(model, ignore_groups) for model in scored}))


def _known(model: Model, ignore_groups: bool) -> str:
    folds = [fold for fold in model.folds if fold.cases]
    origins = read_origins(model.folder, [fold.fold for fold in folds], model.plan.labels)
    if ignore_groups:
        origins = origins.without_groups
    found = known_patients(origins, [(f.run.train, [case.name for case in f.cases]) for f in folds])
    return found.text()


def _of_models(sentences: Mapping[str, str]) -> list[str]:
    """Each different sentence once, with the models that it is of where it is not of all."""
    told = []
    for sentence in dict.fromkeys(filter(None, sentences.values())):
        titles = [title for title, own in sentences.items() if own == sentence]
        told.append(sentence if len(titles) == len(sentences) else f"{', '.join(titles)}: {sentence}")
    return told
