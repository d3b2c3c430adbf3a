"""samunet_evaluate_folder: what it prints for programs, and what it refuses before it scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from samunet.cli import ensemble, evaluate_folder
from samunet.data.geometry import Geometry
from samunet.data.readers import write_segmentation
from samunet.records import read_json, write_json

DECLARED = {"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


def write(file: Path, shape: tuple[int, int, int] = (4, 8, 8), origin: float = 0) -> None:
    array = np.zeros(shape, np.uint8)
    array[1:3, 2:5, 2:5] = 1
    geometry = Geometry(shape=shape, spacing_mm=(1.0, 1.0, 1.0), origin_mm=(origin, 0.0, 0.0))
    write_segmentation(array, geometry, file)


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Arguments for one case whose prediction lies elsewhere, which is warned of."""
    write(tmp_path / "labels/a.nii.gz")
    write(tmp_path / "predicted/a.nii.gz", origin=5)
    write_json(tmp_path / "predicted/dataset.json", DECLARED)
    return [str(tmp_path / "labels"), str(tmp_path / "predicted"), "-np", "1"]


def test_what_a_program_reads_holds_nothing_else(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_folder.main([*folders, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["mean"]["1"]["Dice"] == 1
    assert "Warning: " in printed.err


def test_a_table_cannot_take_the_summarys_place(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_folder.main([*folders, "-o", str(tmp_path / "scores.csv")]) == 2
    assert "scores.json" in capsys.readouterr().err
    assert not (tmp_path / "scores.csv").exists()


def test_all_pairs_of_different_shape_are_listed(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b", "c"):
        write(tmp_path / f"labels/{name}.nii.gz")
        write(tmp_path / f"predicted/{name}.nii.gz", shape=(4, 8, 9))
    (tmp_path / "predicted/a.nii.gz").write_bytes(b"no image")
    assert evaluate_folder.main(folders) == 2
    told = capsys.readouterr().err
    assert all(f"predicted/{name}.nii.gz" in told for name in "abc")
    assert told.count("(4, 8, 9)") == 2


@pytest.mark.parametrize("ending", [None, 5, "nii.gz"])
def test_an_ending_that_is_none(
    folders: list[str], tmp_path: Path, ending: object, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "dataset.json"
    write_json(file, {**DECLARED, "file_ending": ending})
    assert evaluate_folder.main([*folders, "-djfile", str(file)]) == 2
    assert "`file_ending` must be an ending" in capsys.readouterr().err
    words = ["-i", *folders[:2], "-o", str(tmp_path / "out"), "-djfile", str(file)]
    assert ensemble.main(words) == 2
    assert "`file_ending` must be an ending" in capsys.readouterr().err


def test_swapped_folders_leave_nothing_in_the_raw_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, predicted = tmp_path / "Dataset001_X" / "labelsTr", tmp_path / "predicted"
    write(labels / "a.nii.gz")
    write(predicted / "a.nii.gz")
    write_json(tmp_path / "Dataset001_X" / "dataset.json", DECLARED)
    file = ["-djfile", str(tmp_path / "Dataset001_X" / "dataset.json"), "-np", "1"]
    assert evaluate_folder.main([str(predicted), str(labels), *file]) == 2
    assert "Are both folders swapped?" in capsys.readouterr().err
    assert [path.name for path in labels.iterdir()] == ["a.nii.gz"]
    assert evaluate_folder.main([str(labels), str(predicted), *file, "-pfile", "plans.json"]) == 0
    assert "-pfile has no effect" in capsys.readouterr().out


def test_the_scores_of_a_training_are_not_replaced(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Selection and bounds stand on those of all classes at the usual tolerance."""
    validation = tmp_path / "model" / "fold_0" / "validation"
    write_json(validation.parent / "run.json", {})
    (tmp_path / "predicted").rename(validation)
    (validation / "summary.json").write_text("the training's")
    words = [folders[0], str(validation), "-np", "1"]
    for flags in ([], ["-o", str(validation / "summary.json")]):
        assert evaluate_folder.main([*words, *flags]) == 2
        assert "Name another file with -o" in capsys.readouterr().err
    assert (validation / "summary.json").read_text() == "the training's"
    assert not (validation / "summary.csv").exists()
    assert evaluate_folder.main([*words, "-o", str(validation / "loose.json")]) == 0


def test_groups_are_those_of_the_dataset_json_whether_it_is_named_or_lies_there(
    folders: list[str], tmp_path: Path
) -> None:
    predicted = tmp_path / "predicted"
    write_json(predicted / "dataset.json", {**DECLARED, "groups": {"a": "north"}})
    words = [*folders[:2], "-np", "1"]
    found = []
    for flags in ([], ["-djfile", str(predicted / "dataset.json")]):
        assert evaluate_folder.main([*words, *flags, "-o", str(tmp_path / "scores.json")]) == 0
        found.append(read_json(tmp_path / "scores.json")["by_group"])
    assert list(found[0]) == ["north"]
    assert found[0] == found[1]


def test_folders_that_hold_nothing_to_score_are_named(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, predicted, *rest = folders
    assert evaluate_folder.main([labels, str(tmp_path / "nope"), *rest]) == 2
    assert f"PREDICTIONS, {tmp_path / 'nope'}, does not exist" in capsys.readouterr().err
    assert evaluate_folder.main([labels, str(tmp_path / "predicted/a.nii.gz"), *rest]) == 2
    assert "is no folder" in capsys.readouterr().err
    write_json(tmp_path / "pictures.json", {**DECLARED, "file_ending": ".png"})
    djfile = ["-djfile", str(tmp_path / "pictures.json")]
    assert evaluate_folder.main([labels, predicted, *rest, *djfile]) == 2
    assert f"{labels} holds no label maps with the ending .png. It holds a.nii.gz." in capsys.readouterr().err
