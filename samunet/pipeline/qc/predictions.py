"""qc.json beside predictions: flags and predicted Dice with its bound for every case, in an order for review.

Assembled from the features that prediction left, one file a case. So a prediction that was continued, or made
in parts, ends with one qc.json over everything that is there.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from samunet.data.names import files_with_ending
from samunet.data.readers import segmentation_ending
from samunet.errors import SamunetError
from samunet.inference.case_features import CaseFeatures, ClassFeatures
from samunet.inference.envelope import Envelope, Flag
from samunet.inference.files import single_model_arguments
from samunet.inference.finished import arguments_hash, features_file, prediction_hash
from samunet.pipeline.out_of_fold import (
    SETTINGS,
    feature_values,
    fold_hash,
    read_envelope,
    validated_folds,
)
from samunet.pipeline.qc.model import QCModel
from samunet.pipeline.selection.record import remake_command
from samunet.planning.plan import Plan
from samunet.records import read_json, read_record, write_json
from samunet.trainers.portable import is_shared_model
from samunet.workspace import (
    ARGUMENTS_FILE,
    PLAN_FILE,
    QC_FILE,
    QC_MODEL_AFTER_RULES_FILE,
    QC_MODEL_FILE,
    selection_name,
)

if TYPE_CHECKING:
    from samunet.inference.predictor import Predictor

logger = logging.getLogger(__name__)

QC_VERSION = 1
SHOWN = 20
MOST_PASSES = 20
"""Over what other parts of a prediction finish meanwhile. Each pass reads that alone, so a few suffice; a
part that is still at work then writes the file again."""
NO_ENSEMBLES = (
    "not calibrated: lower bounds are made for single models, not for ensembles of them; cases stand in the "
    "order of what the networks expect of themselves."
)

Stamp = tuple[int, int, int] | None
"""State of a file; None where there is none."""
Status = Literal["calibrated", "not calibrated", "not found"]


@dataclass(frozen=True, kw_only=True)
class ClassVerdict:
    """What is said of one class of a case.

    Attributes:
        predicted_dice / lower_bound: None unless calibrated.
        remark: why there is no bound, or how often a class that was not found was missed.
    """

    status: Status
    predicted_dice: float | None
    lower_bound: float | None
    remark: str | None
    features: ClassFeatures


@dataclass(frozen=True, kw_only=True)
class CaseVerdict:
    """What is said of one case.

    Attributes:
        flags: respects in which it is unlike the training cases; then the bound promises nothing.
        review_score: mean over the found classes of the predicted Dice, or of the networks' own estimate
            where that is not calibrated; 0 when no class was found.
        distance: of the image's intensities from the training cases, root mean square z-score.
    """

    case: str
    flags: tuple[Flag, ...]
    review_score: float
    distance: float | None
    classes: dict[str, ClassVerdict]


@dataclass(frozen=True, kw_only=True)
class QCReport:
    """Content of qc.json.

    Attributes:
        model: name of the model folder, or those of an ensemble's.
        arguments_hash: of predict_args.json.
        coverage: share of new patients for whom the lower bound shall hold; None where not calibrated.
        calibration: in plain words, what the bounds stand on, or why there are none.
        input_checked: False where the model folder has no fingerprint that can be read, so that nothing could
            be flagged.
        cases: for review, worst first: flagged ones, then by review_score.
        failed: case -> why it could not be predicted.
        left_out: case -> why its prediction is not judged.
    """

    version: int = QC_VERSION
    model: str
    arguments_hash: str
    folds: tuple[str, ...]
    coverage: float | None
    calibration: str
    input_checked: bool
    cases: tuple[CaseVerdict, ...]
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The outcome in plain words, a line for each flagged case."""
        flagged = [case for case in self.cases if case.flags]
        lines = [f"Quality control ({QC_FILE}, cases in the order of review): {self.calibration}"]
        if not self.input_checked:
            lines.append("The model folder has no fingerprint that can be read: the input was not checked.")
        if flagged:
            number = f"{len(flagged)} of {len(self.cases)} cases"
            lines.append(f"Unlike the training cases, so look at them first: {number}.")
            lines += [f"  {c.case}: {'; '.join(f.reason for f in c.flags)}" for c in flagged[:SHOWN]]
            if len(flagged) > SHOWN:
                lines.append(f"  and {len(flagged) - SHOWN} more, see {QC_FILE}")
        if self.left_out:
            lines.append("Not judged:")
            lines += [f"  {name}: {reason}" for name, reason in list(self.left_out.items())[:SHOWN]]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Judge:
    """What cases are judged by; `reason` says why there is no calibration."""

    envelope: Envelope | None
    model: QCModel | None
    reason: str

    def judge(self, features: CaseFeatures) -> CaseVerdict:
        flags = () if self.envelope is None else self.envelope.flags(features)
        distance = None if self.envelope is None else self.envelope.distance(features)
        classes = {name: self._judge_class(name, found, distance) for name, found in features.classes.items()}
        scores = [_score(verdict) for verdict in classes.values() if verdict.status != "not found"]
        return CaseVerdict(
            case=features.case,
            flags=flags,
            review_score=sum(scores) / len(scores) if scores else 0.0,
            distance=distance,
            classes=classes,
        )

    def _judge_class(self, name: str, found: ClassFeatures, distance: float | None) -> ClassVerdict:
        quality = None if self.model is None else self.model.classes[name]
        status: Status = "not calibrated"
        remark, predicted, bound = self.reason if quality is None else quality.reason, None, None
        if not found.volume_ml:
            status, remark = "not found", None
            if quality is not None and quality.not_found:
                remark = (
                    f"of {quality.not_found} out-of-fold cases in which it was not found, "
                    f"{quality.missed} had it"
                )
        elif quality is not None and quality.model is not None:
            values = feature_values(found, distance)
            status, remark = "calibrated", None
            predicted, bound = quality.model.predict(values), quality.model.lower_bound(values)
        return ClassVerdict(
            status=status, predicted_dice=predicted, lower_bound=bound, remark=remark, features=found
        )


