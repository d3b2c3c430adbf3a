"""Calibration and qc.json through the commands, on one short fold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk

from samunet.cli import calibrate_qc, predict, train

DATASET = "Dataset901_Tiny3D"


def test_from_a_fold_to_qc_json(workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = workspace / "results" / DATASET / "2d_unet__samunetPlans"
    summary = json.loads((model / "fold_0/validation/summary.json").read_text())
    validated = [entry["case"] for entry in summary["metric_per_case"]]
    features = sorted(file.stem for file in (model / "fold_0/validation/qc_features").iterdir())
    assert features == validated
    assert not (model / "qc_model.json").exists()  # other folds are missing
    where = ["--workspace", str(workspace)]
    assert calibrate_qc.main(["-d", "901", "-c", "2d", *where]) == 0
    told = capsys.readouterr().out
    assert f"not calibrated: {len(validated)} patients (cases)" in told
    assert (model / "qc_model.json").exists()

    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(workspace / "raw" / DATASET / "imagesTr", images)
    for file in images.glob("tiny_001_*"):  # stored with another spacing
        image = sitk.ReadImage(str(file))
        image.SetSpacing((1.2, 1.2, 11.0))
        sitk.WriteImage(image, str(file))
    (images / "tiny_002_0001.nii.gz").write_bytes(b"broken")
    words = ["-i", str(images), "-o", str(out), "-d", "901", "-c", "2d", "-device", "cpu", *where]
    parts = ["--disable_tta", "-num_parts", "2", "-part_id"]
    assert predict.main([*words, *parts, "0"]) == 2  # tiny_002 is broken
    assert predict.main([*words, *parts, "1"]) == 0
    captured = capsys.readouterr()
    assert "tiny_001: spacing z 11 mm; training had 4 to 4.25 mm" in captured.out
    assert "not calibrated for these settings: mirroring was True, is False" in captured.out
    content = json.loads((out / "qc.json").read_text())
    assert {case["case"] for case in content["cases"]} == {f"tiny_{i:03d}" for i in (0, 1, 3, 4, 5)}
    assert list(content["failed"]) == ["tiny_002"]
    flagged = [bool(case["flags"]) for case in content["cases"]]
    assert flagged == sorted(flagged, reverse=True)


def test_training_calibrates_once_all_cases_are_validated(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dataset of two cases, left out one after the other; only validated, as the folds are trained."""
    raw, kept = workspace / "raw" / DATASET, ("tiny_000", "tiny_001")
    for file in [*raw.glob("*Tr/*.nii.gz")]:
        if not file.name.startswith(kept):
            file.unlink()
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**content, "numTraining": 2}))
    splits = [{"train": [kept[1 - i]], "val": [kept[i]]} for i in (0, 1)]
    (workspace / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))
    model = workspace / "results" / DATASET / "2d_unet__samunetPlans"
    where = ["-device", "cpu", "--workspace", str(workspace)]
    run = model / "fold_0/run.json"
    content = json.loads(run.read_text())
    run.write_text(json.dumps({**content, **splits[0]}))
    assert train.main(["901", "2d", "0", "--val", *where]) == 0
    assert not (model / "qc_model.json").exists()
    shutil.copytree(model / "fold_0", model / "fold_1")
    (model / "fold_1/run.json").write_text(json.dumps({**content, **splits[1], "fold": 1}))
    assert train.main(["901", "2d", "1", "--val", *where]) == 0
    assert (model / "qc_model.json").exists()
    assert "Predicted Dice: not calibrated: 2 patients" in capsys.readouterr().out


def test_refusals(workspace: Path, refused: Callable[..., str]) -> None:
    assert "-d DATASET" in refused(calibrate_qc.main, workspace)
    assert "0.5" in refused(calibrate_qc.main, workspace, "-d", "901", "-c", "2d", "--coverage", "1.5")
    told = refused(calibrate_qc.main, workspace, "-d", "901", "-c", "2d", "-f", "3")
    assert "fold_3" in told
    shutil.rmtree(workspace / "results" / DATASET / "2d_unet__samunetPlans/fold_0/validation")
    assert "no validated fold" in refused(calibrate_qc.main, workspace, "-d", "901", "-c", "2d")
