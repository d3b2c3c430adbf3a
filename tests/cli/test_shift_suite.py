"""Changed images through trained models: scores, files, going on, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from samunet.cli import shift_suite
from samunet.evaluation.shifts import SHIFTS
from samunet.inference.predictor import Predictor
from samunet.pipeline.shift_suite.run import chosen_cases

NAME = "Dataset901_Tiny3D"
QUICK = ["-d", "901", "--shifts", "noise", "--severities", "1", "5", "--disable_tta", "-device", "cpu"]


def run(root: Path, *words: str) -> int:
    return shift_suite.main([*QUICK, "-c", "2d", *words, "--workspace", str(root)])


def test_the_suite(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    assert run(workspace, "--limit", "1") == 0
    assert "2d_unet" in capsys.readouterr().out
    output = workspace / "results" / NAME / "shift_suite"
    rows = list(csv.DictReader((output / "shifts.csv").read_text().splitlines()))
    assert [(row["shift"], row["strength"]) for row in rows] == [
        ("clean", "0.0"),
        ("noise", "0.02"),
        ("noise", "0.15"),
    ]
    content = json.loads((output / "shifts.json").read_text())
    clean, *changed = content["methods"]["2d_unet"]["conditions"]
    assert list(clean["case_dice"]) == content["cases"]
    assert clean["dice_minus_clean"]["value"] == 0
    assert content["between"] == []
    mean = sum(c["foreground_mean"]["Dice"] for c in changed) / 2
    assert content["methods"]["2d_unet"]["mean_over_shifts"]["Dice"] == pytest.approx(mean)
    for name in ("curves_Dice.png", f"images_{content['cases'][0]}.png"):
        with Image.open(output / name) as picture:
            assert min(picture.size) > 150

    # What is finished is not predicted again; what is not is.
    shutil.rmtree(output / "2d_unet/noise_5")
    loads = []
    original = Predictor.load.__func__
    monkeypatch.setattr(
        Predictor, "load", classmethod(lambda cls, *a, **k: loads.append(1) or original(cls, *a, **k))
    )
    assert run(workspace, "--limit", "1") == 0
    assert run(workspace, "--limit", "1") == 0
    assert len(loads) == 1

    told = refused(shift_suite.main, workspace, *QUICK, "-c", "2d", "--limit", "1", "--seed", "3")
    assert "(seed)" in told
    assert "--overwrite" in told

    for part in ("imagesTr", "labelsTr"):
        (workspace / part).mkdir()
        for file in (workspace / "raw" / NAME / part).glob(f"{content['cases'][0]}*"):
            shutil.copy(file, workspace / part / file.name.replace("tiny", "other"))
    words = ["-i", str(workspace / "imagesTr"), "-l", str(workspace / "labelsTr"), "--seed", "3"]
    assert run(workspace, *words, "--overwrite") == 0
    (name,) = json.loads((output / "shifts.json").read_text())["cases"]
    assert name.startswith("other")

    # Other images of the same names are told from those that were predicted; copies of these are not.
    for file in [*(workspace / "imagesTr").iterdir(), *(workspace / "labelsTr").iterdir()]:
        file.touch()
    assert run(workspace, *words) == 0
    image = workspace / "imagesTr" / f"{name}_0000.nii.gz"
    shutil.copy(image.with_name(f"{name}_0001.nii.gz"), image)
    told = refused(shift_suite.main, workspace, *QUICK, "-c", "2d", *words)
    assert f"(files of the cases: {name})" in told
    made = json.loads((output / "2d_unet/noise_1/condition.json").read_text())
    for kept in output.glob("2d_unet/*/condition.json"):
        kept.write_text(json.dumps({**json.loads(kept.read_text()), "cases": list(made["cases"])}))
    told = refused(shift_suite.main, workspace, *QUICK, "-c", "2d", *words)
    assert "files of the cases: not written down then" in told
    assert run(workspace, *words, "--overwrite") == 0


def test_what_was_changed_across_slices_is_not_taken_up(workspace: Path, refused) -> None:
    """Earlier commits took the first axis for the one across slices; that is true of most files."""
    output, model = workspace / "results" / NAME / "shift_suite" / "2d_unet", "2d_unet__samunetPlans"
    (first, *_) = json.loads((output.parents[1] / model / "fold_0/run.json").read_text())["val"]
    for part in ("imagesTr", "labelsTr"):
        (workspace / part).mkdir()
        for file in (workspace / "raw" / NAME / part).glob(f"{first}*"):
            turned = sitk.PermuteAxes(sitk.ReadImage(str(file)), (0, 2, 1))
            sitk.WriteImage(turned, str(workspace / part / file.name.replace("tiny", "turned")))
    words = ["-i", str(workspace / "imagesTr"), "-l", str(workspace / "labelsTr"), "--severities", "1"]
    assert run(workspace, *words) == 0
    files = {name: output / name / "condition.json" for name in ("clean_0", "noise_1")}
    made = {name: json.loads(file.read_text()) for name, file in files.items()}
    assert made["noise_1"].pop("slice_axes") == {first.replace("tiny", "turned"): 1}
    assert "slice_axes" not in made["clean_0"]
    files["noise_1"].write_text(json.dumps(made["noise_1"]))
    told = refused(shift_suite.main, workspace, *QUICK, "-c", "2d", *words)
    assert "noise_1 was made with something else (slice_axes)" in told
    assert run(workspace, *words, "--overwrite") == 0
    assert run(workspace, "--severities", "1", "--limit", "1", "--overwrite") == 0
    assert "slice_axes" not in json.loads(files["noise_1"].read_text())


def test_two_trainings_of_one_method_have_a_name_and_a_folder_each(workspace: Path, refused) -> None:
    results = workspace / "results" / NAME
    shutil.copytree(results / "2d_unet__samunetPlans", results / "2d_unet__samunetPlans__slow")
    words = [*QUICK[:4], "--severities", "1", *QUICK[-3:], "--limit", "1", "-np", "1"]
    where = ["--workspace", str(workspace)]
    assert shift_suite.main([*words, "-c", "2d", "2d_unet__slow", *where]) == 0
    output = results / "shift_suite"
    assert set(json.loads((output / "shifts.json").read_text())["methods"]) == {"2d_unet", "2d_unet__slow"}
    assert (output / "2d_unet" / "noise_1").is_dir()
    assert (output / "2d_unet__slow" / "noise_1").is_dir()
    told = refused(shift_suite.main, workspace, *words, "-c", "2d", "2d_unet")
    assert "names a model twice" in told
    assert shift_suite.main([*words, "-c", "2d", "--tag", "slow", *where]) == 0
    assert (results / "shift_suite-slow" / "2d_unet" / "noise_1").is_dir()


def test_what_cannot_be_tested(workspace: Path, refused) -> None:
    assert "Train it" in refused(shift_suite.main, workspace, *QUICK, "-c", "2d_cnn")
    model = workspace / "results" / NAME / "2d_unet__samunetPlans"
    shutil.copytree(model / "fold_0", model / "fold_all")
    record = json.loads((model / "fold_all/run.json").read_text())
    record["train"] = record["val"] = [*record["train"], *record["val"]]
    (model / "fold_all/run.json").write_text(json.dumps(record))
    told = refused(shift_suite.main, workspace, *QUICK, "-c", "2d", "-f", "all")
    assert "keeps no case out" in told
    folders = [str(workspace / "raw" / NAME / name) for name in ("imagesTr", "labelsTr")]
    told = refused(shift_suite.main, workspace, *QUICK, "-c", "2d", "-i", folders[0], "-l", folders[1])
    assert "names of training cases" in told
    held = json.loads((model / "fold_0/run.json").read_text())["val"]
    gone = [
        workspace / "raw" / NAME / "imagesTr" / f"{held[0]}_0001.nii.gz",
        workspace / "raw" / NAME / "labelsTr" / f"{held[1]}.nii.gz",
    ]
    for file in gone:
        file.unlink()
    told = refused(shift_suite.main, workspace, *QUICK, "-c", "2d", "-f", "0")
    assert all(file.name in told for file in gone)
    assert "give the folder" in refused(shift_suite.main, workspace, *QUICK, "-c", "2d", "-i", folders[0])


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, "abcdefghijklm"), (12, "abcdefghijkl"), (13, "abcdefghijklm"), (4, "adgj")]
)
def test_so_many_cases_as_are_asked_for_are_taken(limit: int | None, expected: str) -> None:
    assert "".join(chosen_cases("abcdefghijklm", limit)) == expected
    for count in range(1, 30):
        chosen = chosen_cases(range(count), 12)
        assert len(chosen) == min(12, count)
        assert sorted(set(chosen)) == list(chosen)
        gaps = np.diff([*chosen, count])
        assert gaps.max() - gaps.min() <= 1


def test_the_command_knows_all_kinds() -> None:
    assert tuple(SHIFTS) == shift_suite.KINDS
