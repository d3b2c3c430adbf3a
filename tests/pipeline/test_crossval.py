"""The gathered out-of-fold results are there as a whole, or the older ones are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from out_of_fold_runs import DATASET, GEOMETRY, MadeUp, missing

from samunet.data.readers import read_label
from samunet.pipeline import crossval
from samunet.pipeline.crossval import accumulate_crossval
from samunet.records import read_json, write_json


def validated(root: Path, ending: str = ".nii.gz") -> tuple[MadeUp, Path]:
    """Made-up folds of a model that are validated; and its folder."""
    made = MadeUp(root=root, num_cases=5, ending=ending)
    model = made.add("2d_unet", missing(0.2))
    plan = model / "plan.json"
    write_json(plan, {**read_json(plan), "dataset": DATASET})
    used = {"models": [{"checkpoint": "checkpoint_final.pth"}], "step_size": 0.5, "mirroring": True}
    for validation in model.glob("fold_*/validation"):
        write_json(validation / "predict_args.json", used)
    return made, model


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_older_results_stay_until_the_new_ones_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, model = validated(tmp_path)
    result = accumulate_crossval(made.workspace, model)
    before = contents(result.folder)
    assert {"summary.json", "summary.csv", "crossval.json"} < before.keys()
    scored = read_json(result.folder / "summary.json")["metric_per_case"]
    assert all(Path(case["prediction_file"]).parent == result.folder for case in scored)
    assert all(Path(case["prediction_file"]).is_file() for case in scored)

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(crossval, "evaluate_cases", stopped)
    with pytest.raises(KeyboardInterrupt):
        accumulate_crossval(made.workspace, model)
    assert contents(result.folder) == before
    assert not list(model.glob(".*partial*"))


def test_older_results_stay_where_the_new_ones_cannot_take_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, model = validated(tmp_path)
    folder = accumulate_crossval(made.workspace, model).folder
    before, refused, replace = contents(folder), [True], os.replace

    def held(source: Path, target: Path) -> None:
        if Path(target) == folder and refused:
            refused.pop()
            raise PermissionError(13, "Access is denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr(Path, "rename", held)
    with pytest.raises(PermissionError, match="denied"):
        accumulate_crossval(made.workspace, model)
    assert contents(folder) == before
    assert not list(model.glob(".*partial*"))


@pytest.mark.parametrize(("ending", "other"), [(".mhd", ".zraw"), (".tif", ".json")])
def test_predictions_of_two_files_are_gathered_whole(tmp_path: Path, ending: str, other: str) -> None:
    made, model = validated(tmp_path, ending)
    folder = accumulate_crossval(made.workspace, model).folder
    for name in made.names:
        (source,) = model.glob(f"fold_*/validation/{name}{ending}")
        assert (folder / f"{name}{other}").is_file()
        label, geometry = read_label(folder / f"{name}{ending}")
        np.testing.assert_array_equal(label, read_label(source)[0])
        assert geometry.spacing_mm == GEOMETRY.spacing_mm
