"""The gathered out-of-fold results are there as a whole, or the older ones are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from out_of_fold_runs import DATASET, GEOMETRY, MadeUp, missing, write_predicted

from samunet.data.readers import read_label
from samunet.errors import SamunetError
from samunet.pipeline import crossval
from samunet.pipeline.crossval import accumulate_crossval
from samunet.records import read_json, write_json


def validated(root: Path, ending: str = ".nii.gz") -> tuple[MadeUp, Path]:
    """Made-up folds of a model that are validated; and its folder."""
    made = MadeUp(root=root, num_cases=5, ending=ending)
    model = made.add("2d_unet", missing(0.2))
    plan = model / "plan.json"
    write_json(plan, {**read_json(plan), "dataset": DATASET})
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint": "checkpoint_best.pth"}, "checkpoint_best.pth, step 0.5, mirroring"),
        ({"settings": {"min_iou": 0.7}}, "checkpoint_final.pth, step 0.5, mirroring, min_iou=0.7"),
        ({"step_size": 0.25}, "checkpoint_final.pth, step 0.25, mirroring"),
        ({"mirroring": False}, "checkpoint_final.pth, step 0.5, no mirroring"),
    ],
)
def test_folds_that_were_predicted_in_different_ways_are_no_one_set(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    made, model = validated(tmp_path)
    write_predicted(model / "fold_2/validation", **changes)
    with pytest.raises(SamunetError) as fault:
        accumulate_crossval(made.workspace, model)
    assert "folds 0 1 3 4: checkpoint_final.pth, step 0.5, mirroring; fold 2: " + words in str(fault.value)
    assert "samunet_train 950 2d_unet 2 --val" in str(fault.value)


def test_a_fold_of_which_nobody_knows_how_it_was_predicted(tmp_path: Path) -> None:
    made, model = validated(tmp_path)
    (model / "fold_2/validation/predict_args.json").unlink()
    with pytest.raises(SamunetError, match=r"not known how its cases .*: samunet_train 950 2d_unet 2 --val"):
        accumulate_crossval(made.workspace, model)


def test_folds_that_were_all_predicted_otherwise_are_gathered(tmp_path: Path) -> None:
    made, model = validated(tmp_path)
    for validation in model.glob("fold_*/validation"):
        write_predicted(validation, checkpoint="checkpoint_best.pth", settings={"min_iou": 0.7})
    assert accumulate_crossval(made.workspace, model).record.checkpoint == "checkpoint_best.pth"
