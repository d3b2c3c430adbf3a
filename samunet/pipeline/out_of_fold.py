"""The out-of-fold cases of a model folder: what the validations of its folds left, scores and features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samunet.data.groups import Origins, of_known_units
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.evaluation.summary_file import read_summary
from samunet.inference.case_features import CaseFeatures, ClassFeatures
from samunet.inference.envelope import Envelope
from samunet.inference.files import single_model_arguments
from samunet.inference.finished import arguments_hash, features_file
from samunet.pipeline.predicted_as import KEYS as PREDICTED_AS
from samunet.pipeline.trained_cases import unseen_cases
from samunet.planning.fingerprint import Fingerprint
from samunet.planning.fingerprint_envelope import FingerprintEnvelope
from samunet.planning.plan import Plan
from samunet.records import hash_files, read_record
from samunet.trainers.identity import read_run
from samunet.workspace import (
    ARGUMENTS_FILE,
    ENVELOPE_FILE,
    FINGERPRINT_FILE,
    PLAN_FILE,
    QC_FEATURES_FOLDER,
    SUMMARY_FILE,
    fold_folders,
    is_validated,
    validation_folder,
)

SETTINGS = ("configuration_hash", *PREDICTED_AS, "postprocessing")
"""Arguments (`single_model_arguments`) in which calibration and prediction must agree."""


@dataclass(frozen=True, kw_only=True)
class OutOfFoldCase:
    """One validated case.

    Attributes:
        unit: declared patient, or group where no patients are declared; None without either.
        seen: the fold's training had other cases of it, so it is not out of fold as a patient.
        distance: of the image from the training cases.
        dice / missed: class name -> Dice (NaN where it is in neither map), and whether a class of the
            reference was not found.
    """

    name: str
    unit: str | None
    seen: bool
    features: CaseFeatures
    distance: float | None
    dice: dict[str, float]
    missed: dict[str, bool]


def validated_folds(model_folder: Path) -> tuple[int, ...]:
    """Numbers of the folds whose whole-case validation is there."""
    folds = [fold for fold in fold_folders(model_folder) if isinstance(fold, int)]
    return tuple(fold for fold in folds if is_validated(model_folder, fold))


def read_envelope(model_folder: Path, plan: Plan, configuration_hash: str) -> Envelope | None:
    """The envelope of a model's training cases; None where the folder has neither fingerprint nor ranges."""
    file, ranges = model_folder / FINGERPRINT_FILE, model_folder / ENVELOPE_FILE
    if not (file.is_file() or ranges.is_file()):
        return None
    name = next(n for n in plan.configurations if plan.configuration_hash(n) == configuration_hash)
    data = plan.data_of(plan.configuration(name))
    if file.is_file():
        return Envelope.of(Fingerprint.load(file), data.normalization)
    return Envelope(read_record(FingerprintEnvelope, ranges), data.normalization)


def read_fold(
    model_folder: Path, fold: int | str, labels: LabelSet, units: Mapping[str, str]
) -> Iterator[OutOfFoldCase]:
    """The validated cases of a fold with scores and features; `units` are the patients (or groups) of
    all cases.

    Cases that the fold itself was trained on are left out with a warning.

    Raises:
        SamunetError: not validated, or features are missing or belong to another prediction.
    """
    folder = validation_folder(model_folder, fold)
    summary = read_summary(folder / SUMMARY_FILE, labels)
    arguments = single_model_arguments(folder)
    envelope = read_envelope(model_folder, Plan.load(folder / PLAN_FILE), arguments["configuration_hash"])
    expected = arguments_hash(arguments)
    run = read_run(folder.parent)
    train = () if run is None else run.train
    known = of_known_units(units, train, summary.cases)
    unseen = unseen_cases(folder.parent, train, summary.cases)
    for name, scores in summary.cases.items():
        if name not in unseen:
            continue
        file = features_file(folder, name)
        features = read_record(CaseFeatures, file) if file.is_file() else None
        if features is None or features.arguments_hash != expected:
            raise SamunetError(
                f"The validation in {folder} has no features of {name} that belong to it ({file}): it was "
                "made by an older samunet, or in part. Validate the fold again: samunet_train DATASET "
                f"CONFIGURATION {fold} --val."
            )
        yield OutOfFoldCase(
            name=name,
            unit=units.get(name),
            seen=name in known,
            features=features,
            distance=None if envelope is None else envelope.distance(features),
            dice={key: values["Dice"] for key, values in scores.items()},
            missed={key: values["n_ref"] > 0 == values["n_pred"] for key, values in scores.items()},
        )


def read_origins(model_folder: Path, folds: Sequence[int | str], labels: LabelSet) -> Origins:
    """Declared groups and patients of the fingerprint's cases and of the validated ones."""
    file = model_folder / FINGERPRINT_FILE
    origins = Fingerprint.load(file).origins if file.is_file() else Origins()
    for fold in folds:
        summary = read_summary(validation_folder(model_folder, fold) / SUMMARY_FILE, labels)
        origins = origins.merged(summary.origins)
    return origins


def fold_hash(model_folder: Path, fold: int | str) -> str:
    """Identifies the scores and features of a fold's validation."""
    folder = validation_folder(model_folder, fold)
    features = sorted((folder / QC_FEATURES_FOLDER).glob("*.json"))
    return hash_files([folder / SUMMARY_FILE, *features])


def trained_networks(model_folder: Path, folds: Sequence[int | str]) -> dict[str, str]:
    """Fold -> hash of the network's file that its validation was predicted with, where that is known."""
    trained: dict[str, str] = {}
    for fold in folds:
        arguments = single_model_arguments(validation_folder(model_folder, fold))
        trained |= arguments.get("trained", {})
    return trained


def feature_values(features: ClassFeatures, distance: float | None) -> dict[str, float | None]:
    """What enters the regression, by name."""
    passes = features.passes
    intensity = passes.intensity or ()
    return {
        "soft_dice": passes.soft_dice,
        "entropy": passes.entropy,
        "mirror_disagreement": passes.mirror_disagreement,
        "log_volume": math.log(features.volume_ml) if features.volume_ml > 0 else None,
        "log_components": math.log(features.components) if features.components else None,
        "largest_share": features.largest_share,
        "distance": distance,
        **{f"intensity_{channel}": value for channel, value in enumerate(intensity)},
    }


def common_settings(model_folder: Path, folds: Sequence[int | str]) -> dict[str, Any]:
    """How the out-of-fold cases were predicted.

    Raises:
        SamunetError: not all folds in the same way.
    """
    by_fold = {}
    for fold in folds:
        arguments = single_model_arguments(validation_folder(model_folder, fold))
        by_fold[fold] = {key: arguments[key] for key in SETTINGS}
    first = by_fold[folds[0]]
    differing = [str(fold) for fold, settings in by_fold.items() if settings != first]
    if differing:
        raise SamunetError(
            f"The folds of {model_folder} were validated in different ways: {', '.join(differing)} unlike "
            f"{folds[0]} ({', '.join(SETTINGS)} in validation/{ARGUMENTS_FILE}). Train or validate them "
            "alike, or choose folds with -f."
        )
    return first
