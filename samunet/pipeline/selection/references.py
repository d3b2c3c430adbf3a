"""Scores are compared only where all of them were made against the same labels.

A label that was corrected after a model was validated is noticed because the models scored before and after
that have different references in their summaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from samunet.data.dataset import RawDataset
from samunet.evaluation.scores import ReferenceContent
from samunet.inference.probabilities import probability_files
from samunet.listing import fold_words
from samunet.pipeline.current_label import current_label
from samunet.pipeline.selection.model_folder import ModelFolder


def differing_cases(
    one: Mapping[str, ReferenceContent], other: Mapping[str, ReferenceContent], cases: Iterable[str]
) -> list[str]:
    """Cases that two models were scored on different labels of."""
    return [case for case in cases if one[case].differs(other[case])]


def rescoring(model: ModelFolder, folds: Sequence[int], *, probabilities: bool) -> str:
    """In words, that folds were scored on other labels, with the command that mends it."""
    command = model.validation_again(folds, probabilities=probabilities)
    return f"{fold_words(folds)} scored on other labels; validate again: {command}"


def mark_outdated(raw: RawDataset, models: Sequence[ModelFolder]) -> list[ModelFolder]:
    """The models; those without faults that were scored on other labels than the files hold get that one.

    Labels are read only where models do not agree; that all of them are outdated alike is not noticed.

    Raises:
        SamunetError: a label file cannot be read.
    """
    scored = [_references(model) for model in models if not model.faults]
    doubtful = {case for one in scored for case in differing_cases(one, scored[0], scored[0])}
    now = {case: current_label(raw, case) for case in sorted(doubtful)}
    return [model if model.faults or not now else _marked(raw, model, now) for model in models]


def _marked(raw: RawDataset, model: ModelFolder, now: Mapping[str, ReferenceContent]) -> ModelFolder:
    outdated = set(differing_cases(_references(model), now, now))
    folds = [number for number, fold in model.folds.items() if outdated & set(fold.run.val)]
    if not folds:
        return model
    example = model.validation(folds[0]) / f"{model.folds[folds[0]].run.val[0]}{raw.label_ending}"
    kept = probability_files(example)[0].is_file()
    return replace(model, faults=(rescoring(model, folds, probabilities=kept),))


def _references(model: ModelFolder) -> dict[str, ReferenceContent]:
    """Of the cases that its folds held out."""
    found: dict[str, ReferenceContent] = {}
    for fold in model.folds.values():
        references = fold.summary.references
        found |= {case: references[case] for case in fold.run.val}
    return found
