"""Bad input: one message that names the file or key, exit code 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from commands import SHORT

from samunet.cli import evaluate_folder, plan_and_preprocess, plan_experiment, predict, preprocess, train

RAW = "raw/Dataset901_Tiny3D"
MODEL = "results/Dataset901_Tiny3D/2d_unet__samunetPlans"


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the voxels of a NIfTI file and keep its geometry (where the shape stays)."""
    image = sitk.ReadImage(str(path))
    changed = change(sitk.GetArrayFromImage(image))
    result = sitk.GetImageFromArray(changed)
    if changed.shape == sitk.GetArrayFromImage(image).shape:
        result.CopyInformation(image)
    else:
        result.SetSpacing(image.GetSpacing())
        result.SetDirection(image.GetDirection())
    sitk.WriteImage(result, str(path), True)


def set_voxel(value: float, kind: type) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        changed = array.astype(kind)
        changed[5, 16, 16] = value
        return changed

    return change


def shift(path: Path) -> None:
    image = sitk.ReadImage(str(path))
    image.SetOrigin((500.0, 0.0, 0.0))
    sitk.WriteImage(image, str(path), True)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rename_key(path: Path, old: str, new: str) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({new if key == old else key: value for key, value in content.items()}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1500])


RAW_FAULTS = {
    "missing channel": (lambda raw: (raw / "imagesTr/tiny_002_0001.nii.gz").unlink(), "tiny_002"),
    "missing label": (lambda raw: (raw / "labelsTr/tiny_003.nii.gz").unlink(), "tiny_003.nii.gz"),
    "shape of the label": (
        lambda raw: rewrite(raw / "labelsTr/tiny_001.nii.gz", lambda a: a[:, :-2]),
        "labelsTr/tiny_001.nii.gz",
    ),
    "geometry of the label": (
        lambda raw: shift(raw / "labelsTr/tiny_001.nii.gz"),
        "labelsTr/tiny_001.nii.gz",
    ),
    "unknown label value": (
        lambda raw: rewrite(raw / "labelsTr/tiny_004.nii.gz", set_voxel(7, np.uint8)),
        "labelsTr/tiny_004.nii.gz",
    ),
    "NaN": (
        lambda raw: rewrite(raw / "imagesTr/tiny_000_0000.nii.gz", set_voxel(np.nan, np.float32)),
        "imagesTr/tiny_000_0000.nii.gz",
    ),
    "truncated": (
        lambda raw: truncate(raw / "imagesTr/tiny_001_0000.nii.gz"),
        "imagesTr/tiny_001_0000.nii.gz",
    ),
    "empty folder": (
        lambda raw: (shutil.rmtree(raw / "imagesTr"), (raw / "imagesTr").mkdir()),
        "imagesTr",
    ),
    "non-numeric key": (
        lambda raw: edit_json(raw / "dataset.json", channel_names={"T1": "T1", "1": "T2"}),
        "channel_names",
    ),
    "misspelt key": (
        lambda raw: rename_key(raw / "dataset.json", "channel_names", "chanel_names"),
        "`chanel_names`; is it meant",
    ),
    "label that is no number": (
        lambda raw: edit_json(raw / "dataset.json", labels={"background": 0, "organ": "one"}),
        "organ",
    ),
    "no JSON": (lambda raw: (raw / "dataset.json").write_text("{"), "dataset.json"),
}


@pytest.mark.parametrize("flags", [[], ["--verify_dataset_integrity"]], ids=["plain", "verified"])
@pytest.mark.parametrize("fault", RAW_FAULTS)
def test_a_faulty_dataset_is_not_planned(fault: str, flags: list[str], tiny_copy: Path, refused) -> None:
    damage, named = RAW_FAULTS[fault]
    damage(tiny_copy / RAW)
    told = refused(plan_and_preprocess.main, tiny_copy, "-d", "901", "-np", "1", *flags)
    assert named in told
    preprocessed = tiny_copy / "preprocessed" / "Dataset901_Tiny3D"
    assert not list(preprocessed.rglob("*")) if preprocessed.exists() else True


