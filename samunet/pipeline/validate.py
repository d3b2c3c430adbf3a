"""Whole-case validation of one fold: prediction from its checkpoint, scores, pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samunet.data.cases import Case
from samunet.data.groups import Origins
from samunet.data.readers import read_image, read_label, segmentation_ending
from samunet.errors import SamunetError
from samunet.evaluation.folder import evaluate_cases
from samunet.evaluation.scores import Evaluation
from samunet.inference.files import FileOptions
from samunet.inference.predictor import Predictor
from samunet.inference.probabilities import Storage
from samunet.pipeline.overlays import OverlayCase, draw_overlay, legend_names
from samunet.workspace import FINAL, SUMMARY_FILE, TABLE_FILE, validation_folder

logger = logging.getLogger(__name__)

MOST_OVERLAYS = 12


@dataclass(frozen=True, kw_only=True)
class ValidationRequest:
    """What to validate; `cases` have their labels, `settings` are the prediction's (`Predictor.load`)."""

    model_folder: Path
    fold: int | str
    cases: tuple[Case, ...]
    origins: Origins = field(default_factory=Origins)
    device: str = "auto"
    weights_folder: Path | None = None
    save_probabilities: Storage | bool = False
    checkpoint: str = FINAL
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """Scores of the validation cases and where they were written."""

    folder: Path
    evaluation: Evaluation

    def text(self) -> str:
        """The scores in plain words."""
        return f"{self.evaluation.describe()}\nValidation: {self.folder / SUMMARY_FILE}"


def validate(request: ValidationRequest) -> ValidationResult:
    """Predict the cases with the fold's checkpoint and score them.

    Raises:
        SamunetError: the fold is not trained, or a case could not be predicted.
    """
    predictor = Predictor.load(
        request.model_folder,
        folds=(request.fold,),
        checkpoint=request.checkpoint,
        device=request.device,
        weights_folder=request.weights_folder,
        settings=request.settings,
    )
    folder = validation_folder(request.model_folder, request.fold)
    logger.info("Validation on %d whole cases. %s", len(request.cases), predictor.describe())
    # An interruption must not leave the scores of earlier predictions beside new ones.
    for name in (SUMMARY_FILE, TABLE_FILE):
        (folder / name).unlink(missing_ok=True)
    outcome = predictor.predict_files(
        request.cases, folder, FileOptions(save_probabilities=request.save_probabilities)
    )
    if outcome.failed:
        raise SamunetError(outcome.text())
    ending = segmentation_ending(predictor.plan.file_ending)
    pairs = {case.name: (_label_of(case), folder / f"{case.name}{ending}") for case in request.cases}
    evaluation = evaluate_cases(pairs, predictor.plan.labels, origins=request.origins)
    evaluation.save(folder / SUMMARY_FILE)
    evaluation.save_csv(folder / TABLE_FILE)
    draw_overlays(request.cases, folder, ending, evaluation)
    return ValidationResult(folder=folder, evaluation=evaluation)


def _label_of(case: Case) -> Path:
    assert case.label is not None
    return case.label


def draw_overlays(cases: Sequence[Case], folder: Path, ending: str, evaluation: Evaluation) -> None:
    """Write overlays/CASE.png for up to twelve cases spread over the list."""
    names = legend_names(evaluation.labels)
    scores = {case.name: case.metrics for case in evaluation.cases}
    step = max(1, -(-len(cases) // MOST_OVERLAYS))
    for case in cases[::step]:
        image, geometry = read_image(case.images)
        reference, _ = read_label(_label_of(case))
        prediction, _ = read_label(folder / f"{case.name}{ending}")
        shown = OverlayCase(
            name=case.name,
            image=image,
            reference=reference,
            prediction=prediction,
            spacing_mm=geometry.spacing_mm,
            note=_dice_note(scores.get(case.name, {})),
        )
        draw_overlay(shown, names, folder / "overlays" / f"{case.name}.png")


def _dice_note(scores: Mapping[str, Mapping[str, float]]) -> str:
    """`Dice liver 0.93, tumour 0.41`; classes that are in neither map are left out."""
    told = [f"{name} {s['Dice']:.2f}" for name, s in scores.items() if not math.isnan(s["Dice"])]
    return f"Dice {', '.join(told[:6])}" if told else ""
