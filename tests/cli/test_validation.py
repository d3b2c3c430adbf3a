"""samunet_train --val: what it may change of a trained model, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

from commands import SHORT

from samunet.cli import train

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


def test_what_training_has_fixed_is_refused(workspace: Path, refused) -> None:
    changed = ["--set", "batch_size=5", "--val", "-device", "cpu"]
    told = refused(train.main, workspace, "901", "2d", "0", *changed)
    assert "batch_size" in told
    assert "another value" in told
