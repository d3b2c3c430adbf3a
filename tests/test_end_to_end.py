"""Raw data to scores through the commands, for the 2D and 3D U-Net, a SAM method, and RGB pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from commands import SHORT

from samunet.cli import (
    evaluate_folder,
    extract_fingerprint,
    info,
    plan_and_preprocess,
    plan_experiment,
    predict,
    preprocess,
    train,
)

NAME = "Dataset901_Tiny3D"


def same_grid(one: Path, other: Path) -> None:
    a, b = sitk.ReadImage(str(one)), sitk.ReadImage(str(other))
    assert a.GetSize() == b.GetSize()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(a, get)(), getattr(b, get)(), atol=1e-5)


def test_raw_to_scores(tiny_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(tiny_copy)]
    raw, out = tiny_copy / "raw" / NAME, tiny_copy / "out"
    assert plan_and_preprocess.main(["-d", "901", "--verify_dataset_integrity", "-np", "1", *where]) == 0
    assert "Recommended" in capsys.readouterr().out
    for fold in ("0", "1"):
        assert train.main(["901", "2d", fold, *SHORT, *where]) == 0
    model = tiny_copy / "results" / NAME / "2d_unet__samunetPlans"
    assert {f.name for f in model.iterdir()} == {
        "dataset.json",
        "fingerprint.json",
        "plan.json",
        "fold_0",
        "fold_1",
    }
    summary = json.loads((model / "fold_0/validation/summary.json").read_text())
    assert {"foreground_mean", "mean", "metric_per_case"} <= set(summary)
    assert list((model / "fold_0/validation/overlays").glob("*.png"))
    capsys.readouterr()

    words = ["-i", str(raw / "imagesTr"), "-o", str(out), "-d", "901", "-c", "2d"]
    assert predict.main([*words, "--disable_tta", "-device", "cpu", "--save_probabilities", *where]) == 0
    told = capsys.readouterr().out
    assert "folds 0, 1" in told
    assert str(tiny_copy) in told
    for case in range(6):
        same_grid(out / f"tiny_{case:03d}.nii.gz", raw / "labelsTr" / f"tiny_{case:03d}.nii.gz")
    assert len(list(out.glob("*.probabilities.npy"))) == 6

    assert evaluate_folder.main([str(raw / "labelsTr"), str(out), "-d", "901", "-np", "1", *where]) == 0
    assert "organ" in capsys.readouterr().out
    assert (out / "summary.csv").exists()


def test_stages_one_by_one_with_a_sam_method(tiny_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(tiny_copy)]
    assert extract_fingerprint.main(["-d", NAME, "-np", "1", *where]) == 0
    assert plan_experiment.main(["-d", "Tiny3D", "-encoder", "vit_micro", "--hours", "1", *where]) == 0
    assert preprocess.main(["-d", "901", "-c", "2d_cnn", "-np", "1", *where]) == 0
    assert train.main(["901", "2d", "0", "-tr", "2d_cnn", "--tag", "first", *SHORT, *where]) == 0
    model = tiny_copy / "results" / NAME / "2d_cnn__samunetPlans__first"
    assert (model / "fold_0/validation/summary.json").exists()
    out = tiny_copy / "out"
    words = ["-i", str(tiny_copy / "raw" / NAME / "imagesTr"), "-o", str(out), "-device", "cpu"]
    parts = ["-num_parts", "2", "-part_id"]
    for part in ("0", "1"):
        assert predict.main([*words, "-m", str(model), "--disable_tta", *parts, part, *where]) == 0
    assert len(list(out.glob("*.nii.gz"))) == 6
    again = [*words, "-d", "901", "--tag", "first", "--disable_tta", "--continue_prediction", *where]
    assert predict.main(again) == 0
    assert "Skipped 6 cases" in capsys.readouterr().out


def test_a_3d_network(tiny_copy: Path) -> None:
    where = ["--workspace", str(tiny_copy)]
    assert plan_and_preprocess.main(["-d", "901", "-c", "3d_fullres", "-np", "1", *where]) == 0
    assert train.main(["901", "3d_fullres", "4", *SHORT, *where]) == 0
    assert (tiny_copy / "results" / NAME / "3d_unet__samunetPlans/fold_4/validation/summary.json").exists()


def test_pictures(tiny_copy: Path) -> None:
    where = ["--workspace", str(tiny_copy)]
    assert plan_and_preprocess.main(["-d", "902", "-np", "1", *where]) == 0
    assert train.main(["902", "2d", "all", *SHORT, *where]) == 0
    images = tiny_copy / "raw" / "Dataset902_TinyRGB" / "imagesTr"
    out = tiny_copy / "out"
    assert predict.main(["-i", str(images), "-o", str(out), "-d", "902", "-device", "cpu", *where]) == 0
    assert len(list(out.glob("*.png"))) == 6


def test_continuing_equals_an_uninterrupted_run(tiny_copy: Path) -> None:
    """Only that --c repeats what was overridden; equality of the weights is the loop's own test."""
    where = ["--workspace", str(tiny_copy)]
    assert plan_and_preprocess.main(["-d", "901", "-c", "2d", "-np", "1", *where]) == 0
    words = [*SHORT, "--set", "head_width=4", "--seed", "3", "-encoder", "vit_micro"]
    assert train.main(["901", "2d_linear", "0", *words, *where]) == 0
    fold = tiny_copy / "results" / NAME / "2d_linear__samunetPlans/fold_0"
    (fold / "checkpoint_final.pth").unlink()
    assert train.main(["901", "2d_linear", "0", "--c", *where]) == 0
    assert (fold / "checkpoint_final.pth").exists()
    record = json.loads((fold / "run.json").read_text())
    assert record["seed"] == 3
    assert record["configuration"]["encoder"] == "vit_micro"


def test_explaining_a_plan_touches_nothing(tiny_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(tiny_copy)]
    assert (
        plan_experiment.main(["-d", "901", "--explain", "-gpu_memory_target", "12", "-np", "1", *where]) == 0
    )
    assert "12 GB" in capsys.readouterr().out
    assert {f.name for f in tiny_copy.iterdir()} == {"raw"}


def test_info(tiny_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(["--json", "--workspace", str(tiny_copy)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert NAME in facts["datasets"]
    assert "2d_cnn" in facts["methods"]
    assert info.main(["--workspace", str(tiny_copy)]) == 0
    assert "2d_cnn" in capsys.readouterr().out
