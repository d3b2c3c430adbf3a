"""What an output folder of predictions must not be: a place where they would be taken for something else."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.workspace import (
    ARGUMENTS_FILE,
    DATASET_FILE,
    ENSEMBLE_ARGUMENTS_FILE,
    FINGERPRINT_FILE,
    POSTPROCESSING_FILE,
    POSTPROCESSING_UNFINISHED_FILE,
    QC_FEATURES_FOLDER,
    QC_FILE,
    RUN_FILE,
)

RAW_FOLDERS = ("imagesTr", "imagesTs", "labelsTr", "labelsTs")
"""Folders of a raw dataset, beside its dataset.json."""
Command = Literal["samunet_predict", "samunet_ensemble", "samunet_apply_postprocessing"]
RECORDS: dict[str, Command] = {
    ARGUMENTS_FILE: "samunet_predict",
    QC_FILE: "samunet_predict",
    QC_FEATURES_FOLDER: "samunet_predict",
    ENSEMBLE_ARGUMENTS_FILE: "samunet_ensemble",
    POSTPROCESSING_FILE: "samunet_apply_postprocessing",
    POSTPROCESSING_UNFINISHED_FILE: "samunet_apply_postprocessing",
}
"""What commands leave beside their segmentations -> the command."""


def check_owner(output: Path, command: Command) -> None:
    """Refuse a folder in which another command has left its records.

    They say how each segmentation was made and how far it can be trusted, and which cases are finished; of
    files that `command` puts there none of that is true.

    Raises:
        SamunetError: names the other command and its records.
    """
    foreign = {name: by for name, by in RECORDS.items() if by != command and (output / name).exists()}
    if foreign:
        owners = ", ".join(dict.fromkeys(foreign.values()))
        raise SamunetError(
            f"{output} holds results of {owners} ({', '.join(foreign)}); those of {command} would be taken "
            "for them. Give another output folder with -o, or remove this one if it is no longer needed."
        )


def refuse_foreign_files(output: Path, files: Iterable[Path], *records: str) -> None:
    """Refuse to replace segmentations that the command did not make.

    Args:
        output: where the command's own lie beside one of `records`.

    Raises:
        SamunetError: names them.
    """
    there = [file.name for file in files if file.exists()]
    if there and not any((output / record).exists() for record in records):
        raise SamunetError(
            f"{output} holds {listed(there)}, which this command did not make (there is no {records[0]}). "
            "Give another output folder with -o."
        )


def refuse_results(output: Path) -> None:
    """Refuse a trained model, one of its folds and what lies in it, and preprocessed data.

    Predictions there would be taken for out-of-fold ones, or replace the records of the training.

    Raises:
        SamunetError: says what the folder is.
    """
    place = output.resolve()
    for folder in (place, place.parent):
        if (folder / RUN_FILE).is_file():
            found = f"the trained fold {folder}"
        elif (folder / FINGERPRINT_FILE).is_file() and not any(folder.glob("fold_*")):
            found = f"the preprocessed data {folder}"
        elif folder == place and any(folder.glob(f"fold_*/{RUN_FILE}")):
            found = f"the trained model {folder}"
        else:
            continue
        raise SamunetError(f"{output} is or lies in {found}. Give an output folder elsewhere with -o.")


def refuse_raw_data(output: Path, raw: Path | None = None) -> None:
    """Refuse a folder of a raw dataset: predictions have the names of its labels and would replace them.

    Args:
        output: where predictions are to go; it need not exist. Links are followed.
        raw: raw folder of the workspace, where one is known; neither it nor a folder directly in it may be
            written to, for a folder of predictions has a dataset.json and would pass for a dataset. A folder
            such as `inferTs` within a dataset may.

    Raises:
        SamunetError: names the dataset or the raw folder.
    """
    advice = "Give an output folder elsewhere with -o."
    for place in (Path(os.path.abspath(output)), output.resolve()):
        for folder in (place, *place.parents):
            declared = folder.parent / DATASET_FILE
            if folder.name.lower() in map(str.lower, RAW_FOLDERS) and declared.is_file():
                raise SamunetError(
                    f"{output} is or lies in {folder.name} of the raw dataset that {declared} describes; "
                    f"predictions would replace its files. {advice}"
                )
    if raw is not None and _is_raw_or_dataset(output.resolve(), raw.resolve()):
        raise SamunetError(
            f"{output} is a place for datasets (raw data of the workspace, {raw}): predictions would pass "
            f"for one. {advice}"
        )


def refuse_dataset(output: Path) -> None:
    """Refuse a raw dataset itself, wherever it lies: predictions bring a dataset.json of their own.

    Raises:
        SamunetError: there is a dataset.json beside folders of raw data; names both.
    """
    held = [name for name in RAW_FOLDERS if (output / name).is_dir()]
    if held and (output / DATASET_FILE).is_file():
        raise SamunetError(
            f"{output} is a raw dataset ({DATASET_FILE} beside {', '.join(held)}); that file would be "
            "replaced. Give an output folder elsewhere with -o."
        )


def _is_raw_or_dataset(output: Path, raw: Path) -> bool:
    """Whether a folder is the raw folder, directly in it, or a dataset that is linked from there."""
    datasets = [folder.resolve() for folder in raw.iterdir()] if raw.is_dir() else []
    return output == raw or output.parent == raw or output in datasets


def check_output(output: Path, command: Command, raw: Path | None = None) -> None:
    """What every command that writes segmentations asks of their folder before it begins.

    Args:
        raw: raw folder of the workspace, where one is known.

    Raises:
        SamunetError: it is of a raw dataset, a trained model or preprocessed data, or holds another
            command's results.
    """
    refuse_raw_data(output, raw)
    refuse_dataset(output)
    if raw is not None:  # a command of the user's; a training puts its validation into its fold
        refuse_results(output)
    check_owner(output, command)
