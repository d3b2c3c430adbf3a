"""Folders that predictions must not be written into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_folders import load, write_fold, write_images

from samunet.cli import apply_postprocessing, ensemble, predict
from samunet.errors import SamunetError
from samunet.inference.ensemble import EnsembleOptions, ensemble_folders
from samunet.inference.files import FileOptions, check_arguments
from samunet.inference.output_folder import check_output, check_owner, refuse_foreign_files, refuse_raw_data
from samunet.inference.postprocessing import Postprocessing, postprocess_folder
from samunet.records import read_json, write_json


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


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Raw folder of a workspace with Dataset001_A, and Dataset002_B that is a link to another place."""
    raw = tmp_path / "workspace" / "raw"
    for dataset in (raw / "Dataset001_A", tmp_path / "elsewhere"):
        (dataset / "labelsTr").mkdir(parents=True)
        write_json(dataset / "dataset.json", {})
    (raw / "Dataset002_B").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    return raw


def test_raw_data_are_no_place_for_predictions(raw: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.symlink_to(raw / "Dataset001_A" / "labelsTr", target_is_directory=True)
    elsewhere = tmp_path / "elsewhere"
    for folder in (
        raw / "Dataset001_A" / "labelsTr",
        raw / "Dataset001_A" / "imagesTs",  # not there yet
        raw / "Dataset002_B" / "labelsTr" / "new",
        elsewhere / "labelsTs",
        raw / "Dataset001_A" / "new" / ".." / "labelsTr",
        linked,
    ):
        with pytest.raises(SamunetError, match=r"of the raw dataset .*dataset\.json"):
            refuse_raw_data(folder)
    for folder in (raw / "Dataset001_A", raw / "new", raw, elsewhere):
        refuse_raw_data(folder)
        with pytest.raises(SamunetError, match="raw data of the workspace"):
            refuse_raw_data(folder, raw)
    inside = raw / "Dataset001_A" / "inferTs"
    for folder in (inside, tmp_path / "labelsTr", tmp_path / "out", raw.parent / "results" / "raw"):
        refuse_raw_data(folder, raw)
    refuse_raw_data(tmp_path / "out", tmp_path / "absent")


@pytest.mark.parametrize("place", ["labelsTr", ""])
def test_nothing_is_predicted_averaged_or_postprocessed_into_a_dataset(
    place: str, raw: Path, tmp_path: Path
) -> None:
    dataset = tmp_path / "elsewhere"  # no folder of a workspace
    labels = dataset / place
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    write_fold(model := tmp_path / "2d_unet__tinyPlans", 0)
    write_images(images := tmp_path / "in", ("a",))
    predictor = load(model, mirroring=False)
    (other := tmp_path / "other").mkdir()
    options = EnsembleOptions(labels=predictor.plan.labels, file_ending=".nii.gz")
    rules = Postprocessing(labels=predictor.plan.labels, rules=())
    with pytest.raises(SamunetError, match="raw dataset"):
        predictor.predict_files(images, labels)
    with pytest.raises(SamunetError, match="raw dataset"):
        ensemble_folders([images, other], labels, options)
    with pytest.raises(SamunetError, match="raw dataset"):
        postprocess_folder(images, labels, rules)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


@pytest.mark.parametrize("main", [predict.main, ensemble.main, apply_postprocessing.main])
def test_commands_know_the_workspaces_raw_data(
    main: Callable[[list[str]], int], raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = ["-pp_file", str(tmp_path / "none.json")] if main is apply_postprocessing.main else []
    into = ["-o", str(raw / "new"), "--workspace", str(raw.parent)]
    assert main(["-i", str(tmp_path / "in"), *into, *rules]) == 2
    told = capsys.readouterr().err
    assert "raw data of the workspace" in told
    assert "Traceback" not in told


def test_a_model_that_was_moved_is_no_other_model(tmp_path: Path) -> None:
    """The workspace may be mounted elsewhere the next day; what it was trained to is among the arguments."""

    def arguments(place: str, sha256: str = "a", step_size: float = 0.5) -> dict[str, Any]:
        return {"models": [{"model": place, "trained": {"0": {"sha256": sha256}}}], "step_size": step_size}

    check_arguments(tmp_path, arguments("/one/model"), continuing=True)
    check_arguments(tmp_path, arguments("/other/model"), continuing=True)
    assert read_json(tmp_path / "predict_args.json")["models"][0]["model"] == "/other/model"
    with pytest.raises(SamunetError, match="has been trained again since"):
        check_arguments(tmp_path, arguments("/one/model", sha256="b"), continuing=True)
    with pytest.raises(SamunetError, match=r"step_size was 0\.5, is 0\.25"):
        check_arguments(tmp_path, arguments("/one/model", step_size=0.25), continuing=True)


def test_label_maps_of_others_are_not_replaced(tmp_path: Path) -> None:
    """Somebody's manual labels have the names that predictions would have."""
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / "a.nii.gz").write_bytes(b"labels")
    files = [manual / "a.nii.gz", manual / "b.nii.gz"]
    with pytest.raises(SamunetError, match=r"holds a\.nii\.gz, which this command did not make"):
        refuse_foreign_files(manual, files, "predict_args.json")
    refuse_foreign_files(manual, files[1:], "predict_args.json")
    (manual / "predict_args.json").touch()
    refuse_foreign_files(manual, files, "predict_args.json")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("model", "the trained model"),
        ("model/fold_0", "the trained fold"),
        ("model/fold_0/validation", "the trained fold"),
        ("preprocessed", "the preprocessed data"),
        ("model/predictions", ""),
        ("predictions", ""),
    ],
)
def test_results_are_no_place_for_predictions(place: str, told: str, tmp_path: Path) -> None:
    """Those of five folds would pass for the out-of-fold ones of one."""
    write_json(tmp_path / "model" / "fold_0" / "run.json", {})
    write_json(tmp_path / "model" / "fingerprint.json", {})
    write_json(tmp_path / "preprocessed" / "fingerprint.json", {})
    if not told:
        check_output(tmp_path / place, "samunet_predict", tmp_path / "raw")
        return
    with pytest.raises(SamunetError, match=f"is or lies in {told}"):
        check_output(tmp_path / place, "samunet_predict", tmp_path / "raw")
    check_output(tmp_path / place, "samunet_predict")  # a training writes its validation there
