"""A small network taught by a trained one, from raw data to predictions, through the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from commands import SHORT

from samunet.cli import distill, plan_and_preprocess, predict, train
from samunet.errors import SamunetError
from samunet.pipeline.distill import teacher_folds
from samunet.pipeline.soft_labels import check_space
from samunet.trainers.checkpoint import load_checkpoint

NAME = "Dataset901_Tiny3D"
TEACH = ["--disable_tta", "-step_size", "1"]


@pytest.fixture(scope="module")
def taught(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace with `3d_unet` trained on fold 0 and `3d_student` distilled from it. Not to be changed."""
    root = tmp_path_factory.mktemp("distill") / "workspace"
    shutil.copytree(tiny_root / "raw", root / "raw")
    where = ["--workspace", str(root)]
    assert plan_and_preprocess.main(["-d", "901", "-c", "3d_unet", "-np", "1", *where]) == 0
    assert train.main(["901", "3d_unet", "0", *SHORT, *where]) == 0
    assert distill.main(["901", "3d_unet", "3d_student", "0", *TEACH, *SHORT, *where]) == 0
    return root


@pytest.fixture
def workspace(taught: Path, tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    shutil.copytree(taught, root)
    return root


def soft_folder(root: Path) -> Path:
    (folder,) = (root / "preprocessed" / NAME / "samunetPlans_3d_soft_labels").iterdir()
    return folder


def model_of(root: Path, *parts: str) -> Path:
    return root / "results" / NAME / "__".join(["3d_student", "samunetPlans", *parts])


def test_a_distilled_run_is_a_run(taught: Path, tmp_path: Path) -> None:
    fold = model_of(taught) / "fold_0"
    record = json.loads((fold / "run.json").read_text())["distillation"]
    assert record["teacher"] == "3d_unet__samunetPlans"
    assert (record["folds"], record["weight"], record["target"]) == ([0], 0.5, "probabilities")
    assert load_checkpoint(fold / "checkpoint_final.pth").overrides["distillation"] == record
    history = [json.loads(line) for line in (fold / "history.jsonl").read_text().splitlines()]
    assert {"loss", "dice", "ce", "mse"} <= set(history[0]["train"])
    assert {"loss", "mse"} <= set(history[0]["val"])
    assert (fold / "validation/summary.json").exists()
    assert len(list(soft_folder(taught).glob("*.soft.b2nd"))) == 6
    out = tmp_path / "out"
    words = ["-i", str(taught / "raw" / NAME / "imagesTr"), "-o", str(out), "-m", str(model_of(taught))]
    assert predict.main([*words, "--disable_tta", "-device", "cpu", "--workspace", str(taught)]) == 0
    assert len(list(out.glob("*.nii.gz"))) == 6


def test_labelling_goes_on_where_it_stopped(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = soft_folder(workspace)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.b2nd")}
    (folder / "tiny_002.json").unlink()
    words = ["901", "3d_unet", "3d_student", "0", *TEACH, *SHORT, "--workspace", str(workspace)]
    assert distill.main([*words, "--lambda", "1", "--tag", "alone"]) == 0
    assert "labels 1 cases" in capsys.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.b2nd")}
    assert {name for name in before if before[name] != after[name]} == {"tiny_002.soft.b2nd"}
    assert (model_of(workspace, "alone") / "fold_0/validation/summary.json").exists()


def test_continuing_repeats_what_was_asked(workspace: Path) -> None:
    where = ["--workspace", str(workspace)]
    words = ["901", "3d_unet", "3d_student", "0", *where]
    more = ["--lambda", "0.25", "--target", "logits", "--tag", "quarter"]
    assert distill.main([*words, *TEACH, *SHORT, *more]) == 0
    fold = model_of(workspace, "quarter") / "fold_0"
    record = json.loads((fold / "run.json").read_text())["distillation"]
    assert (record["weight"], record["target"], record["mirroring"]) == (0.25, "logits", False)
    (fold / "checkpoint_final.pth").unlink()
    assert distill.main([*words, "--c", "--tag", "quarter", "-np", "1", "-device", "cpu"]) == 0
    assert (fold / "checkpoint_final.pth").exists()


def test_several_folds_each_with_its_teacher(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--workspace", str(workspace)]
    assert train.main(["901", "3d_unet", "1", *SHORT, *where]) == 0
    words = ["901", "3d_unet", "3d_student", "0", "1", "--c", *where]
    assert distill.main(words) == 0
    told = capsys.readouterr().out
    assert "Fold 0 (1 of 2) is trained and validated already" in told
    assert "It begins with the settings of fold 0" in told
    records = [json.loads((model_of(workspace) / f"fold_{k}/run.json").read_text()) for k in (0, 1)]
    first, second = (record["distillation"] for record in records)
    assert (first["folds"], second["folds"]) == ([0], [1])
    assert first["mirroring"] is second["mirroring"] is False
    assert records[0]["overrides"]["settings"] == records[1]["overrides"]["settings"]
    assert (model_of(workspace) / "fold_1/validation/summary.json").exists()
    assert distill.main([*words, "--lambda", "1"]) == 2
    assert "weight of the distillation: 0.5 there, 1.0 now" in capsys.readouterr().err
    assert train.main(["901", "3d_student", "0", "1", "--c", *where]) == 2
    assert "distilled from 3d_unet__samunetPlans there, no teacher now" in capsys.readouterr().err


def test_unlabelled_images_are_learned_from(workspace: Path, tmp_path: Path) -> None:
    images = tmp_path / "more"
    images.mkdir()
    for channel in (0, 1):
        source = workspace / "raw" / NAME / "imagesTr" / f"tiny_001_{channel:04d}.nii.gz"
        image = sitk.ReadImage(str(source))
        flipped = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[:, :, ::-1].copy())
        flipped.CopyInformation(image)
        sitk.WriteImage(flipped, str(images / f"new_{channel:04d}.nii.gz"))
    words = ["901", "3d_unet", "3d_student", "0", *TEACH, *SHORT, "--workspace", str(workspace)]
    assert distill.main([*words, "--unlabelled", str(images), "--tag", "more"]) == 0
    record = json.loads((model_of(workspace, "more") / "fold_0/run.json").read_text())
    assert record["distillation"]["unlabelled"] == ["new"]
    assert "new" not in record["train"]
    assert (soft_folder(workspace) / "new.soft.b2nd").exists()
    assert (workspace / "preprocessed" / NAME / "samunetPlans_3d_unlabelled/new.json").exists()


def test_an_ensemble_teaches_fold_all(workspace: Path) -> None:
    where = ["--workspace", str(workspace)]
    assert train.main(["901", "3d_unet", "1", *SHORT, *where]) == 0
    words = ["901", "3d_unet", "3d_student", "all", "--teacher_folds", "0", "1", *TEACH, *SHORT, *where]
    assert distill.main(words) == 0
    record = json.loads((model_of(workspace) / "fold_all/run.json").read_text())["distillation"]
    assert record["folds"] == [0, 1]
    assert len(record["checkpoints_sha256"]) == 2


def test_which_folds_may_teach() -> None:
    assert teacher_folds(None, 3) == (3,)
    assert teacher_folds([3], 3) == (3,)
    assert teacher_folds(None, "all") == ("all",)
    assert teacher_folds([0, 1, 1], "all") == (0, 1)
    for asked in ([0, 1], [1], ["all"]):
        with pytest.raises(SamunetError, match="trained on validation cases of fold 0"):
            teacher_folds(asked, 0)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "soft" / "signature"
    with pytest.raises(SamunetError, match=r"soft labels of 7 cases need about .* GB"):
        check_space(folder, 1e18, 7)
    check_space(folder, 1e3, 7)
    assert not folder.exists()


def test_soft_labels_are_the_teachers_probabilities(taught: Path) -> None:
    import torch

    from samunet.inference.predictor import Predictor
    from samunet.preprocessing.soft_labels import SoftLabelIdentity, SoftLabelStore, decode
    from samunet.preprocessing.store import CaseStore
    from samunet.records import read_record

    folder = soft_folder(taught)
    identity = read_record(SoftLabelIdentity, folder / "identity.json")
    case = CaseStore(taught / "preprocessed" / NAME / "samunetPlans_3d").open("tiny_003")
    predictor = Predictor.load(
        taught / "results" / NAME / "3d_unet__samunetPlans",
        folds=(0,),
        device="cpu",
        step_size=1,
        mirroring=False,
    )
    expected = torch.softmax(predictor.predict_preprocessed(case.image[:]), 0)
    stored = SoftLabelStore(folder, identity).read("tiny_003", (0, 0, 0), case.record.shape)
    found = decode(torch.from_numpy(stored), identity)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=0.5 / 255 + 1e-4)
