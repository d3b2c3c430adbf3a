"""Scores, selection and rules that a shared model takes along."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from out_of_fold_runs import DATASET, MadeUp, missing, write_predicted
from shared_models import write_images, write_model
from tiny_runs import CLASSES

from samunet.errors import SamunetError
from samunet.evaluation.folder import evaluate_cases
from samunet.inference.postprocessing import Postprocessing, Rule
from samunet.pipeline.model_file.export import ExportRequest, export_model
from samunet.pipeline.model_file.onnx_export import OnnxRequest, export_onnx
from samunet.pipeline.model_file.scores import shared_scores
from samunet.pipeline.model_file.selected import SelectionFiles, selected
from samunet.pipeline.predicted_as import PredictedAs
from samunet.pipeline.selection.find import SelectionOptions, find_best
from samunet.pipeline.selection.out_of_fold import ModelsWanted
from samunet.pipeline.selection.record import file_digest
from samunet.records import read_json, to_data, write_json

FINAL = "checkpoint_final.pth"


def made_cases(model: Path, fold: int) -> list[str]:
    names = (model / f"fold_{fold}/validation").glob("*.nii.gz")
    return sorted(file.name.removesuffix(".nii.gz") for file in names)


def test_means_over_all_folds(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path)
    model = made.add("2d_unet", missing(0.3), seed=1)
    scores, unscored = shared_scores(model, (0, 1, 2, 3, 4), CLASSES, FINAL)
    assert scores is not None
    assert unscored == ()
    pairs = {
        file.name.removesuffix(".nii.gz"): (made.raw / "labelsTr" / file.name, file)
        for fold in range(5)
        for file in (model / f"fold_{fold}/validation").glob("*.nii.gz")
    }
    expected = evaluate_cases(pairs, CLASSES)
    assert (scores.cases, scores.units, scores.unit) == (20, 20, "case")
    for name in CLASSES.foreground:
        dice = scores.classes[name]["Dice"]
        assert dice.value == pytest.approx(expected.mean[name]["Dice"])
        assert dice.low < dice.value < dice.high  # type: ignore[operator]
        assert scores.classes[name]["HD95"].value == pytest.approx(expected.mean[name]["HD95"])
    assert scores.dice.value == pytest.approx(expected.foreground_mean["Dice"])
    assert "case_" not in json.dumps(scores, default=vars)


def test_cases_on_request_and_patients_drawn_together(tmp_path: Path) -> None:
    groups = {f"case_{number:02d}": f"patient {number // 2}" for number in range(20)}
    made = MadeUp(root=tmp_path, groups=groups)
    model = made.add("2d_unet", missing(0.3), seed=1, folds=(0, 1))
    scores, unscored = shared_scores(model, (0, 1, 2, "all"), CLASSES, FINAL, include_cases=True)
    assert scores is not None
    assert scores.per_case is not None
    assert len(scores.per_case) == scores.cases == 8
    assert scores.unit == "group"
    assert scores.units <= 8
    assert unscored == (
        "fold 2: it was not validated",
        "fold all: it was trained on all cases, so none is left to validate on",
    )


@pytest.mark.parametrize("kind", ["patient", "group"])
def test_patients_on_both_sides_of_a_fold_are_named(tmp_path: Path, kind: str) -> None:
    """Plain folds tear them: a network that knows a patient predicts the other scan of it."""
    units = {f"case_{number:02d}": f"p{number // 2}" for number in range(20)}
    made = MadeUp(root=tmp_path, **{f"{kind}s": units})
    model = made.add("2d_unet", missing(0.3))
    torn = [
        name
        for split in made.splits
        for name in split.val
        if any(units[name] == units[other] for other in split.train)
    ]
    scores, _ = shared_scores(model, range(5), CLASSES, FINAL)
    assert scores is not None
    assert (scores.known.cases, scores.known.unit) == (len(torn), kind)
    assert f"{len(torn)} of the cases are of {kind}s with other cases in the training" in scores.known.text()
    assert f"--splits {kind}_kfold" in scores.known.text()
    alone, _ = shared_scores(
        MadeUp(root=tmp_path / "alone").add("2d_unet", missing(0.3)), (0,), CLASSES, FINAL
    )
    assert alone is not None
    assert alone.known.text() == ""


def test_scores_of_another_checkpoint_and_of_other_splits(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path)
    model = made.add("2d_unet", missing(0.3), folds=(0, 1))
    scores, (reason,) = shared_scores(model, (0,), CLASSES, "checkpoint_best.pth")
    assert scores is None
    assert "validated with checkpoint_final.pth" in reason
    run, (scored, *_) = model / "fold_0/run.json", made_cases(model, 0)
    before = read_json(run)
    write_json(run, {**before, "train": [*before["train"], scored]})
    scores, (reason,) = shared_scores(model, (0, 1), CLASSES, FINAL)
    assert scores is not None
    assert scores.folds == (1,)
    assert reason == "fold 0: 1 of the cases that it was scored on are among those of its training"
    write_json(run, before)
    summary = model / "fold_0/validation/summary.json"
    write_json(model / "fold_1/validation/summary.json", read_json(summary))
    other = model / "fold_1/run.json"
    write_json(other, {**read_json(other), "train": before["train"]})
    with pytest.raises(SamunetError, match="different splits"):
        shared_scores(model, (0, 1), CLASSES, FINAL)


@pytest.mark.parametrize("changes", [{"settings": {"min_iou": 0.7}}, {"mirroring": False}])
def test_scores_of_another_prediction_than_the_shared_model_makes(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = MadeUp(root=tmp_path)
    model = made.add("2d_unet", missing(0.3), folds=(0, 1))
    write_predicted(model / "fold_0/validation", **changes)
    scores, (reason,) = shared_scores(model, (0, 1), CLASSES, FINAL)
    assert scores is not None
    assert scores.folds == (1,)
    assert reason == f"fold 0: it was validated with {PredictedAs(**changes).text()}"
    (model / "fold_0/validation/predict_args.json").unlink()
    _, (reason,) = shared_scores(model, (0, 1), CLASSES, FINAL)
    assert reason == "fold 0: it is not known how its cases were predicted"


def test_no_folder_of_this_machine_goes_with_a_selection(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path)
    made.add("2d_unet", missing(0.1), seed=1)
    (made.add("2d_cnn", missing(0.5), seed=2) / "plan.json").write_text("{}")
    wanted = ModelsWanted(dataset=DATASET)
    options = SelectionOptions(wanted=wanted, ensembles=False, postprocessing=False)
    found = find_best(made.workspace, options)
    assert str(tmp_path) in " ".join(found.left_out)
    file = made.workspace.selection_file(DATASET)
    commands = (*found.commands, f"samunet_predict -m {tmp_path}")
    write_json(file, replace(found, commands=commands, splits="single_source:Hospital_X"))
    files = SelectionFiles(selection=file, postprocessing=made.workspace.postprocessing_file(DATASET))
    shared = selected(files, "2d_unet", "samunetPlans", None)
    assert shared.selection is not None
    assert str(tmp_path) not in json.dumps(to_data(shared.selection))
    assert shared.selection.splits == "single_source"


def test_rules_go_with_the_model_that_they_were_learned_for(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path)
    made.add("2d_unet", missing(0.1), seed=1)
    made.add("2d_cnn", missing(0.5), seed=2)
    wanted = ModelsWanted(dataset=DATASET)
    find_best(made.workspace, SelectionOptions(wanted=wanted, ensembles=False, postprocessing=False))
    files = SelectionFiles(
        selection=made.workspace.selection_file(DATASET),
        postprocessing=made.workspace.postprocessing_file(DATASET),
    )
    rule = Rule(kind="largest_component", target="organ")
    Postprocessing(labels=CLASSES, rules=(rule,)).save(files.postprocessing)
    best = selected(files, "2d_unet", "samunetPlans", None)
    assert best.postprocessing is not None
    assert best.postprocessing.rules == (rule,)
    assert best.selection is not None
    assert best.selection.made_from == {}
    other = selected(files, "2d_cnn", "samunetPlans", None)
    assert other.selection is not None
    assert other.postprocessing is None
    for absent in (
        selected(files, "2d_unet", "samunetPlans", "tag"),
        selected(files, "2d_unet", "otherPlans", None),
        selected(None, "2d_unet", "samunetPlans", None),
    ):
        assert absent.selection is None
        assert absent.postprocessing is None


def select_made_up(root: Path, model: Path) -> tuple[SelectionFiles, Path]:
    """A selection, with rules, that recommends `model`; and a summary that it was made from."""
    made = MadeUp(root=root)
    made.add("2d_unet", missing(0.1))
    options = SelectionOptions(wanted=ModelsWanted(dataset=DATASET), ensembles=False, postprocessing=False)
    found = find_best(made.workspace, options)
    (member,) = found.recommended
    summary = model / "fold_0/validation/summary.json"
    scored = made.workspace.model_folder(DATASET, "2d_unet") / "fold_0/validation/summary.json"
    write_json(summary, read_json(scored))
    digest = file_digest(summary)
    assert digest is not None
    files = SelectionFiles(
        selection=model.parent / "selection.json", postprocessing=model.parent / "postprocessing.json"
    )
    plans = model.name.split("__")[1]
    kept = replace(
        found,
        plans=plans,
        recommended=(replace(member, plans=plans),),
        made_from={str(summary.relative_to(model.parent)): digest},
    )
    write_json(files.selection, kept)
    rule = Rule(kind="largest_component", target="organ")
    Postprocessing(labels=CLASSES, rules=(rule,)).save(files.postprocessing)
    return files, summary


def test_a_stale_selection_stays_behind(tmp_path: Path) -> None:
    model = write_model(tmp_path / "results", "2d_unet", (0,))
    files, summary = select_made_up(tmp_path / "made", model)
    request = ExportRequest(model_folder=model, output=tmp_path / "m.zip", selection=files, overwrite=True)
    assert "samunet_find_best" not in export_model(request).text()
    with zipfile.ZipFile(request.output) as archive:
        assert {"selection.json", "postprocessing.json"} <= set(archive.namelist())

    write_json(summary, {**read_json(summary), "validated": "again"})
    told = export_model(request).text()
    command = "samunet_find_best_configuration 950 -p tinyPlans --no_ensembles --disable_postprocessing"
    assert f"{command}, then export again" in told
    with zipfile.ZipFile(request.output) as archive:
        assert not {"selection.json", "postprocessing.json"} & set(archive.namelist())
        assert "largest" not in archive.read("MODEL_CARD.md").decode()


def test_models_that_the_selection_does_not_know_are_named(tmp_path: Path) -> None:
    model = write_model(tmp_path / "results", "2d_unet", (0,))
    files, _ = select_made_up(tmp_path / "made", model)
    for fold in range(5):
        write_json(model.parent / f"2d_cnn__tinyPlans/fold_{fold}/validation/summary.json", {})
    found = selected(files, "2d_unet", "tinyPlans", None)
    assert found.postprocessing is not None
    assert "though scored on the same folds: 2d_cnn. Compare again: samunet_find_best_" in found.remark


def test_stale_rules_stay_out_of_the_json_beside_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = write_model(tmp_path / "results", "2d_unet", (0,))
    files, summary = select_made_up(tmp_path / "made", model)
    request = OnnxRequest(
        model_folder=model,
        output=tmp_path / "net.onnx",
        images=write_images(tmp_path / "images"),
        num_tiles=1,
        selection=files,
        overwrite=True,
    )
    outcome = export_onnx(request)
    assert (outcome.remarks, read_json(outcome.sidecar)["postprocessing"] is None) == ((), False)
    summary.unlink()
    outcome = export_onnx(request)
    assert "samunet_find_best_configuration" in outcome.text()
    assert read_json(outcome.sidecar)["postprocessing"] is None
