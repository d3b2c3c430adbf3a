"""samunet_distill: mistakes get one message, exit code 2, and leave nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import SHORT

from samunet.cli import distill, plan_and_preprocess, preprocess, train

RESULTS = "results/Dataset901_Tiny3D"
STUDENT = ("901", "2d_unet", "2d_unet", "0", "--tag", "small", *SHORT)
"""A student of the teacher that the workspace has; U-Nets can be students too."""


@pytest.fixture
def images(workspace: Path, tmp_path: Path) -> Path:
    """One image of both channels with a name that the dataset does not have."""
    folder = tmp_path / "more"
    folder.mkdir()
    for channel in (0, 1):
        source = workspace / f"raw/Dataset901_Tiny3D/imagesTr/tiny_001_{channel:04d}.nii.gz"
        shutil.copy(source, folder / f"new_{channel:04d}.nii.gz")
    return folder


def nothing_made(root: Path) -> bool:
    made = [*(root / "preprocessed").rglob("*soft*"), *(root / RESULTS).glob("*small*/fold_0/*")]
    return not made


def test_a_teacher_that_is_not_trained(workspace: Path, refused) -> None:
    words = ("901", "2d_cnn", "2d_unet", "0", "--tag", "small")
    assert "samunet_train 901 2d_cnn 0" in refused(distill.main, workspace, *words)
    words = ("901", "2d_unet", "2d_unet", "1", "--tag", "small")
    assert "Trained folds: 0" in refused(distill.main, workspace, *words)
    told = refused(distill.main, workspace, *STUDENT, "--teacher_checkpoint", "checkpoint_worst.pth")
    assert "checkpoint_final.pth" in told
    assert "choose with --teacher_checkpoint" in told
    assert "-chk" not in told
    told = refused(distill.main, workspace, *STUDENT, "--teacher_tag", "other")
    assert "2d_unet__samunetPlans__other" in told
    assert nothing_made(workspace)


def test_the_teachers_checkpoint_has_the_names_of_the_other_commands() -> None:
    asked = distill.build_parser().parse_args([*STUDENT, "--teacher_checkpoint", "best"])
    assert asked.teacher_checkpoint == "checkpoint_best.pth"


def test_an_ensemble_for_a_numbered_fold(workspace: Path, refused) -> None:
    told = refused(distill.main, workspace, *STUDENT, "--teacher_folds", "0", "1")
    assert "trained on validation cases of fold 0" in told
    assert "fold all" in told


def test_teacher_and_student_of_one_name(workspace: Path, refused) -> None:
    words = ("901", "2d_unet", "2d_unet", "0", "--overwrite", *SHORT)
    assert "--tag" in refused(distill.main, workspace, *words)
    assert (workspace / RESULTS / "2d_unet__samunetPlans/fold_0/checkpoint_final.pth").exists()


def test_a_teacher_of_other_cases(workspace: Path, refused) -> None:
    assert preprocess.main(["-d", "901", "-c", "3d_unet", "-np", "1", "--workspace", str(workspace)]) == 0
    told = refused(distill.main, workspace, "901", "2d_unet", "3d_student", "0", *SHORT)
    assert "name is 2d there, 3d here" in told
    assert "same data configuration" in told


def test_a_teacher_that_has_seen_the_validation_cases(workspace: Path, refused) -> None:
    run = workspace / RESULTS / "2d_unet__samunetPlans/fold_0/run.json"
    kept = json.loads(run.read_text())
    run.write_text(json.dumps({**kept, "train": [*kept["train"], kept["val"][0]]}))
    told = refused(distill.main, workspace, *STUDENT)
    assert kept["val"][0] in told
    assert "same split" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--lambda", "2"), "'2' is not a share from 0 to 1"),
        (("--lambda", "much"), "'much' is not a share"),
        (("--target", "masks"), "probabilities"),
        (("-step_size", "2"), "-step_size"),
        (("--teacher_folds", "x"), "not a fold"),
        (("--val", "--c"), "exclude each other"),
        (("--set", "learning_rat=1"), "learning_rate"),
    ],
)
def test_flags_out_of_range(flags: tuple[str, ...], told: str, workspace: Path, refused) -> None:
    assert told in refused(distill.main, workspace, *STUDENT, *flags)
    assert nothing_made(workspace)


def test_unlabelled_images(workspace: Path, images: Path, refused) -> None:
    def told(*flags: str) -> str:
        return refused(distill.main, workspace, *STUDENT, "--unlabelled", *flags)

    assert "no folder" in told(str(images / "none"))
    assert "--lambda 0" in told(str(images), "--lambda", "0")
    own = workspace / "raw/Dataset901_Tiny3D/imagesTr"
    assert "tiny_000" in told(str(own))
    assert "validation cases" in told(str(own))
    (images / "new_0001.nii.gz").unlink()
    assert "new" in told(str(images))
    shutil.rmtree(images)
    images.mkdir()
    assert "holds no images" in told(str(images))
    assert nothing_made(workspace)


def test_a_distilled_run_is_not_mixed_with_a_plain_one(workspace: Path, refused) -> None:
    quick = ("--disable_tta", "-step_size", "1", "--workspace", str(workspace))
    assert distill.main([*STUDENT, *quick]) == 0
    plain = ("901", "2d_unet", "0", "--tag", "small", *SHORT)
    assert "distilled from 2d_unet__samunetPlans there, no teacher now" in refused(
        train.main, workspace, *plain
    )
    told = refused(distill.main, workspace, *STUDENT, *quick[:3], "--lambda", "0.25")
    assert "weight of the distillation: 0.5 there, 0.25 now" in told


def test_a_student_that_goes_on_knows_its_teachers_plan_and_tag(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = workspace / RESULTS / "2d_unet__samunetPlans"
    shutil.copytree(model, model.with_name("2d_unet__older__first"))
    where = ("--disable_tta", "-step_size", "1", "--workspace", str(workspace))
    teacher = ("--teacher_plans", "older", "--teacher_tag", "first")
    assert distill.main([*STUDENT, *teacher, *where]) == 0
    shutil.rmtree(model)
    for name in ("2d_unet", "auto"):
        words = ["901", name, "2d_unet", "0", "--tag", "small", "--c", "--workspace", str(workspace)]
        assert distill.main(words) == 0
        assert "Fold 0 is trained and validated already." in capsys.readouterr().out


def test_swin_unetr_without_monai(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "monai.networks.nets", None)
    assert preprocess.main(["-d", "901", "-c", "3d_unet", "-np", "1", "--workspace", str(workspace)]) == 0
    words = ("901", "3d_student", "0", "--set", "network=swin_unetr_tiny", *SHORT)
    assert "pip install monai" in refused(train.main, workspace, *words)


def test_pictures_have_no_third_axis(tiny_copy: Path, refused) -> None:
    where = ["--workspace", str(tiny_copy)]
    assert plan_and_preprocess.main(["-d", "902", "-np", "1", *where]) == 0
    told = refused(train.main, tiny_copy, "902", "3d_student", "0", *SHORT)
    assert "2d_unet" in told
