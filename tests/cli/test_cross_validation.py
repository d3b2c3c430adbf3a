"""Several folds in one command, out-of-fold results, and ensembles from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import SHORT

from samunet.cli import accumulate_crossval_results, ensemble, predict, train
from samunet.data.readers import read_label
from samunet.inference.probabilities import open_probabilities
from samunet.pipeline import train_folds
from samunet.pipeline.said_once import Say
from samunet.pipeline.train import TrainOptions, TrainOutcome, prepare_run
from samunet.workspace import Workspace

RAW = "raw/Dataset901_Tiny3D"
MODEL = "results/Dataset901_Tiny3D/2d_unet__samunetPlans"
ACCUMULATE = ("-d", "901", "-c", "2d", "-np", "1")


def test_the_dataset_is_named_with_a_flag_or_without() -> None:
    parse = accumulate_crossval_results.build_parser().parse_args
    for words in (
        ["901", "-c", "2d"],
        ["-c", "2d", "901"],
        ["-d", "901", "-c", "2d"],
        ["-c", "2d", "-d", "901"],
    ):
        assert parse(words).dataset == "901"


def test_folds_one_after_the_other(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    where, model = ["--workspace", str(workspace)], workspace / MODEL
    told = refused(train.main, workspace, "901", "2d", "0", "1", *SHORT)
    assert "fold 0 already" in told
    assert not (model / "fold_1").exists()
    assert "fold 3 is not trained, 1 case (" in refused(
        accumulate_crossval_results.main, workspace, *ACCUMULATE
    )
    # An interrupted fold ends the rest.
    with monkeypatch.context() as patch:
        patch.setattr(
            train_folds, "train", lambda *_, **__: TrainOutcome(folder=model / "x", interrupted=True)
        )
        assert train.main(["901", "2d", "1", "2", *SHORT, *where]) == 130
    assert "Fold 2" not in capsys.readouterr().out
    # --c: fold 0 is finished, the others begin with its settings, one whose validation is gone is validated.
    shutil.rmtree(model / "fold_0/validation")
    assert train.main(["901", "2d", "0", "1", "--c", "--npz", "uint8", *where]) == 0
    assert train.main(["901", "2d", "2", "3", "--c", "--npz", "uint8", *where]) == 0
    assert train.main(["901", "2d", "0", "1", "2", "3", "4", "--c", "--npz", "uint8", *where]) == 0
    out = capsys.readouterr().out
    assert "Fold 0 (1 of 5) is trained and validated already." in out
    assert "begins with the settings of fold 0" in out
    assert "Folds of different settings" not in out
    settings = [json.loads((model / f"fold_{k}/run.json").read_text())["overrides"] for k in range(5)]
    assert all(s == settings[0] for s in settings)
    told = refused(train.main, workspace, "901", "2d", "0", "1", "--c", "--epochs", "7", "--seed", "2")
    assert "(epochs: 1 there, 7 now; seed: 0 there, 2 now)" in told
    # One setting given again changes no other.
    shutil.rmtree(model / "fold_4")
    one = ["--set", "batch_size=2", "--iterations", "2", "--npz", "uint8"]
    assert train.main(["901", "2d", "0", "4", "--c", *one, *where]) == 0
    assert json.loads((model / "fold_4/run.json").read_text())["overrides"] == settings[0]

    assert accumulate_crossval_results.main([*ACCUMULATE, *where]) == 0
    folder = model / "crossval_results_folds_0_1_2_3_4"
    record = json.loads((folder / "crossval.json").read_text())
    assert sorted(record["fold_of_case"]) == [f"tiny_{i:03d}" for i in range(6)]
    assert record["probabilities"]
    assert len(json.loads((folder / "summary.json").read_text())["metric_per_case"]) == 6
    probabilities, kept = open_probabilities(folder / "tiny_002.nii.gz")
    assert kept.storage == "uint8"
    assert probabilities.shape == kept.shape
    _check_refusals(workspace, model, refused)


def _check_refusals(workspace: Path, model: Path, refused) -> None:
    fold = json.loads((model / "crossval_results_folds_0_1_2_3_4/crossval.json").read_text())["fold_of_case"]
    name, number = next(iter(fold.items()))
    (model / f"fold_{number}/validation/{name}.nii.gz").unlink()
    told = refused(accumulate_crossval_results.main, workspace, *ACCUMULATE)
    assert f"samunet_train 901 2d_unet {number} --val" in told
    assert name in told
    run = model / "fold_1/run.json"
    content = json.loads(run.read_text())
    run.write_text(
        json.dumps(
            {
                **content,
                "val": [*content["val"], *json.loads((model / "fold_2/run.json").read_text())["val"]],
                "train": [],
            }
        )
    )
    assert "by folds 1, 2" in refused(accumulate_crossval_results.main, workspace, *ACCUMULATE)


def test_ensembles(workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused) -> None:
    """Two models at once, two folders averaged, and what both refuse."""
    where, images = ["--workspace", str(workspace)], tmp_path / "images"
    images.mkdir()
    for file in (workspace / RAW / "imagesTr").glob("tiny_00[13]_*"):
        shutil.copy(file, images)
    other = workspace / MODEL.replace("2d_unet__", "3d_unet__")
    shutil.copytree(workspace / MODEL, other)  # stands in for another model
    words = ["-i", str(images), "-device", "cpu", "--disable_tta"]
    for number, model in enumerate((workspace / MODEL, other)):
        out = tmp_path / f"out_{number}"
        assert predict.main([*words, "-o", str(out), "-m", str(model), "--save_probabilities", *where]) == 0
    both = ["-d", "901", "-c", "2d", "3d_fullres"]
    assert predict.main([*words, "-o", str(tmp_path / "both"), *both, *where]) == 0
    assert "Ensemble of 2 configurations" in capsys.readouterr().out
    folders = [str(tmp_path / f"out_{number}") for number in (0, 1)]
    assert ensemble.main(["-i", *folders, "-o", str(tmp_path / "mean"), "--save_probabilities", "uint8"]) == 0
    for case in ("tiny_001", "tiny_003"):
        one, mean, two = (read_label(tmp_path / f / f"{case}.nii.gz")[0] for f in ("both", "mean", "out_0"))
        assert (one == two).mean() > 0.999
        np.testing.assert_array_equal(mean, read_label(tmp_path / f"out_0/{case}.nii.gz")[0])
    assert open_probabilities(tmp_path / "mean/tiny_001.nii.gz")[1].storage == "uint8"
    (tmp_path / "out_1/tiny_003.probabilities.npy").unlink()
    assert ensemble.main(["-i", *folders, "-o", str(tmp_path / "less")]) == 2
    assert "tiny_003: none in" in capsys.readouterr().err

    out = ("-i", str(images), "-o", str(tmp_path / "none"))
    assert "names a model twice" in refused(predict.main, workspace, *out, "-d", "901", "-c", "2d", "2d_unet")
    assert "leave -c out" in refused(predict.main, workspace, *out, "-m", str(other), "-c", "2d")
    told = refused(predict.main, workspace, *out, "-d", "901", "-c", "2d", "3d_unet", "-tr", "2d_unet")
    assert "-tr replaces" in told
    (tmp_path / "out_0/dataset.json").unlink()
    assert "-djfile" in refused(ensemble.main, workspace, "-i", *folders, "-o", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_what_is_planned_again_for_all_folds_is_said_once(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two folds is prepared before any is trained, and once more when its turn comes."""

    def pretend(root: Workspace, options: TrainOptions, teach: object, *, say: Say) -> TrainOutcome:
        prepare_run(root, options, say)
        return TrainOutcome(folder=root.results, interrupted=options.fold == 1)

    monkeypatch.setattr(train_folds, "train", pretend)
    words = ["901", "2d_cnn", "0", "1", "--set", "slice_context=1", *SHORT]
    assert train.main([*words, "--workspace", str(workspace)]) == 130
    assert capsys.readouterr().out.count("is planned again") == 1


def test_warnings_that_hold_for_all_folds_are_said_once(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's folds leave a case out, and weights came after the plan."""
    (workspace / "preprocessed/Dataset901_Tiny3D/splits_final.json").unlink()
    folds = [{"train": ["tiny_000", "tiny_001"], "val": [f"tiny_00{k}"]} for k in (2, 3)]
    (workspace / RAW / "splits_final.json").write_text(json.dumps(folds))
    (workspace / "weights").mkdir()
    (workspace / "weights/samunet_vit_tiny.pth").touch()

    def pretend(root: Workspace, options: TrainOptions, teach: object, *, say: Say) -> TrainOutcome:
        prepare_run(root, options, say)
        return TrainOutcome(folder=root.results, interrupted=options.fold == 1)

    monkeypatch.setattr(train_folds, "train", pretend)
    assert train.main(["901", "2d_cnn", "0", "1", *SHORT, "--workspace", str(workspace)]) == 130
    told = capsys.readouterr().out
    assert told.count("leaves out 2 case(s): tiny_004, tiny_005.") == 1
    assert told.count("but those of vit_tiny are here now") == 1
    assert told.count("Warning: ") == 2, told
