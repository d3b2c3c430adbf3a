"""Calibration of the predicted Dice: from the out-of-fold cases of a model folder to its qc_model.json."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.evaluation.quality_model import (
    COVERAGE,
    FEWEST_PATIENTS,
    QualityModel,
    QualityRow,
    fit_quality,
    num_patients,
)
from samunet.evaluation.summary_file import read_summary
from samunet.pipeline.out_of_fold import (
    OutOfFoldCase,
    common_settings,
    feature_values,
    fold_hash,
    read_fold,
    read_origins,
    trained_networks,
    validated_folds,
)
from samunet.pipeline.postprocessed_cases import RulesAfter
from samunet.records import read_json, read_record, to_data, write_json
from samunet.workspace import (
    DATASET_FILE,
    QC_MODEL_AFTER_RULES_FILE,
    QC_MODEL_FILE,
    SUMMARY_FILE,
    validation_folder,
)

logger = logging.getLogger(__name__)

QC_MODEL_VERSION = 1
DISTANCES = ("log_volume", "intensity")
"""Features (beginnings of their names) whose distance from the middle of the out-of-fold cases counts."""


@dataclass(frozen=True, kw_only=True)
class ClassQuality:
    """Calibration of one class or region.

    Attributes:
        cases / patients: out-of-fold cases in which the class was found, and their patients.
        not_found: out-of-fold cases in which it was not found; `missed` of them had it in the reference.
        model: None where it is not calibrated; `reason` says why.
    """

    cases: int
    patients: int
    not_found: int
    missed: int
    model: QualityModel | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class QCModel:
    """Content of qc_model.json.

    Attributes:
        coverage: share of new patients for whom the bound shall hold.
        patients_are: what counted as a patient: declared `patients`, `groups`, or `cases`.
        num_cases / num_patients: that it stands on; `num_seen` cases were left out, because the training of
            their fold had other cases of the same patient.
        settings: how the out-of-fold cases were predicted; new cases must be predicted likewise.
        made_from: fold -> hash of the scores and features that were read.
        trained: fold -> hash of the network's file that was validated; lacks folds that were validated
            before this was written down.
        by_case: it was asked for that groups are no patients.
    """

    version: int = QC_MODEL_VERSION
    coverage: float
    patients_are: str
    folds: tuple[str, ...]
    num_cases: int
    num_patients: int
    num_seen: int
    settings: dict[str, Any]
    made_from: dict[str, str]
    classes: dict[str, ClassQuality]
    trained: dict[str, str] = field(default_factory=dict)
    by_case: bool = False

    @property
    def is_calibrated(self) -> bool:
        """Whether any class has a bound."""
        return any(quality.model is not None for quality in self.classes.values())

    def describe(self) -> str:
        """What the bounds stand on, or why there are none, in plain words."""
        seen = _seen_words(self.num_seen, self.patients_are)
        if self.num_patients < FEWEST_PATIENTS:
            return (
                f"not calibrated: {self.num_patients} patients ({self.patients_are}) have out-of-fold cases; "
                f"{FEWEST_PATIENTS} or more are needed.{seen}"
            )
        lacking = {name: quality.reason for name, quality in self.classes.items() if quality.model is None}
        told = "".join(f" Not calibrated: {name}, {reason}." for name, reason in lacking.items())
        if not self.is_calibrated:
            return f"not calibrated.{told}{seen}"
        return (
            f"calibrated on {self.num_cases} out-of-fold cases of {self.num_patients} patients "
            f"({self.patients_are}), folds {', '.join(self.folds)}; the lower bounds are to hold for "
            f"{self.coverage:.0%} of patients like those.{told}{seen}"
        )

    def text(self) -> str:
        """The calibration in plain words, with a line for each class that has a bound."""
        lines = [f"Predicted Dice: {self.describe()}"]
        for name, quality in self.classes.items():
            model = quality.model
            if model is not None:
                related = model.cross_fit_correlation
                told = "" if related is None else f", correlation with the true one {related:.2f}"
                lines.append(
                    f"  {name}: mean error {model.cross_fit_error:.3f}{told}, bound {model.margin:.3f} below"
                )
        return "\n".join(lines)


def calibrate(
    model_folder: Path,
    folds: Sequence[int | str] | None = None,
    *,
    by_case: bool | None = None,
    coverage: float | None = None,
    rules: RulesAfter | None = None,
) -> QCModel:
    """Fit the model folder's quality models on its out-of-fold cases and write qc_model.json.

    With rules they are judged as they are after these, for predictions that these follow; that goes into
    qc_model_postprocessed.json.

    Args:
        model_folder: results/DATASET/CONFIGURATION__PLANS.
        folds: which to use; None takes every fold that was validated.
        by_case: declared groups are sites: a patient is what is declared as one, else a case. None: as in the
            qc_model.json that is there, else no.
        coverage: share of patients for whom the lower bound shall hold; None: as there, else 0.9.
        rules: postprocessing that follows, with the maps of all validated cases.

    Raises:
        SamunetError: no fold was validated, folds were validated in different ways or without features, or
            none of their cases is out of fold; what is there is left as it is.
    """
    model_folder = Path(model_folder)
    asked = _asked_before(model_folder) if None in (by_case, coverage) else _Asked()
    by_case = asked.by_case if by_case is None else by_case
    coverage = asked.coverage if coverage is None else coverage
    chosen = _chosen_folds(model_folder, folds)
    labels = _labels(model_folder)
    origins = read_origins(model_folder, chosen, labels)
    if by_case:
        origins = origins.without_groups
    validated = [case for fold in chosen for case in read_fold(model_folder, fold, labels, origins.units)]
    cases = [case for case in validated if not case.seen]
    if not cases:
        raise _nothing_to_calibrate_on(model_folder, chosen, _seen_words(len(validated), f"{origins.unit}s"))
    settings = common_settings(model_folder, chosen)
    if rules is not None:
        cases = rules.apply(cases)
        settings["postprocessing"] = to_data(rules.postprocessing.rules)
    patients = [case.unit or case.name for case in cases]
    model = QCModel(
        coverage=coverage,
        patients_are=f"{origins.unit}s",
        folds=tuple(map(str, chosen)),
        num_cases=len(cases),
        num_seen=len(validated) - len(cases),
        num_patients=len(set(patients)),
        settings=settings,
        made_from={str(fold): fold_hash(model_folder, fold) for fold in chosen},
        classes={name: _calibrate_class(name, cases, patients, coverage) for name in labels.foreground},
        trained=trained_networks(model_folder, chosen),
        by_case=by_case,
    )
    write_json(model_folder / (QC_MODEL_FILE if rules is None else QC_MODEL_AFTER_RULES_FILE), model)
    return model


def _chosen_folds(model_folder: Path, folds: Sequence[int | str] | None) -> tuple[int | str, ...]:
    chosen = validated_folds(model_folder) if folds is None else tuple(folds)
    if not chosen:
        raise SamunetError(
            f"{model_folder} has no validated fold (fold_K/validation/summary.json). Train folds with "
            "samunet_train first; fold `all` keeps no case out."
        )
    return chosen


def _nothing_to_calibrate_on(model_folder: Path, folds: Sequence[int | str], seen: str) -> SamunetError:
    told = " ".join(map(str, folds))
    return SamunetError(
        f"{model_folder} has no out-of-fold case to calibrate on (-f {told}), so nothing was written."
        f"{seen or ' Name validated folds that keep cases out with -f.'}"
    )


def calibrate_when_complete(model_folder: Path, case_names: Sequence[str]) -> QCModel | None:
    """Calibrate once the validations of the folds hold every case; None, and nothing done, before that.

    Coverage, and what a patient is, stay as they were asked for before (`samunet_calibrate_qc`). A fault is
    logged, not raised: it must not end the training that was validated.
    """
    try:
        labels, validated = _labels(model_folder), set[str]()
        for fold in validated_folds(model_folder):
            validated |= set(read_summary(validation_folder(model_folder, fold) / SUMMARY_FILE, labels).cases)
        return calibrate(model_folder) if set(case_names) <= validated else None
    except SamunetError as fault:
        logger.warning("The predicted Dice of new cases cannot be calibrated: %s", fault)
        return None


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a user may have asked of a calibration."""

    by_case: bool = False
    coverage: float = COVERAGE


