"""Scores are compared only where all of them were made against the same labels.

A label that was corrected after a model was validated gives the models scored before and after it different
voxels of a class, which is how it is noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from samunet.data.dataset import RawDataset
from samunet.data.readers import read_label
from samunet.evaluation.case_scores import class_counts, joint_histogram, to_indices
from samunet.evaluation.scores import Scores
from samunet.inference.probabilities import probability_files
from samunet.listing import fold_words
from samunet.pipeline.run_commands import TrainedAs
from samunet.pipeline.selection.model_folder import ModelFolder

Sizes = dict[str, float]
"""Class or region -> voxels of the reference, ignored ones not counted."""


def differing_cases(
    one: Mapping[str, Mapping[str, Scores]], other: Mapping[str, Mapping[str, Scores]], cases: Iterable[str]
) -> list[str]:
    """Cases (-> class -> metric) of which two models were scored on different labels."""
    return [case for case in cases if _sizes(one[case]) != _sizes(other[case])]


def rescoring(trained: TrainedAs, folds: Sequence[int], *, probabilities: bool) -> str:
    """In words, that folds were scored on other labels, with the command that mends it."""
    flags = ["--val", *(["--npz"] if probabilities else [])]
    command = trained.command(folds, *flags)
    return f"{fold_words(folds)} scored on other labels; validate again: {command}"


def mark_outdated(raw: RawDataset, models: Sequence[ModelFolder]) -> list[ModelFolder]:
    """The models; those without faults that were scored on other labels than the files hold get that one.

    Labels are read only where models do not agree; that all of them are outdated alike is not noticed.

    Raises:
        SamunetError: a label file cannot be read.
    """
    sizes = [_sizes_of_model(model) for model in models if not model.faults]
    doubtful = [case for case in (sizes[0] if sizes else ()) if any(s[case] != sizes[0][case] for s in sizes)]
    now = {case: _label_sizes(raw, case) for case in doubtful}
    return [model if model.faults or not now else _marked(raw, model, now) for model in models]


def _marked(raw: RawDataset, model: ModelFolder, now: Mapping[str, Sizes]) -> ModelFolder:
    then = _sizes_of_model(model)
    outdated = {case for case, sizes in now.items() if then[case] != sizes}
    folds = [number for number, fold in model.folds.items() if outdated & set(fold.run.val)]
    if not folds:
        return model
    example = model.validation(folds[0]) / f"{model.folds[folds[0]].run.val[0]}{raw.label_ending}"
    kept = probability_files(example)[0].is_file()
    return replace(model, faults=(rescoring(model.trained, folds, probabilities=kept),))


def _sizes_of_model(model: ModelFolder) -> dict[str, Sizes]:
    """Case -> sizes, of the cases that its folds held out."""
    return {case: _sizes(fold.summary.cases[case]) for fold in model.folds.values() for case in fold.run.val}


def _sizes(scores: Mapping[str, Scores]) -> Sizes:
    return {name: metrics["n_ref"] for name, metrics in scores.items()}


def _label_sizes(raw: RawDataset, case: str) -> Sizes:
    """Sizes as the evaluation counts them, in the label file as it is."""
    file = raw.case(case).label
    assert file is not None
    indices = to_indices(read_label(file)[0], raw.labels)
    counts = class_counts(joint_histogram(indices, indices), raw.labels)
    return {name: float(count.num_reference) for name, count in counts.items()}