def test_verification_lists_all_faults(tiny_copy: Path, refused) -> None:
    for fault in ("unknown label value", "NaN", "truncated", "missing channel"):
        RAW_FAULTS[fault][0](tiny_copy / RAW)
    told = refused(plan_and_preprocess.main, tiny_copy, "-d", "901", "-np", "1", "--verify_dataset_integrity")
    for fault in ("unknown label value", "NaN", "truncated", "missing channel"):
        assert RAW_FAULTS[fault][1] in told


def test_unknown_dataset(tiny_copy: Path, refused) -> None:
    assert "Dataset901_Tiny3D" in refused(plan_experiment.main, tiny_copy, "-d", "77", "--explain")


@pytest.mark.parametrize("name", ["2d_autosamm", "3d_lowres", "no_such.module", "2d-unet"])
def test_unknown_method(name: str, workspace: Path, refused) -> None:
    told = refused(train.main, workspace, "901", name, "0")
    assert name in told
    if name == "2d_autosamm":
        assert "Did you mean 2d_autosam" in told
    assert not (workspace / f"results/Dataset901_Tiny3D/{name}__samunetPlans").exists()


def test_unknown_setting(workspace: Path, refused) -> None:
    told = refused(train.main, workspace, "901", "2d", "1", "--set", "learning_rat=1")
    assert "learning_rate" in told
    assert not (workspace / MODEL / "fold_1/run.json").exists()


def test_setting_of_a_wrong_type(workspace: Path, refused) -> None:
    assert "momentum" in refused(train.main, workspace, "901", "2d", "1", "--set", "momentum=high")


