"""Folders that predictions must not be written into."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import load, write_fold, write_images

from samunet.errors import SamunetError
from samunet.inference.files import FileOptions
from samunet.inference.output_folder import check_owner
from samunet.inference.postprocessing import Postprocessing, postprocess_folder
from samunet.records import write_json


def test_results_of_one_command_are_no_place_for_another(tmp_path: Path) -> None:
    for name, owner in (
        ("predict_args.json", "samunet_predict"),
        ("qc.json", "samunet_predict"),
        ("ensemble_args.json", "samunet_ensemble"),
        ("postprocessing.json", "samunet_apply_postprocessing"),
    ):
        (folder := tmp_path / name.replace(".", "_")).mkdir()
        (folder / name).write_text("{}")
        for command in ("samunet_predict", "samunet_ensemble", "samunet_apply_postprocessing"):
            if command == owner:
                check_owner(folder, command)
                continue
            with pytest.raises(SamunetError, match=f"holds results of {owner} \\({name}\\)"):
                check_owner(folder, command)
    check_owner(tmp_path / "absent", "samunet_predict")


def test_segmentations_of_another_command_are_not_taken_for_a_models_own(tmp_path: Path) -> None:
    write_fold(model := tmp_path / "2d_unet__tinyPlans", 0)
    write_images(images := tmp_path / "in", ("a",))
    predictor, first, second = load(model, mirroring=False), tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        predictor.predict_files(images, folder)
    declared = {"labels": {"background": 0, "organ": 1, "lesion": 2}, "file_ending": ".nii.gz"}
    write_json(first / "dataset.json", declared)
    rules = Postprocessing(labels=predictor.plan.labels, rules=())
    before = (second / "a.nii.gz").stat().st_mtime_ns
    with pytest.raises(SamunetError, match="holds results of samunet_predict"):
        postprocess_folder(first, second, rules)
    assert (second / "a.nii.gz").stat().st_mtime_ns == before
    postprocess_folder(first, made := tmp_path / "made", rules)
    for options in (FileOptions(), FileOptions(skip_existing=True)):
        with pytest.raises(SamunetError, match="holds results of samunet_apply_postprocessing"):
            predictor.predict_files(images, made, options)
    assert not (made / "predict_args.json").exists()
