"""Scores are compared only where all of them were made against the same labels.

A label that was corrected after a model was validated gives the models scored before and after it different
voxels of a class, which is how it is noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from samunet.data.dataset import RawDataset
from samunet.evaluation.scores import Scores
from samunet.inference.probabilities import probability_files
from samunet.listing import fold_words
from samunet.pipeline.reference_sizes import Sizes, label_sizes, scored_sizes
from samunet.pipeline.selection.model_folder import ModelFolder


def differing_cases(
    one: Mapping[str, Mapping[str, Scores]], other: Mapping[str, Mapping[str, Scores]], cases: Iterable[str]
) -> list[str]:
    """Cases (-> class -> metric) of which two models were scored on different labels."""
    return [case for case in cases if scored_sizes(one[case]) != scored_sizes(other[case])]


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
    sizes = [_sizes_of_model(model) for model in models if not model.faults]
    doubtful = [case for case in (sizes[0] if sizes else ()) if any(s[case] != sizes[0][case] for s in sizes)]
    now = {case: label_sizes(raw, case) for case in doubtful}
    return [model if model.faults or not now else _marked(raw, model, now) for model in models]


def _marked(raw: RawDataset, model: ModelFolder, now: Mapping[str, Sizes]) -> ModelFolder:
    then = _sizes_of_model(model)
    outdated = {case for case, sizes in now.items() if then[case] != sizes}
    folds = [number for number, fold in model.folds.items() if outdated & set(fold.run.val)]
    if not folds:
        return model
    example = model.validation(folds[0]) / f"{model.folds[folds[0]].run.val[0]}{raw.label_ending}"
    kept = probability_files(example)[0].is_file()
    return replace(model, faults=(rescoring(model, folds, probabilities=kept),))


def _sizes_of_model(model: ModelFolder) -> dict[str, Sizes]:
    """Case -> sizes, of the cases that its folds held out."""
    return {
        case: scored_sizes(fold.summary.cases[case]) for fold in model.folds.values() for case in fold.run.val
    }