def test_a_class_that_no_case_contains_is_warned_of(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_copy / RAW / "dataset.json"
    edit_json(file, labels={**json.loads(file.read_text())["labels"], "cyst": 7})
    words = ["-d", "901", "-np", "1", "--no_pp", "--workspace", str(tiny_copy)]
    assert plan_and_preprocess.main(words) == 0
    assert "Warning: No case contains cyst" in capsys.readouterr().out


def test_a_file_where_a_folder_is_needed(workspace: Path, tmp_path: Path, refused) -> None:
    (tmp_path / "out").touch()
    images = workspace / RAW / "imagesTr"
    model = ("-d", "901", "-c", "2d", "-f", "0")
    told = refused(predict.main, workspace, "-i", str(images), "-o", str(tmp_path / "out"), *model)
    assert f"{tmp_path / 'out'} is a file where a folder is needed" in told


@pytest.mark.parametrize("number", ["5", "99"])
def test_fold_out_of_range(number: str, workspace: Path, refused) -> None:
    told = refused(train.main, workspace, "901", "2d", number, *SHORT)
    assert "0 to 4" in told
    assert not (workspace / MODEL / f"fold_{number}").exists()


def test_plan_from_other_data(workspace: Path, refused) -> None:
    rewrite(workspace / RAW / "imagesTr/tiny_000_0000.nii.gz", set_voxel(300, np.int16))
    assert "tiny_000" in refused(train.main, workspace, "901", "2d", "1", *SHORT)
    file = workspace / "preprocessed/Dataset901_Tiny3D/samunetPlans.json"
    edit_json(file, fingerprint_hash="0" * 16)
    told = refused(train.main, workspace, "901", "2d", "1", *SHORT)
    assert "samunetPlans.json was made from other data" in told


def test_cases_are_not_preprocessed_by_a_plan_from_other_data(workspace: Path, refused) -> None:
    fingerprint = workspace / "preprocessed/Dataset901_Tiny3D/fingerprint.json"
    edit_json(fingerprint, data_hash="0" * 16)
    told = refused(preprocess.main, workspace, "-d", "901", "-c", "2d", "-np", "1")
    assert "other data" in told
    assert "Plan again" in told


def test_data_that_changed_after_planning_are_told_of(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["-d", "901", "-c", "2d", "-np", "1", "--workspace", str(workspace)]
    assert preprocess.main(words) == 0
    assert "fingerprint.json" not in caplog.text
    rewrite(workspace / RAW / "labelsTr/tiny_001.nii.gz", set_voxel(2, np.uint8))
    assert preprocess.main(words) == 0
    assert "samunet_plan_and_preprocess -d Dataset901_Tiny3D -p samunetPlans" in caplog.text


def test_plan_with_a_foreign_key(workspace: Path, refused) -> None:
    edit_json(workspace / "preprocessed/Dataset901_Tiny3D/samunetPlans.json", patchsize=3)
    assert "patchsize" in refused(train.main, workspace, "901", "2d", "1")


def test_no_plan(tiny_copy: Path, refused) -> None:
    assert "samunet_plan_and_preprocess" in refused(train.main, tiny_copy, "901", "2d", "0")


def test_cases_that_are_not_preprocessed(workspace: Path, refused) -> None:
    assert "samunet_preprocess" in refused(train.main, workspace, "901", "3d_unet", "0")


def test_frozen_encoder_without_weights(workspace: Path, refused) -> None:
    told = refused(train.main, workspace, "901", "2d_cnn", "0", "--set", "encoder=frozen", *SHORT)
    assert "samunet_download_weights" in told
    assert not list((workspace / "results/Dataset901_Tiny3D").glob("2d_cnn*/fold_0/*"))


def test_weights_that_are_not_there(workspace: Path, refused) -> None:
    told = refused(train.main, workspace, "901", "2d_cnn", "0", "-w", str(workspace / "none.pth"), *SHORT)
    assert "none.pth" in told


@pytest.mark.parametrize("name", ["vit_t", "vit_x"])
def test_unknown_encoder(name: str, workspace: Path, refused) -> None:
    assert name in refused(train.main, workspace, "901", "2d_cnn", "0", "-encoder", name, *SHORT)


def test_a_finished_run_is_not_replaced(workspace: Path, refused) -> None:
    files = [
        workspace / MODEL / name for name in ("plan.json", "fold_0/run.json", "fold_0/checkpoint_final.pth")
    ]
    before = [file.read_bytes() for file in files]
    edit_json(workspace / "preprocessed/Dataset901_Tiny3D/samunetPlans.json", goal="speed")
    assert "--overwrite" in refused(train.main, workspace, "901", "2d", "0", *SHORT)
    assert "--tag" in refused(train.main, workspace, "901", "2d", "0", "--epochs", "7")
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("scheme", ["leave_one_group_out", "single_source:A"])
def test_group_split_without_groups(scheme: str, workspace: Path, refused) -> None:
    words = ("901", "2d", "1", "--splits", scheme, *SHORT)
    assert "groups.csv" in refused(train.main, workspace, *words)


def test_unknown_split_scheme(workspace: Path, refused) -> None:
    told = refused(train.main, workspace, "901", "2d", "1", "--splits", "leave_one_out", *SHORT)
    assert "leave_one_group_out" in told


@pytest.fixture
def images(workspace: Path, tmp_path: Path) -> Path:
    """Prediction input: both channels of one case."""
    folder = tmp_path / "images"
    folder.mkdir()
    for channel in (0, 1):
        shutil.copy(workspace / RAW / f"imagesTr/tiny_001_{channel:04d}.nii.gz", folder)
    return folder


def predict_words(images: Path, *more: str) -> tuple[str, ...]:
    return ("-i", str(images), "-o", str(images.parent / "out"), "-d", "901", "-c", "2d", *more)


def test_prediction_of_an_empty_folder(workspace: Path, images: Path, refused) -> None:
    shutil.rmtree(images)
    assert "images" in refused(predict.main, workspace, *predict_words(images))
    images.mkdir()
    assert "tiny" not in refused(predict.main, workspace, *predict_words(images))
    assert not (images.parent / "out").exists()


def test_prediction_with_a_missing_channel(workspace: Path, images: Path, refused) -> None:
    (images / "tiny_001_0001.nii.gz").unlink()
    assert "tiny_001" in refused(predict.main, workspace, *predict_words(images))
    assert not (images.parent / "out").exists()


def test_a_bad_case_is_reported_and_the_others_finish(workspace: Path, images: Path, refused) -> None:
    for channel in (0, 1):
        shutil.copy(images / f"tiny_001_{channel:04d}.nii.gz", images / f"bad_{channel:04d}.nii.gz")
    truncate(images / "bad_0001.nii.gz")
    from samunet.cli.predict import main

    words = predict_words(images, "--disable_tta", "--workspace", str(workspace))
    assert main(words) == 2
    assert sorted(f.name for f in (images.parent / "out").glob("*.nii.gz")) == ["tiny_001.nii.gz"]


def test_prediction_with_a_model_that_is_not_trained(workspace: Path, images: Path, refused) -> None:
    assert "Trained folds: 0" in refused(predict.main, workspace, *predict_words(images, "-f", "3"))
    told = refused(predict.main, workspace, *predict_words(images, "-chk", "checkpoint_worst.pth"))
    assert "checkpoint_final.pth" in told
    words = ("-i", str(images), "-o", "out", "-d", "901", "-c", "2d_cnn")
    assert "2d_unet__samunetPlans" in refused(predict.main, workspace, *words)


def test_a_folder_of_one_fold_is_named_with_its_model(
    workspace: Path, images: Path, tmp_path: Path, refused
) -> None:
    fold = workspace / MODEL / "fold_0"
    words = ("-i", str(images), "-o", str(tmp_path / "out"))
    assert f"folder {fold.parent}, and the fold with -f 0" in refused(
        predict.main, workspace, *words, "-m", str(fold)
    )
    told = refused(predict.main, workspace, *words, "-m", str(fold.parent), "-f", "0", "-chk", "nobody")
    assert "holds no fold with nobody.pth. There is checkpoint_" in told


def test_a_cut_off_checkpoint(workspace: Path, images: Path, refused) -> None:
    truncate(workspace / MODEL / "fold_0/checkpoint_final.pth")
    assert "checkpoint_final.pth" in refused(predict.main, workspace, *predict_words(images))


def test_prediction_flags_out_of_range(workspace: Path, images: Path, refused) -> None:
    assert "-part_id" in refused(predict.main, workspace, *predict_words(images, "-part_id", "1"))
    assert "-step_size" in refused(predict.main, workspace, *predict_words(images, "-step_size", "1.5"))
    assert "-m FOLDER" in refused(predict.main, workspace, "-i", str(images), "-o", "out")


def test_numbers_of_processes_have_no_effect_and_are_told_so(
    workspace: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = predict_words(images, "-npp", "3", "-nps", "1", "--workspace", str(workspace), "-device", "cpu")
    assert predict.main(words) == 0
    assert capsys.readouterr().out.count("-np, -npp and -nps have no effect") == 1


def test_evaluation_of_missing_predictions(workspace: Path, tmp_path: Path, refused) -> None:
    labels, empty = workspace / RAW / "labelsTr", tmp_path / "predictions"
    empty.mkdir()
    told = refused(evaluate_folder.main, workspace, str(labels), str(empty), "-d", "901")
    assert "tiny_000.nii.gz" in told
    assert not list(empty.iterdir())


def no_space(*arguments: object, **more: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_no_space_for_the_plan(workspace: Path, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    monkeypatch.setattr(Path, "write_text", no_space)
    told = refused(plan_experiment.main, workspace, "-d", "901", "-p", "other")
    assert "No space left" in told
    assert "other.json" in told
    assert not list((workspace / "preprocessed").rglob("*other*"))


def test_no_space_for_preprocessed_cases(workspace: Path, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    import numpy

    monkeypatch.setattr(numpy, "save", no_space)
    told = refused(preprocess.main, workspace, "-d", "901", "-c", "3d_unet", "-np", "1")
    assert "space" in told
    assert not list((workspace / "preprocessed").rglob("*partial*"))


def test_preprocessing_that_may_not_start_is_one_message(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    def not_allowed(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/dev/shm/one")

    monkeypatch.setattr("samunet.preprocessing.dataset._run", not_allowed)
    told = refused(preprocess.main, workspace, "-d", "901", "-c", "3d_unet", "-np", "1")
    assert "Not allowed to use /dev/shm/one" in told


def test_no_space_for_a_checkpoint(workspace: Path, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    import torch

    monkeypatch.setattr(torch, "save", no_space)
    told = refused(train.main, workspace, "901", "2d", "1", *SHORT)
    assert "No space left" in told
    assert ".pth" in told
    assert not list((workspace / MODEL / "fold_1").glob("*.pth*"))
