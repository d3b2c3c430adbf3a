"""What an output folder of predictions must not be: a place where they would be taken for something else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from samunet.errors import SamunetError
from samunet.workspace import (
    ARGUMENTS_FILE,
    ENSEMBLE_ARGUMENTS_FILE,
    POSTPROCESSING_FILE,
    QC_FEATURES_FOLDER,
    QC_FILE,
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


def refuse_raw_data(output: Path, raw: Path | None = None) -> None:
    """Refuse a folder of a raw dataset: predictions have the names of its labels and would replace them.

    Args:
        output: where predictions are to go; it need not exist. Links are followed.
        raw: raw folder of the workspace, where one is known; nothing may be written there at all, for a
            folder of predictions has a dataset.json and would pass for a dataset.

    Raises:
        SamunetError: names the dataset or the raw folder.
    """
    advice = "Give an output folder elsewhere with -o."
    for place in (Path(os.path.abspath(output)), output.resolve()):
        for folder in (place, *place.parents):
            declared = folder.parent / "dataset.json"
            if folder.name.lower() in map(str.lower, RAW_FOLDERS) and declared.is_file():
                raise SamunetError(
                    f"{output} is or lies in {folder.name} of the raw dataset that {declared} describes; "
                    f"predictions would replace its files. {advice}"
                )
    if raw is not None and _lies_in(output.resolve(), raw):
        raise SamunetError(
            f"{output} lies in the raw data of the workspace ({raw}): predictions would replace images or "
            f"labels there, or pass for a dataset. {advice}"
        )


def _lies_in(output: Path, raw: Path) -> bool:
    """Whether a folder is or lies in the raw folder or one of its datasets, which may be links."""
    if not raw.is_dir():
        return False
    above = {_identity(folder) for folder in (output, *output.parents)} - {None}
    return any(_identity(place) in above for place in (raw, *raw.iterdir()))


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from all others, whatever it is called; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_output(output: Path, command: Command, raw: Path | None = None) -> None:
    """What every command that writes segmentations asks of their folder before it begins.

    Args:
        raw: raw folder of the workspace, where one is known.

    Raises:
        SamunetError: it is of a raw dataset, or holds another command's results.
    """
    refuse_raw_data(output, raw)
    check_owner(output, command)
