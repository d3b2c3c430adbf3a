"""The gathered out-of-fold results are there as a whole, or the older ones are."""

from __future__ import annotations

from pathlib import Path

import pytest
from out_of_fold_runs import DATASET, MadeUp, missing

from samunet.pipeline import crossval
from samunet.pipeline.crossval import accumulate_crossval
from samunet.records import read_json, write_json


def test_older_results_stay_until_the_new_ones_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeUp(root=tmp_path, num_cases=5)
    model = made.add("2d_unet", missing(0.2))
    plan = model / "plan.json"
    write_json(plan, {**read_json(plan), "dataset": DATASET})
    used = {"models": [{"checkpoint": "checkpoint_final.pth"}], "step_size": 0.5, "mirroring": True}
    for validation in model.glob("fold_*/validation"):
        write_json(validation / "predict_args.json", used)
    result = accumulate_crossval(made.workspace, model)
    before = {file.name: file.read_bytes() for file in result.folder.iterdir()}
    assert {"summary.json", "summary.csv", "crossval.json"} < before.keys()
    scored = read_json(result.folder / "summary.json")["metric_per_case"]
    assert all(Path(case["prediction_file"]).parent == result.folder for case in scored)
    assert all(Path(case["prediction_file"]).is_file() for case in scored)

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(crossval, "evaluate_cases", stopped)
    with pytest.raises(KeyboardInterrupt):
        accumulate_crossval(made.workspace, model)
    assert {file.name: file.read_bytes() for file in result.folder.iterdir()} == before
    assert not list(model.glob(".*partial*"))
