"""samunet_train --val: what it may change of a trained model, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import SHORT

from samunet.cli import accumulate_crossval_results, find_best_configuration, train
from samunet.inference.predictor import Predictor

DESAM = ["901", "2d_desam", "0", "-encoder", "vit_micro", "--set", "grid_side=2", *SHORT]


def test_settings_of_the_prediction_are_honoured(workspace: Path) -> None:
    where = ["--workspace", str(workspace)]
    assert train.main([*DESAM, *where]) == 0
    run = workspace / "results/Dataset901_Tiny3D/2d_desam__samunetPlans/fold_0"

    def predicted_with() -> dict[str, object]:
        return json.loads((run / "validation/predict_args.json").read_text())["models"][0]["settings"]

    assert predicted_with() == {}
    trained = (run / "run.json").read_bytes()
    assert train.main([*DESAM, "--val", *where]) == 0
    assert predicted_with() == {}
    assert train.main(["901", "2d_desam", "0", "--set", "grid_side=1", "--val", *where]) == 0
    assert predicted_with() == {"grid_side": 1}
    assert (run / "run.json").read_bytes() == trained

    assert train.main(["901", "2d_desam", "0", "--set", "top_prompts=1", "--val", *where]) == 0
    assert predicted_with() == {}  # as planned

    # The checkpoint has its weights; those that the plan was made with may be gone.
    file = workspace / "preprocessed/Dataset901_Tiny3D/samunetPlans.json"
    plan = json.loads(file.read_text())
    plan["overrides"]["weights"] = str(workspace / "gone_vit_tiny.pth")
    plan["configurations"]["2d_desam"]["encoder_weights"] = "file"
    file.write_text(json.dumps(plan))
    assert train.main(["901", "2d_desam", "0", "--val", "-device", "cpu", *where]) == 0
    assert predicted_with() == {}


def test_what_training_has_fixed_is_refused(workspace: Path, refused) -> None:
    changed = ["--set", "batch_size=5", "--val", "-device", "cpu"]
    told = refused(train.main, workspace, "901", "2d", "0", *changed)
    assert "batch_size" in told
    assert "another value" in told


def test_an_interrupted_validation_leaves_no_scores_of_the_one_before(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    validation = workspace / "results/Dataset901_Tiny3D/2d_unet__samunetPlans/fold_0/validation"
    genuine = Predictor.predict_files

    def stopped(self: Predictor, cases, folder: Path, options) -> None:
        genuine(self, cases[:1], folder, options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict_files", stopped)
    words = ["901", "2d", "0", "--val", "-chk", "best", "-device", "cpu", "--workspace", str(workspace)]
    assert train.main(words) == 130
    assert not list(validation.glob("summary.*"))
    told = refused(find_best_configuration.main, workspace, "901", "-f", "0")
    assert "samunet_train 901 2d_unet 0 --val" in told
    told = refused(accumulate_crossval_results.main, workspace, "-d", "901", "-c", "2d")
    assert "samunet_train 901 2d_unet 0 --val" in told
