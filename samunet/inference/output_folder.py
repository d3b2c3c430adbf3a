"""What an output folder of predictions must not be: a place where they would be taken for something else."""

from __future__ import annotations

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
