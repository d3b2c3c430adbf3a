"""From validated folds to qc_model.json, and from predicted cases to qc.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_quality import FINGERPRINT, PASSES, case
from tiny_runs import CLASSES, make_configuration, make_plan

from samunet.data.geometry import Geometry
from samunet.data.readers import read_label, write_segmentation
from samunet.errors import SamunetError
from samunet.evaluation.scores import METRICS, CaseScores, Evaluation
from samunet.inference.case_features import CaseFeatures
from samunet.inference.finished import arguments_hash, features_file
from samunet.inference.postprocessing import Postprocessing, Rule
from samunet.pipeline.out_of_fold import read_fold
from samunet.pipeline.postprocessed_cases import RulesAfter
from samunet.pipeline.qc import predictions as qc
from samunet.pipeline.qc.model import QCModel, calibrate, calibrate_when_complete
from samunet.pipeline.qc.predictions import QCReport, assess
from samunet.records import read_json, read_record, to_data, write_json
from samunet.workspace import short_dataset_name

PLAN = make_plan(make_configuration("2d_unet"))
CHANNELS = replace(FINGERPRINT, channel_names=("CT", "CT"))


def arguments(*folds: int | str, **changes: Any) -> dict[str, Any]:
    usual = {
        "model": "anywhere",
        "configuration_hash": PLAN.configuration_hash("2d_unet"),
        "folds": list(folds),
        "checkpoint": "checkpoint_final.pth",
        "trained": {str(fold): f"network of fold {fold}" for fold in folds},
        "step_size": 0.5,
        "mirroring": True,
        "settings": {},
        "postprocessing": [],
    }
    return {**usual, **changes}


def features(name: str, soft_dice: float, words: Mapping[str, Any], **changes: Any) -> CaseFeatures:
    """A case of which the networks expect that Dice."""
    usual = case(name, **changes)
    usual = replace(usual, input=replace(usual.input, channels=usual.input.channels * 2))
    passes = replace(PASSES, soft_dice=soft_dice, entropy=1 - soft_dice)
    classes = {key: replace(found, passes=passes) for key, found in usual.classes.items()}
    return replace(usual, classes=classes, arguments_hash=arguments_hash(words))


def write_arguments(folder: Path, words: Mapping[str, Any]) -> None:
    """predict_args.json of one model."""
    own = ("model", "configuration_hash", "folds", "checkpoint", "trained", "settings")
    shared = {key: value for key, value in words.items() if key not in own}
    models = [{key: value for key, value in words.items() if key in own}]
    write_json(folder / "predict_args.json", {"models": models, **shared})


def write_prediction(folder: Path, cases: list[CaseFeatures], words: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_arguments(folder, words)
    PLAN.save(folder / "plan.json")
    for one in cases:
        write_json(features_file(folder, one.case), one)
        (folder / f"{one.case}.nii.gz").write_bytes(b"")
    return folder


def class_scores(**known: float) -> dict[str, float]:
    return dict.fromkeys(METRICS, float("nan")) | known


def write_model(root: Path, patients: int = 20, cases: int = 1, folds: int = 2) -> Path:
    """A model folder whose folds were validated; Dice follows what the networks expect, with noise."""
    model, rng = root / "2d_unet__tinyPlans", np.random.default_rng(0)
    PLAN.save(model / "plan.json")
    write_json(model / "dataset.json", {"labels": {"background": 0, "organ": 1, "lesion": 2}})
    write_json(model / "fingerprint.json", CHANNELS_TWICE)
    for fold in range(folds):
        words, members, entries = arguments(fold), [], []
        for patient in range(fold, patients, folds):
            for number in range(cases):
                expected = float(rng.uniform(0.4, 0.95))
                scores = {
                    key: class_scores(Dice=min(1.0, expected + rng.normal(0, 0.03)), n_ref=9, n_pred=9)
                    for key in ("organ", "lesion")
                }
                name = f"p{patient:02d}_{number}"
                # Three patients have no lesion found; one of them has one.
                lesion = 0.0 if patient < 3 else 2.0
                if not lesion:
                    dice = 0.0 if patient == 0 else float("nan")
                    scores["lesion"] = class_scores(Dice=dice, n_ref=9 * (patient == 0), n_pred=0)
                members.append(features(name, expected, words, lesion_ml=lesion))
                group = f"p{patient:02d}" if cases > 1 else None
                file = f"{name}.nii.gz"
                entries.append(
                    CaseScores(
                        name=name, reference_file=file, prediction_file=file, group=group, metrics=scores
                    )
                )
        folder = write_prediction(model / f"fold_{fold}" / "validation", members, words)
        Evaluation(PLAN.labels, 1.0, tuple(entries)).save(folder / "summary.json")
    return model


def two_channels() -> Any:
    cases = tuple(replace(one, channels=one.channels * 2) for one in CHANNELS.cases)
    return replace(CHANNELS, cases=cases)


CHANNELS_TWICE = two_channels()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


def test_calibration_counts_patients_and_what_was_not_found(model: Path) -> None:
    made = calibrate(model)
    assert read_record(QCModel, model / "qc_model.json") == made
    assert (made.num_cases, made.num_patients, made.patients_are, made.folds) == (20, 20, "cases", ("0", "1"))
    lesion = made.classes["lesion"]
    assert (lesion.cases, lesion.not_found, lesion.missed) == (17, 3, 1)
    organ = made.classes["organ"].model
    assert organ is not None
    assert 0 < organ.margin < 0.3
    assert organ.cross_fit_correlation is not None
    assert organ.cross_fit_correlation > 0.8


def test_groups_are_patients_unless_every_case_is_one(tmp_path: Path) -> None:
    model = write_model(tmp_path, patients=8, cases=3)
    made = calibrate(model)
    assert (made.num_cases, made.num_patients, made.patients_are) == (24, 8, "groups")
    assert not made.is_calibrated
    assert "not calibrated: 8 patients" in made.text()
    assert calibrate(model, by_case=True).is_calibrated


def test_declared_patients_are_the_patients(tmp_path: Path) -> None:
    """Groups beside them are sites, whether or not cases are asked for."""
    model = write_model(tmp_path, patients=8, cases=3)
    for file in model.glob("fold_*/validation/summary.json"):
        summary = json.loads(file.read_text())
        for entry in summary["metric_per_case"]:
            entry |= {"group": "one site", "patient": entry["case"][:3]}
        file.write_text(json.dumps(summary))
    for by_case in (False, True):
        made = calibrate(model, by_case=by_case)
        assert (made.num_cases, made.num_patients, made.patients_are) == (24, 8, "patients")


def test_a_patient_that_training_has_seen_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Plain folds may train on one case of a patient and validate another: that is no new patient."""
    model = write_model(tmp_path, patients=12, cases=2)
    trained = {"fold_0": ("p01_0",), "fold_1": ("p03_0",)}  # odd patients are validated by fold 1
    monkeypatch.setattr(
        "samunet.pipeline.out_of_fold.read_run", lambda folder: SimpleNamespace(train=trained[folder.name])
    )
    made = calibrate(model)
    # p03_1 is of a patient that was seen; p03_0 itself was, and is no out-of-fold case at all.
    assert (made.num_cases, made.num_patients, made.num_seen) == (22, 11, 1)
    assert "1 cases do not count" in made.text()
    by_case = calibrate(model, by_case=True)
    assert (by_case.num_cases, by_case.num_seen) == (23, 0)
    assert "fold_1 has scores of 1 case (p03_0) that it was trained on" in caplog.text


