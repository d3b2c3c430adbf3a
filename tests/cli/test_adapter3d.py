"""`3d_adapter` through the commands: a short training, a prediction, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
from commands import SHORT

from samunet.cli import plan_and_preprocess, predict, train

TINY = ["-encoder", "vit_micro", *SHORT]


def test_two_stages_and_a_prediction(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--workspace", str(workspace)]
    assert plan_and_preprocess.main(["-d", "901", "-c", "3d_adapter", "-np", "1", *where]) == 0
    assert train.main(["901", "3d_adapter", "0", *TINY, "--epochs", "2", *where]) == 0
    told = capsys.readouterr().out
    assert "epoch 2/2" in told
    model = workspace / "results/Dataset901_Tiny3D/3d_adapter__samunetPlans"
    history = [json.loads(line) for line in (model / "fold_0/history.jsonl").read_text().splitlines()]
    assert [record["phase"] for record in history] == ["adapting", "prompting"]
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted((workspace / "raw/Dataset901_Tiny3D/imagesTr").glob("*"))[:2]:
        shutil.copy(file, images)
    assert (
        predict.main(
            ["-i", str(images), "-o", str(tmp_path / "out"), "-d", "901", "-c", "3d_adapter", *where]
        )
        == 0
    )
    (segmentation,) = (tmp_path / "out").glob("*.nii.gz")
    source = sitk.ReadImage(str(next(images.glob("*_0000.nii.gz"))))
    assert sitk.ReadImage(str(segmentation)).GetSize() == source.GetSize()


def test_tokens_that_do_not_fit(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(workspace)]
    assert plan_and_preprocess.main(["-d", "901", "-c", "3d_adapter", "-np", "1", *where]) == 0
    capsys.readouterr()
    assert train.main(["901", "3d_adapter", "0", *TINY, "--set", "token_size=[3,4,4]", *where]) == 2
    assert "token_size[0]: 3 is not one of 1, 2, 4" in capsys.readouterr().err


def test_single_images_are_refused_by_name_of_what_suits(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--workspace", str(workspace)]
    assert plan_and_preprocess.main(["-d", "902", "-c", "2d_unet", "-np", "1", *where]) == 0
    capsys.readouterr()
    assert train.main(["902", "3d_adapter", "0", *where]) == 2
    told = capsys.readouterr().err
    assert "single 2D images" in told
    assert "2d_cnn" in told