def assess(folder: Path, model_folder: Path, failed: Mapping[str, str] | None = None) -> QCReport:
    """Judge every predicted case of a folder and write its qc.json.

    Args:
        folder: predictions of `model_folder`, with predict_args.json and qc_features.
        failed: cases that could not be predicted, with the reason.

    Raises:
        SamunetError: a file is unreadable.
    """
    folder, model_folder = Path(folder), Path(model_folder)
    arguments = single_model_arguments(folder)
    plan = Plan.load(folder / PLAN_FILE)
    model, reason = usable_model(model_folder, arguments)
    envelope = _envelope(model_folder, plan, arguments["configuration_hash"])
    named = _Named(
        model=model_folder.name,
        folds=tuple(map(str, arguments["folds"])),
        arguments_hash=arguments_hash(arguments),
    )
    ending = segmentation_ending(plan.file_ending)
    return _assess(folder, _Judge(envelope, model, reason), named, ending, failed or {})


def assess_ensemble(
    folder: Path, members: Sequence[Predictor], failed: Mapping[str, str] | None = None
) -> QCReport:
    """The same of predictions by several configurations: flags and an order for review, but no bounds.

    Args:
        folder: predictions of these members, with predict_args.json and qc_features.
        members: of the ensemble; the ranges of the first one's training cases are compared with.
        failed: cases that could not be predicted, with the reason.

    Raises:
        SamunetError: a file is unreadable.
    """
    first = members[0]
    configuration = first.plan.configuration_hash(first.configuration.name)
    envelope = _envelope(first.model_folder, first.plan, configuration)
    folds = dict.fromkeys(str(fold) for member in members for fold in member.folds)
    named = _Named(
        model=" + ".join(member.model_folder.name for member in members),
        folds=tuple(folds),
        arguments_hash=prediction_hash(read_json(Path(folder) / ARGUMENTS_FILE)),
    )
    ending = segmentation_ending(first.plan.file_ending)
    return _assess(Path(folder), _Judge(envelope, None, NO_ENSEMBLES), named, ending, failed or {})


def _envelope(model_folder: Path, plan: Plan, configuration_hash: str) -> Envelope | None:
    """As `read_envelope`; one that cannot be read is told and no fault, for the predictions are there."""
    try:
        return read_envelope(model_folder, plan, configuration_hash)
    except SamunetError as fault:
        logger.warning("%s", fault)
        return None


@dataclass(frozen=True, kw_only=True)
class _Named:
    """What a report says of who predicted, and how."""

    model: str
    folds: tuple[str, ...]
    arguments_hash: str


def _assess(folder: Path, judge: _Judge, named: _Named, ending: str, failed: Mapping[str, str]) -> QCReport:
    expected, model = named.arguments_hash, judge.model
    known: dict[str, tuple[Stamp, CaseVerdict | str]] = {}
    for _ in range(MOST_PASSES):
        names = _names(folder, ending)
        known = {
            name: known[name]
            if name in known and known[name][0] == stamp
            else (stamp, _judge_case(folder, name, stamp, judge, expected))
            for name, stamp in names.items()
        }
        left_out = {name: found for name, (_, found) in known.items() if isinstance(found, str)}
        verdicts = [found for _, found in known.values() if not isinstance(found, str)]
        report = QCReport(
            model=named.model,
            arguments_hash=expected,
            folds=named.folds,
            coverage=model.coverage if model is not None and model.is_calibrated else None,
            calibration=judge.reason if model is None else model.describe(),
            input_checked=judge.envelope is not None,
            cases=tuple(sorted(verdicts, key=lambda c: (not c.flags, c.review_score, c.case))),
            failed={**_earlier_failures(folder, names, expected), **failed},
            left_out=left_out,
        )
        write_json(folder / QC_FILE, report)
        # Another part may have ended meanwhile; whoever writes last has seen all.
        if _names(folder, ending) == names:
            break
    return report


