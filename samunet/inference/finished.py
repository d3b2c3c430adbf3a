"""Which cases of a folder of predictions are finished: those made as its predict_args.json says.

A segmentation of an earlier prediction stays until its successor is there. Where that never comes, because
the case failed or the run was interrupted, the features beside it tell: they are gone, or another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samunet.data.names import files_with_ending
from samunet.errors import SamunetError
from samunet.inference.files import flat_arguments
from samunet.listing import listed
from samunet.records import content_hash, read_json
from samunet.workspace import ARGUMENTS_FILE, QC_FEATURES_FOLDER


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


def is_finished(folder: Path, case: str, made_so: str) -> bool:
    """Whether the last thing that is written of a case is there, by a prediction of that hash."""
    features = features_file(folder, case)
    return features.exists() and read_json(features).get("arguments_hash") == made_so


def unfinished_cases(folder: Path, ending: str) -> tuple[str, ...]:
    """Cases with a file CASE + ending that is not of the prediction of which predict_args.json speaks.

    None in a folder without that file, which other programs made.

    Raises:
        SamunetError: predict_args.json is not what samunet_predict writes.
    """
    file = folder / ARGUMENTS_FILE
    if not file.is_file():
        return ()
    try:
        made_so = prediction_hash(read_json(file))
    except (KeyError, TypeError, AttributeError) as fault:
        raise SamunetError(
            f"{file} does not say by which models this folder was predicted. Predict it again."
        ) from fault
    names = [path.name.removesuffix(ending) for path in files_with_ending(folder, ending)]
    return tuple(name for name in names if not is_finished(folder, name, made_so))


def refuse_unfinished(folder: Path, ending: str) -> None:
    """Refuse a folder with segmentations that are not of the prediction of which predict_args.json speaks.

    Raises:
        SamunetError: names them; see `unfinished_cases`.
    """
    names = unfinished_cases(folder, ending)
    if names:
        raise SamunetError(
            f"{folder} holds {listed([f'{name}{ending}' for name in names])}, left by an earlier prediction, "
            f"or by one that did not finish: {ARGUMENTS_FILE}, which says how it was predicted, does not "
            "hold for them. Predict again with --continue_prediction, or take these files out of it."
        )
