"""The other folds of a model: only those of one configuration, and one teacher, can be averaged."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from samunet.errors import SamunetError
from samunet.planning.plan import WeightsUsed
from samunet.trainers.checkpoint import checkpoints_in
from samunet.trainers.identity import (
    Identity,
    RunRecord,
    configuration_differences,
    distillation_differences,
    read_run,
)
from samunet.workspace import fold_folders

TAUGHT = ("teacher", "target", "weight")
"""Keys of a distillation in which folds that are averaged must agree."""


def other_folds_warning(folder: Path, wanted: Identity, *, overwrite: bool) -> str | None:
    """What is said before a fold starts that does not go with the trained folds beside it.

    Prediction refuses to average such folds, but only once all of them are trained.

    Args:
        folder: of the run that starts.
        wanted: what it will be.
        overwrite: whether it replaces one, as the others may be to be replaced too.

    Returns:
        The warning, or None where the folds go together or there are no others.
    """
    alike: dict[str, list[str]] = {}
    for fold, found in _trained_beside(folder):
        with suppress(SamunetError):  # nor is what cannot be compared
            told = _differences(found, wanted)
            if told:
                alike.setdefault("; ".join(told), []).append(fold)
    if not alike:
        return None
    shown = ", ".join(f"fold {' '.join(folds)} ({told})" for told, folds in alike.items())
    unless = "Unless those are to be trained anew as well, repeat" if overwrite else "Repeat"
    return (
        f"Warning: {folder.parent} holds folds that were trained otherwise: {shown}. Folds of different "
        f"settings cannot be predicted together. {unless} their settings (--c, naming one of them together "
        "with this fold, repeats them), or keep this training apart with --tag."
    )


def refuse_other_weights(folder: Path, now: WeightsUsed, replaced: Collection[int | str] = ()) -> None:
    """Refuse to start a fold from other pretrained weights than the folds beside it.

    Args:
        folder: of the run that starts; what it holds itself does not count.
        now: the weights that it would start from.
        replaced: folds that the same command trains anew; they do not count either.

    Raises:
        SamunetError: names both files.
    """
    others = {str(fold) for fold in replaced}
    for fold, found in _trained_beside(folder):
        there = found.weights
        if there is not None and fold not in others and there.sha256 != now.sha256:
            raise SamunetError(
                f"Fold {fold} of {folder.parent} started from the weights {there.file} (SHA-256 "
                f"{there.sha256[:12]}...), this one would from {now.file} ({now.sha256[:12]}...). Folds of "
                "one model begin alike: name the same file with -w, keep this training apart with --tag, or "
                "train all these folds anew in one command with --overwrite."
            )


def _trained_beside(folder: Path) -> Iterator[tuple[str, RunRecord]]:
    """Fold and record of the trained folds of the same model, without the one in `folder`."""
    for fold, beside in fold_folders(folder.parent).items():
        if beside == folder or not checkpoints_in(beside):
            continue
        found = None
        with suppress(SamunetError):  # a broken run.json of another fold is no reason not to train this one
            found = read_run(beside)
        if found is not None:
            yield str(fold), found


def _differences(found: RunRecord, wanted: Identity) -> list[str]:
    taught = [
        None if kept is None else {key: kept.get(key) for key in TAUGHT}
        for kept in (found.distillation, wanted.distillation)
    ]
    return configuration_differences(found, wanted) + distillation_differences(*taught)