def usable_model(model_folder: Path, arguments: Mapping[str, Any]) -> tuple[QCModel | None, str]:
    """The calibration that holds for a prediction with these arguments, or None and why there is none."""
    rules = bool(arguments["postprocessing"])
    file = model_folder / (QC_MODEL_AFTER_RULES_FILE if rules else QC_MODEL_FILE)
    command = _comparing(model_folder) if rules else f"samunet_calibrate_qc -m {model_folder}"
    again = f"Calibrate: {command}."
    if not file.is_file():
        if not validated_folds(model_folder):
            unseen = f"no fold of {model_folder.name} has validated cases that it had not seen"
            return None, f"not calibrated: {unseen}."
        return None, f"not calibrated: {model_folder.name} has no {file.name}. {again}"
    try:
        model = read_record(QCModel, file)
    except SamunetError as fault:  # the predictions are there: they are told without a bound
        return None, f"not calibrated: {fault} {again}"
    differing = [key for key in SETTINGS if model.settings[key] != arguments[key]]
    if differing:
        told = "; ".join(f"{key} was {model.settings[key]}, is {arguments[key]}" for key in differing)
        return None, f"not calibrated for these settings: {told}."
    foreign = sorted(set(map(str, arguments["folds"])) - set(model.folds))
    if foreign:
        return None, f"not calibrated for fold {', '.join(foreign)}, of which no out-of-fold case was used."
    present = set(map(str, validated_folds(model_folder)))  # none in a model that was moved without them
    stale = [f for f, made in model.made_from.items() if f in present and fold_hash(model_folder, f) != made]
    if stale:
        return None, f"not calibrated: the validation of fold {', '.join(stale)} has changed since. {again}"
    if not is_shared_model(model_folder):  # that was exported as one, and its files are checked
        replaced = _replaced(model, arguments, present)
        if replaced:
            return None, f"not calibrated: {'; '.join(replaced)} (samunet_train ... --val). {again}"
    return model, ""


def _comparing(model_folder: Path) -> str:
    """The command that learns the rules after which a model predicts, and calibrates for them."""
    plan = Plan.load(model_folder / PLAN_FILE)
    return remake_command(model_folder.parent / selection_name(plan.name), plan.dataset, plan.name)


def _replaced(model: QCModel, arguments: Mapping[str, Any], validated: Set[str]) -> list[str]:
    """In words, the folds that predict and may not be those that were calibrated."""
    told, trained = [], arguments.get("trained", {})
    for fold in map(str, arguments["folds"]):
        if fold in model.trained and fold in trained:
            if model.trained[fold] != trained[fold]:
                told.append(f"fold {fold} is not the network that was calibrated; validate it first")
        elif fold not in validated:  # nothing else says of which network the calibration is
            told.append(f"fold {fold} is not validated")
    return told


def _names(folder: Path, ending: str) -> dict[str, Stamp]:
    """Case -> its features' state, for every segmentation in the folder."""
    names = [file.name.removesuffix(ending) for file in files_with_ending(folder, ending)]
    return {name: _stamp(features_file(folder, name)) for name in names}


def _stamp(file: Path) -> Stamp:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _judge_case(folder: Path, name: str, stamp: Stamp, judge: _Judge, expected: str) -> CaseVerdict | str:
    """What is said of a case, or why it is not judged."""
    if stamp is None:
        return "it was not finished (no features); --continue_prediction predicts it again"
    try:
        features = read_record(CaseFeatures, features_file(folder, name))
    except SamunetError as fault:
        return f"{fault} --continue_prediction predicts it again"
    if features.arguments_hash != expected:
        return "it was predicted earlier, with other arguments"
    return judge.judge(features)


def _earlier_failures(folder: Path, names: Container[str], expected: str) -> dict[str, str]:
    """What other parts of this prediction could not predict, and is still not there."""
    file = folder / QC_FILE
    if not file.is_file():
        return {}
    try:
        earlier = read_record(QCReport, file)
    except SamunetError:  # of another version: it is being replaced
        return {}
    if earlier.arguments_hash != expected:
        return {}
    return {name: reason for name, reason in earlier.failed.items() if name not in names}


def _score(verdict: ClassVerdict) -> float:
    own = verdict.features.passes.soft_dice or 0.0
    return own if verdict.predicted_dice is None else verdict.predicted_dice