def _asked_before(model_folder: Path) -> _Asked:
    """As in the calibration that is there; the usual without one, or where it cannot be read."""
    file = model_folder / QC_MODEL_FILE
    if not file.is_file():
        return _Asked()
    try:
        found = read_record(QCModel, file)
    except SamunetError as fault:
        logger.warning("The earlier calibration is replaced by one with the usual options: %s", fault)
        return _Asked()
    return _Asked(by_case=found.by_case, coverage=found.coverage)


def _seen_words(number: int, patients_are: str) -> str:
    """Why cases do not count, and what can be done; empty for none."""
    if not number:
        return ""
    return (
        f" {number} cases do not count, because training had seen other cases of their "
        f"{patients_are.removesuffix('s')}: train with --splits "
        f"{'patient' if patients_are == 'patients' else 'group'}_kfold or, where groups are no patients, "
        "calibrate with samunet_calibrate_qc --by case."
    )


def _labels(model_folder: Path) -> LabelSet:
    file = Path(model_folder) / DATASET_FILE
    return LabelSet.from_dataset_json(read_json(file), str(file))


def _calibrate_class(
    name: str, cases: Sequence[OutOfFoldCase], patients: Sequence[str], coverage: float
) -> ClassQuality:
    rows, not_found, missed = [], 0, 0
    for case, patient in zip(cases, patients):
        features, dice = case.features.classes[name], case.dice[name]
        if not features.volume_ml:
            not_found += 1
            missed += case.missed[name]
        elif dice == dice:  # NaN: every voxel that was found lies under the ignore label
            values = feature_values(features, case.distance)
            rows.append(QualityRow(case=case.name, patient=patient, dice=dice, values=values))
    distances = sorted({key for row in rows for key in row.values if key.startswith(DISTANCES)})
    model = fit_quality(rows, distances, coverage)
    patients_with = num_patients(rows)
    reason = None
    if patients_with < FEWEST_PATIENTS:
        reason = f"found in {patients_with} patients; {FEWEST_PATIENTS} or more are needed"
    elif model is None:
        reason = f"{patients_with} patients are too few for a bound at {coverage:.0%}"
    return ClassQuality(
        cases=len(rows),
        patients=patients_with,
        not_found=not_found,
        missed=missed,
        model=model,
        reason=reason,
    )