def test_automatic_calibration_waits_for_all_cases(model: Path) -> None:
    names = [f"p{patient:02d}_0" for patient in range(20)]
    assert calibrate_when_complete(model, [*names, "p99_0"]) is None
    assert not (model / "qc_model.json").exists()
    assert calibrate_when_complete(model, names) is not None


def test_calibration_after_a_validation_keeps_what_was_asked_for(tmp_path: Path) -> None:
    """Groups are sites, the bound is to hold for 80 %: `--val` does not take that back."""
    model = write_model(tmp_path, patients=8, cases=3)
    names = [f"p{patient:02d}_{number}" for patient in range(8) for number in range(3)]
    asked = calibrate(model, by_case=True, coverage=0.8)
    assert calibrate_when_complete(model, names) == asked
    assert read_record(QCModel, model / "qc_model.json") == asked
    assert asked.is_calibrated
    assert (asked.by_case, asked.coverage) == (True, 0.8)
    content = read_json(model / "qc_model.json")
    del content["by_case"]  # as earlier versions wrote it
    write_json(model / "qc_model.json", content)
    assert not read_record(QCModel, model / "qc_model.json").by_case
    (model / "qc_model.json").write_text("{}")
    usual = calibrate_when_complete(model, names)
    assert usual is not None
    assert (usual.by_case, usual.coverage) == (False, 0.9)


