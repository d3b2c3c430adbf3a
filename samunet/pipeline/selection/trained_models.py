"""Which models of a dataset are trained here with a plan, and which of them have scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samunet.trainers.portable import is_shared_model
from samunet.workspace import SUMMARY_FILE, fold_folders, validation_folder


def trained_models(results: Path, plans: str) -> dict[str, Path]:
    """Name (`2d_cnn`, `2d_cnn__TAG`) -> folder, of models with a fold that holds out cases.

    Args:
        results: results/DATASET.
        plans: name of the plan.
    """
    found = {}
    for folder in sorted(results.glob("*__*")):
        configuration, of, *tags = folder.name.split("__")
        has_folds = any(isinstance(fold, int) for fold in fold_folders(folder))
        if of == plans and len(tags) <= 1 and has_folds and not is_shared_model(folder):
            found["__".join([configuration, *tags])] = folder
    return found


def scored_models(results: Path, plans: str, folds: Sequence[int]) -> tuple[str, ...]:
    """Names of the trained models that have scores of all these folds, of whatever split and data."""
    return tuple(
        name
        for name, folder in trained_models(results, plans).items()
        if all((validation_folder(folder, fold) / SUMMARY_FILE).is_file() for fold in folds)
    )
