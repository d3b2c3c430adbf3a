"""The trained folds of a model folder (results/DATASET/CONFIGURATION__PLANS)."""

from __future__ import annotations

import logging
from pathlib import Path

from samunet.errors import SamunetError
from samunet.trainers.checkpoint import Checkpoint
from samunet.trainers.portable import WEIGHTS_FILE, is_shared_model
from samunet.workspace import FINAL, Fold, fold_folder, fold_folders

logger = logging.getLogger(__name__)


def find_folds(model_folder: Path, checkpoint: str = FINAL, *, flag: str | None = "-chk") -> tuple[Fold, ...]:
    """Folds of a model folder that have the checkpoint, `all` last; all folds of a shared model.

    Folders of other names, such as a copy `fold_0_old`, are left out with a warning.

    Args:
        flag: what names another checkpoint in the user's command; None where nothing does.

    Raises:
        SamunetError: no such folder, or no fold has it; says what is there.
    """
    if not model_folder.is_dir():
        raise SamunetError(
            f"There is no model folder {model_folder}. Train first, or correct -c, -p or --tag."
        )
    stored = _stored_name(model_folder, checkpoint)
    if model_folder.name.startswith("fold_") and (model_folder / stored).is_file():
        raise SamunetError(
            f"{model_folder} is one fold of a model. Give the model's folder {model_folder.parent}, and the "
            f"fold with -f {model_folder.name.removeprefix('fold_')}."
        )
    folds = [fold for fold, folder in fold_folders(model_folder).items() if (folder / stored).is_file()]
    trained = {f.name for f in model_folder.glob("fold_*") if (f / stored).is_file()}
    foreign = sorted(trained - {f"fold_{fold}" for fold in folds})
    if foreign:
        logger.warning("%s: %s is no fold_NUMBER or fold_all; left out.", model_folder, ", ".join(foreign))
    if not folds:
        raise SamunetError(f"{model_folder} holds no fold with {checkpoint}.{_others(model_folder, flag)}")
    return tuple(folds)


def _others(model_folder: Path, flag: str | None) -> str:
    """Which checkpoints there are instead, and what to do."""
    names = sorted({file.name for file in model_folder.glob("fold_*/checkpoint_*.pth")})
    if not names:
        return ""
    choose = "" if flag is None else f"choose with {flag}, or "
    return f" There is {' and '.join(names)}: {choose}finish the training with --c of samunet_train."


def checkpoint_file(model_folder: Path, fold: Fold, checkpoint: str, *, flag: str | None = "-chk") -> Path:
    """File of a fold's checkpoint, or of its weights in a shared model.

    Args:
        flag: as for `find_folds`.

    Raises:
        SamunetError: the fold is not trained; says which are.
    """
    file = fold_folder(model_folder, fold) / _stored_name(model_folder, checkpoint)
    if not file.is_file():
        trained = ", ".join(map(str, find_folds(model_folder, checkpoint, flag=flag)))
        raise SamunetError(f"Fold {fold} is not trained: there is no {file}. Trained folds: {trained}.")
    return file


def _stored_name(model_folder: Path, checkpoint: str) -> str:
    return WEIGHTS_FILE if is_shared_model(model_folder) else checkpoint


def check_alike(model_folder: Path, stored: dict[Fold, Checkpoint]) -> None:
    """Refuse to average folds that were trained from different configurations.

    Raises:
        SamunetError: naming the folds.
    """
    kinds = {fold: _kind(checkpoint) for fold, checkpoint in stored.items()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"fold {fold}: {kind}" for fold, kind in kinds.items())
        raise SamunetError(
            f"The folds of {model_folder} were trained from different configurations ({told}). "
            "Choose folds that belong together with -f, or train them again."
        )


def _kind(checkpoint: Checkpoint) -> str:
    """The configuration's hash, and what taught it, if anything did."""
    taught = checkpoint.overrides.get("distillation")
    own = checkpoint.plan.configuration_hash(checkpoint.configuration)
    if taught is None:
        return own
    return f"{own} distilled from {taught['teacher']} ({taught['target']}, lambda {taught['weight']:g})"