def test_a_calibration_is_not_replaced_by_one_without_cases(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of fold `all`, which has seen whatever it is scored on."""
    before = calibrate(model)
    names = tuple(f"p{patient:02d}_0" for patient in range(20))
    monkeypatch.setattr("samunet.pipeline.out_of_fold.read_run", lambda folder: SimpleNamespace(train=names))
    with pytest.raises(
        SamunetError, match=r"no out-of-fold case to calibrate on \(-f 0 1\), so nothing was written"
    ):
        calibrate(model)
    assert read_record(QCModel, model / "qc_model.json") == before


def test_folds_must_have_been_validated_alike_and_with_features(model: Path) -> None:
    folder = model / "fold_1" / "validation"
    words = arguments(1, mirroring=False)
    write_arguments(folder, words)
    with pytest.raises(SamunetError, match="no features of p01_0"):
        calibrate(model)
    for file in (folder / "qc_features").glob("*.json"):
        own = read_record(CaseFeatures, file)
        write_json(file, replace(own, arguments_hash=arguments_hash(words)))
    with pytest.raises(SamunetError, match="different ways: 1 unlike 0"):
        calibrate(model)
    assert calibrate(model, (1,)).folds == ("1",)
    shutil.rmtree(folder / "qc_features")
    with pytest.raises(SamunetError, match="--val"):
        calibrate(model, (1,))
    with pytest.raises(SamunetError, match="no validated fold"):
        calibrate(model / "nothing")


def predicted(folder: Path, words: Mapping[str, Any]) -> Path:
    cases = [
        features("good", 0.9, words),
        features("poor", 0.5, words),
        features("other_scanner", 0.92, words, spacing_mm=(5.0, 2.0, 1.0)),
        features("nothing", 0.7, words, organ_ml=0.0, lesion_ml=0.0),
    ]
    return write_prediction(folder, cases, words)


def test_cases_come_in_the_order_of_review(model: Path, tmp_path: Path) -> None:
    calibrate(model)
    out = predicted(tmp_path / "out", arguments(0, 1))
    report = assess(out, model)
    assert read_record(QCReport, out / "qc.json") == report
    assert [one.case for one in report.cases] == ["nothing", "other_scanner", "poor", "good"]
    assert [one.review_score for one in report.cases[2:]] == sorted(
        one.review_score for one in report.cases[2:]
    )
    for one in report.cases[1:]:
        for verdict in one.classes.values():
            assert verdict.status == "calibrated"
            assert verdict.predicted_dice is not None
            assert verdict.lower_bound is not None
            assert 0 <= verdict.lower_bound <= verdict.predicted_dice
    poor = report.cases[2].classes["organ"]
    assert poor.predicted_dice == pytest.approx(0.5, abs=0.12)
    lesion = report.cases[0].classes["lesion"]
    assert (lesion.status, lesion.lower_bound) == ("not found", None)
    assert lesion.remark == "of 3 out-of-fold cases in which it was not found, 1 had it"
    told = report.text()
    assert "other_scanner: spacing y 2 mm; training had 0.8 to 1 mm" in told
    assert "calibrated on 20 out-of-fold cases" in told


def test_qc_json_is_plain_json_and_strict(model: Path, tmp_path: Path) -> None:
    out = predicted(tmp_path / "out", arguments(0, 1))
    assess(out, model)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    content = json.loads((out / "qc.json").read_text(), parse_constant=refuse)
    content["cases"][0]["surprise"] = 1
    write_json(out / "qc.json", content)
    with pytest.raises(SamunetError, match="surprise"):
        read_record(QCReport, out / "qc.json")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (arguments(0, 1, mirroring=False), "mirroring was True, is False"),
        (arguments(0, 1, checkpoint="checkpoint_best.pth"), "checkpoint was"),
        (arguments("all"), "not calibrated for fold all"),
    ],
)
def test_no_bound_for_other_settings(model: Path, tmp_path: Path, words: dict[str, Any], reason: str) -> None:
    calibrate(model)
    report = assess(predicted(tmp_path / "out", words), model)
    assert reason in report.calibration
    verdict = report.cases[-1].classes["organ"]
    assert (verdict.status, verdict.predicted_dice, verdict.lower_bound) == ("not calibrated", None, None)
    assert report.cases[1].flags  # flags need no calibration
    assert report.coverage is None


def test_without_a_validated_fold_no_command_is_named_that_would_fail(model: Path, tmp_path: Path) -> None:
    """Fold `all` keeps no case out: there is nothing to calibrate on."""
    for fold in (0, 1):
        shutil.rmtree(model / f"fold_{fold}")
    report = assess(predicted(tmp_path / "out", arguments("all")), model)
    assert "no fold of 2d_unet__tinyPlans has validated cases" in report.calibration
    assert "samunet_calibrate_qc" not in report.calibration


def test_an_unreadable_calibration_is_told_and_ends_nothing(model: Path, tmp_path: Path) -> None:
    write_json(model / "qc_model.json", {"version": 0})
    report = assess(predicted(tmp_path / "out", arguments(0, 1)), model)
    assert "missing keys" in report.calibration
    assert "samunet_calibrate_qc -m" in report.calibration
    assert report.coverage is None


def with_stray_voxels(root: Path, names: Iterable[str]) -> dict[str, tuple[Path, Path]]:
    """References and predictions, the organ a little too short and with a stray voxel far away."""
    rng, grid, pairs = np.random.default_rng(3), Geometry(shape=(6, 8, 12), spacing_mm=(1.0, 1.0, 1.0)), {}
    for name in names:
        reference = np.zeros(grid.shape, np.uint8)
        reference[1:5, 2:6, 1:7] = 1
        prediction = reference.copy()
        prediction[..., int(rng.integers(4, 7)) : 7] = 0
        prediction[0, 0, 11] = 1
        pairs[name] = (root / "labels" / f"{name}.nii.gz", root / "predicted" / f"{name}.nii.gz")
        for label_map, file in zip((reference, prediction), pairs[name]):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_segmentation(label_map, grid, file)
    return pairs


def test_a_calibration_for_the_rules_that_follow(model: Path, tmp_path: Path) -> None:
    names = [f"p{patient:02d}_0" for patient in range(20)]
    pairs = with_stray_voxels(tmp_path, names)
    rules = Postprocessing(labels=PLAN.labels, rules=(Rule(kind="largest_component", target="organ"),))
    after = RulesAfter(postprocessing=rules, pairs=pairs)
    before = [case for fold in (0, 1) for case in read_fold(model, fold, PLAN.labels, {})]
    for one, changed in zip(before, after.apply(before)):
        found = int(np.sum(read_label(pairs[one.name][1])[0])) - 1
        assert changed.dice["organ"] == pytest.approx(2 * found / (found + 96))
        assert changed.features.classes["organ"].components == 1
        assert changed.features.classes["organ"].passes == one.features.classes["organ"].passes
        assert changed.missed == {"organ": False, "lesion": False}

    words = arguments(0, 1, postprocessing=to_data(rules.rules))
    command = f"Calibrate: samunet_find_best_configuration {short_dataset_name(PLAN.dataset)} -p tinyPlans."
    assert command in assess(predicted(tmp_path / "out", words), model).calibration
    made = calibrate(model, rules=after)
    assert read_record(QCModel, model / "qc_model_postprocessed.json") == made
    assert not (model / "qc_model.json").exists()
    assert assess(predicted(tmp_path / "out", words), model).coverage == 0.9
    other = arguments(0, 1, postprocessing=to_data((Rule(kind="fill_holes", target="organ"),)))
    assert "postprocessing was" in assess(predicted(tmp_path / "other", other), model).calibration
    without = assess(predicted(tmp_path / "without", arguments(0, 1)), model)
    assert "has no qc_model.json" in without.calibration


def test_under_ten_patients_it_says_so(tmp_path: Path) -> None:
    model = write_model(tmp_path, patients=9)
    calibrate(model)
    report = assess(predicted(tmp_path / "out", arguments(0, 1)), model)
    assert report.calibration.startswith("not calibrated: 9 patients")
    assert report.coverage is None
    verdict = report.cases[-1].classes["organ"]
    assert (verdict.status, verdict.lower_bound) == ("not calibrated", None)
    assert verdict.remark == "found in 9 patients; 10 or more are needed"


def test_a_validation_made_anew_ends_the_calibration(model: Path, tmp_path: Path) -> None:
    calibrate(model)
    out = predicted(tmp_path / "out", arguments(0, 1))
    summary = model / "fold_1/validation/summary.json"
    content = read_json(summary)
    content["metric_per_case"][0]["metrics"]["1"]["Dice"] = 0.123
    write_json(summary, content)
    assert "validation of fold 1 has changed" in assess(out, model).calibration
    for fold in (0, 1):  # a model that was moved without its validations is known by its networks
        shutil.rmtree(model / f"fold_{fold}")
    assert assess(out, model).coverage == 0.9


def test_a_network_that_was_trained_anew_has_no_bound(model: Path, tmp_path: Path) -> None:
    """--overwrite takes the validation along: until the next one, only the network itself tells."""
    made = calibrate(model)
    assert made.trained == {"0": "network of fold 0", "1": "network of fold 1"}
    shutil.rmtree(model / "fold_1" / "validation")
    out = predicted(tmp_path / "out", arguments(0, 1))
    assert assess(out, model).coverage == 0.9
    words = arguments(0, 1, trained={"0": "network of fold 0", "1": "another"})
    report = assess(predicted(tmp_path / "anew", words), model)
    assert report.coverage is None
    assert "fold 1 is not the network that was calibrated" in report.calibration
    assert report.cases[-1].classes["organ"].lower_bound is None
    assert assess(predicted(tmp_path / "one", arguments(0)), model).coverage == 0.9


def test_a_calibration_from_before_networks_were_noted(model: Path, tmp_path: Path) -> None:
    """It is read; whether its networks are those that predict, the validations have to tell."""
    calibrate(model)
    content = read_json(model / "qc_model.json")
    del content["trained"]
    write_json(model / "qc_model.json", content)
    out = predicted(tmp_path / "out", arguments(0, 1))
    assert assess(out, model).coverage == 0.9
    shutil.rmtree(model / "fold_1" / "validation")
    assert "fold 1 is not validated" in assess(out, model).calibration
    write_json(model / "model.json", {})  # exported and installed as one, with a hash of every file
    assert assess(out, model).coverage == 0.9


def test_parts_and_continued_predictions_end_in_one_file(model: Path, tmp_path: Path) -> None:
    words, out = arguments(0, 1), tmp_path / "out"
    write_prediction(out, [features("a", 0.9, words)], words)
    assert assess(out, model, {"broken": "no space"}).failed == {"broken": "no space"}
    write_prediction(out, [features("b", 0.6, words), features("old", 0.6, arguments(0))], words)
    (out / "bare.nii.gz").write_bytes(b"")
    write_json(features_file(out, "deleted"), features("deleted", 0.6, words))
    report = assess(out, model)
    assert [one.case for one in report.cases] == ["b", "a"]
    assert list(report.failed) == ["broken"]  # of another part, still not there
    assert sorted(report.left_out) == ["bare", "old"]
    assert "other arguments" in report.text()
    write_prediction(out, [features("broken", 0.6, words)], words)
    assert assess(out, model).failed == {}


def test_other_parts_that_go_on_do_not_hold_a_part_up(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They finish a case whenever this one has judged all; what was judged is read again if it changed."""
    words, out, read, written = arguments(0, 1), tmp_path / "out", [], []
    write_prediction(out, [features(name, 0.6, words) for name in ("a", "b")], words)

    def reading(kind: Any, file: Path) -> Any:
        read.extend([file.stem] * (kind is CaseFeatures))
        return read_record(kind, file)

    def writing(file: Path, report: Any) -> None:
        write_json(file, report)
        written.append(file)
        assert len(written) < 100
        write_prediction(out, [features(f"other{len(written)}", 0.6, words)], words)
        if len(written) == 1:
            write_prediction(out, [features("a", 0.123, words)], words)

    monkeypatch.setattr(qc, "read_record", reading)
    monkeypatch.setattr(qc, "write_json", writing)
    report = assess(out, model)
    assert sorted(read) == sorted(["a", *(one.case for one in report.cases)])
    assert read_record(QCReport, out / "qc.json") == report
    (again,) = [one for one in report.cases if one.case == "a"]
    assert again.classes["organ"].features.passes.soft_dice == 0.123


def test_a_model_without_a_fingerprint_says_that_nothing_was_checked(model: Path, tmp_path: Path) -> None:
    (model / "fingerprint.json").unlink()
    report = assess(predicted(tmp_path / "out", arguments(0, 1)), model)
    assert not report.input_checked
    assert "no fingerprint" in report.text()
    assert not any(one.flags for one in report.cases)
    assert CLASSES.foreground.keys() == report.cases[0].classes.keys()


def test_what_cannot_be_read_beside_predictions_is_told_and_ends_nothing(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The predictions are there, and hours of work may be in them."""
    (model / "fingerprint.json").write_text("{}")
    out = predicted(tmp_path / "out", arguments(0, 1))
    name = next(iter(sorted((out / "qc_features").iterdir())))
    name.write_text("[]")
    report = assess(out, model)
    assert not report.input_checked
    assert "fingerprint.json" in caplog.text
    assert "--continue_prediction predicts it again" in report.left_out[name.stem]
    assert report.cases
