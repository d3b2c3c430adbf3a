"""A model that was trained by the commands, shared, and used where nothing else is."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import SHORT
from shared_models import segmentations

from samunet.cli import export_model, find_best_configuration, install_model, predict, train

MODEL = "results/Dataset901_Tiny3D/2d_unet__samunetPlans"
Refused = Callable[..., str]


def test_from_training_to_another_workspace(
    made_once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = str(made_once / "raw/Dataset901_Tiny3D/imagesTr")
    words = ["-d", "901", "-c", "2d", "-o", "x.zip", "--licence", "CC0-1.0", "--workspace", str(made_once)]
    assert export_model.main(words) == 0
    told = capsys.readouterr().out
    assert "not stated" not in told
    with zipfile.ZipFile("x.zip") as archive:
        text = b"".join(archive.read(name) for name in archive.namelist() if name.endswith((".json", ".md")))
    assert b"tiny_00" not in text
    assert str(made_once).encode() not in text
    assert b"CC0-1.0" in text
    assert b"Cross-validation: " in text
    assert install_model.main(["x.zip", "--workspace", "other"]) == 0
    common = ["-i", images, "-f", "0", "--disable_tta", "-device", "cpu"]
    assert predict.main([*common, "-o", "one", "-m", str(made_once / MODEL)]) == 0
    assert predict.main([*common, "-o", "two", "-d", "901", "-c", "2d", "--workspace", "other"]) == 0
    expected, found = segmentations(tmp_path / "one"), segmentations(tmp_path / "two")
    assert len(expected) == len(found) == 6
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_an_installed_model_stays_as_it_is(workspace: Path, tmp_path: Path, refused: Refused) -> None:
    file = str(tmp_path / "x.zip")
    assert export_model.main(["-d", "901", "-c", "2d", "-o", file, "--workspace", str(workspace)]) == 0
    assert "trained here" in refused(install_model.main, workspace, file)
    assert install_model.main([file, "--overwrite", "--workspace", str(workspace)]) == 0
    told = refused(train.main, workspace, "901", "2d", "1", *SHORT, "--overwrite")
    assert "installed, not trained here" in told
    assert not (workspace / MODEL / "fold_1").exists()
    assert "901" in refused(find_best_configuration.main, workspace, "901")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "x.zip"), "Name the model"),
        (("-d", "901", "-m", ".", "-o", "x.zip"), "Name the model"),
        (("-d", "901", "-c", "2d_cnn", "-o", "x.zip"), "Unknown trained model"),
        (("-d", "901", "-c", "2d", "-o", "x.onnx"), ".zip"),
        (("-d", "901", "-c", "2d", "-o", "x.zip", "--onnx"), ".onnx"),
        (("-d", "901", "-c", "2d", "-o", "x.zip", "-i", "."), "-i needs --onnx"),
        (("-d", "901", "-c", "2d", "-o", "x.onnx", "--onnx", "--include_base"), "does not go with --onnx"),
        (("-m", MODEL, "-o", "x.onnx", "--onnx"), "with -i"),
        (("-m", "nowhere", "-o", "x.zip"), "no model folder"),
        (("-d", "901", "-c", "2d", "-f", "3", "-o", "x.zip"), "Trained folds: 0"),
    ],
)
def test_what_is_refused(made_once: Path, refused: Refused, words: tuple[str, ...], message: str) -> None:
    assert message in refused(export_model.main, made_once, *words)
    assert not Path("x.zip").exists()
