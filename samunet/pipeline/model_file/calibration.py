"""qc_model.json of a shared model: only that of the networks and validations that are there now."""

from __future__ import annotations

from pathlib import Path

from samunet.errors import SamunetError
from samunet.pipeline.out_of_fold import fold_hash
from samunet.pipeline.qc.model import QCModel
from samunet.records import read_record
from samunet.workspace import QC_MODEL_FILE, is_validated


def shared_calibration(model_folder: Path) -> tuple[QCModel | None, str]:
    """The calibration of a model's predicted Dice, and why it is left out; empty where it is not.

    Who installs the model has no validations to hold it against, so one that no longer goes with them would
    pass for that of the new networks.
    """
    file = model_folder / QC_MODEL_FILE
    if not file.is_file():
        return None, ""
    try:
        model = read_record(QCModel, file)
    except SamunetError as fault:
        return None, f"{QC_MODEL_FILE} is left out: {fault} {_again(model_folder)}"
    stale = [
        fold
        for fold, made in model.made_from.items()
        if not is_validated(model_folder, fold) or fold_hash(model_folder, fold) != made
    ]
    if stale:
        return None, (
            f"{QC_MODEL_FILE} is left out: it was made from other validations than those of now (fold "
            f"{', '.join(stale)} changed, or is not validated). {_again(model_folder)}"
        )
    return model, ""


def _again(model_folder: Path) -> str:
    return f"Run samunet_calibrate_qc -m {model_folder}, then export again."
