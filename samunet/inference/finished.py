"""Which cases of a folder of predictions are finished: those made as its predict_args.json says.

A segmentation of an earlier prediction stays until its successor is there. Where that never comes, because
the case failed or the run was interrupted, the features beside it tell: they are gone, or another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samunet.data.cases import Case, FilesStamp
from samunet.data.names import files_with_ending
from samunet.errors import SamunetError
from samunet.inference.files import flat_arguments
from samunet.listing import listed
from samunet.records import content_hash, from_data, read_json
from samunet.workspace import (
    ARGUMENTS_FILE,
    ENSEMBLE_ARGUMENTS_FILE,
    POSTPROCESSING_UNFINISHED_FILE,
    QC_FEATURES_FOLDER,
)


def features_file(folder: Path, case: str) -> Path:
    """Where the features of a case lie beside its prediction."""
    return folder / QC_FEATURES_FOLDER / f"{case}.json"


def arguments_hash(arguments: Mapping[str, Any]) -> str:
    """Identifies how a folder was predicted by one model (`single_model_arguments`), wherever that lies."""
    return content_hash({key: value for key, value in arguments.items() if key != "model"})


def prediction_hash(arguments: Mapping[str, Any]) -> str:
    """The same of the whole content of predict_args.json, be it of one model or of an ensemble."""
    models = arguments["models"]
    if len(models) == 1:
        return arguments_hash(flat_arguments(arguments))
    placeless = [{key: value for key, value in model.items() if key != "model"} for model in models]
    return content_hash({**arguments, "models": placeless})


def is_finished(folder: Path, name: str, made_so: str, images: Case | None = None) -> bool:
    """Whether the last thing that is written of a case is there, by a prediction of that hash.

    What cannot be read, as a power failure may leave it, is not there.

    Args:
        images: those that are there now; None does not ask of which the prediction is.
    """
    try:
        found = read_json(features_file(folder, name))
        source = from_data(FilesStamp, found["source"]) if found.get("source") else None
        made = found["arguments_hash"]
    except (SamunetError, KeyError, TypeError, AttributeError):
        return False
    return made == made_so and (images is None or source is None or source.is_of(images))


def unfinished_cases(folder: Path, ending: str) -> tuple[str, ...]:
    """Cases with a file CASE + ending of which the record of what made the folder does not speak.

    That is predict_args.json, or ensemble_args.json; while postprocessing goes on, or was interrupted, it is
    all of them. None in a folder without such a file, which other programs made.

    Raises:
        SamunetError: the record is not what samunet writes.
    """
    names = tuple(path.name.removesuffix(ending) for path in files_with_ending(folder, ending))
    if (folder / POSTPROCESSING_UNFINISHED_FILE).is_file():
        return names
    file, averaged = folder / ARGUMENTS_FILE, folder / ENSEMBLE_ARGUMENTS_FILE
    try:
        if averaged.is_file():
            speaks_of = set(read_json(averaged)["cases"])
            return tuple(name for name in names if name not in speaks_of)
        if not file.is_file():
            return ()
        made_so = prediction_hash(read_json(file))
    except (KeyError, TypeError, AttributeError) as fault:
        which = averaged if averaged.is_file() else file
        raise SamunetError(
            f"{which} does not say by which models this folder was predicted. Predict it again."
        ) from fault
    return tuple(name for name in names if not is_finished(folder, name, made_so))


def refuse_unfinished(folder: Path, ending: str) -> None:
    """Refuse a folder with segmentations that are not of what its record speaks of.

    Raises:
        SamunetError: names them; see `unfinished_cases`.
    """
    names = unfinished_cases(folder, ending)
    if not names:
        return
    files = listed([f"{name}{ending}" for name in names])
    if (folder / POSTPROCESSING_UNFINISHED_FILE).is_file():
        raise SamunetError(
            f"{folder} is the output of a postprocessing that did not finish. Run "
            "samunet_apply_postprocessing again."
        )
    record, remedy = ARGUMENTS_FILE, "Predict again with --continue_prediction"
    if (folder / ENSEMBLE_ARGUMENTS_FILE).is_file():
        record, remedy = ENSEMBLE_ARGUMENTS_FILE, "Run samunet_ensemble again"
    raise SamunetError(
        f"{folder} holds {files}, left by an earlier run, or by one that did not finish: {record}, which "
        f"says how it was made, does not hold for them. {remedy}, or take these files out of it."
    )
