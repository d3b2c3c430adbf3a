"""Trainings on one group are kept apart, and their scores become the source -> target matrix."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest
from commands import SHORT
from PIL import Image

from samunet.cli import group_matrix, train
from samunet.workspace import split_tag

NAME = "Dataset901_Tiny3D"
GROUPS = {f"tiny_{i:03d}": "north" if i < 3 else "south side" for i in range(6)}


def write_groups(root: Path, groups: dict[str, str]) -> None:
    lines = ["case,group", *(f"{case},{group}" for case, group in groups.items())]
    (root / "raw" / NAME / "groups.csv").write_text("\n".join(lines) + "\n")


def run_folder(root: Path, tag: str) -> Path:
    return root / "results" / NAME / f"2d_unet__samunetPlans__{tag}" / "fold_0"


def write_scores(folder: Path, dice: dict[str, float]) -> None:
    """Scores of these cases, under the groups of an earlier day."""
    file = folder / "validation/summary.json"
    summary = json.loads(file.read_text())
    like = summary["metric_per_case"][0]
    classes = {key: {**scores, "Dice": 0.0} for key, scores in like["metrics"].items()}
    summary["metric_per_case"] = [
        {
            **like,
            "case": case,
            "group": "as it was",
            "metrics": {key: {**scores, "Dice": value} for key, scores in classes.items()},
        }
        for case, value in sorted(dice.items())
    ]
    summary["by_group"] = {"as it was": {"cases": len(dice), "foreground_mean": {}, "mean": {}}}
    file.write_text(json.dumps(summary))


def pretend(root: Path, tag: str, source: str, dice: float, configuration_hash: str = "") -> Path:
    """A finished run on one group, made of the default split's."""
    folder, model = run_folder(root, tag), root / "results" / NAME / "2d_unet__samunetPlans"
    shutil.copytree(model, folder.parent)
    record = json.loads((folder / "run.json").read_text())
    record["train"] = [case for case, group in GROUPS.items() if group == source]
    record["val"] = [case for case, group in GROUPS.items() if group != source]
    record["configuration_hash"] = configuration_hash or record["configuration_hash"]
    (folder / "run.json").write_text(json.dumps(record))
    write_scores(folder, {case: dice for case in record["val"]})
    return folder


def collected(root: Path, *words: str) -> dict:
    assert group_matrix.main(["-d", "901", *words, "--workspace", str(root)]) == 0
    return json.loads((root / "results" / NAME / "group_matrix/matrix.json").read_text())


@pytest.fixture
def grouped(workspace: Path) -> Path:
    write_groups(workspace, GROUPS)
    return workspace


def test_a_single_source_is_trained_beside_the_default_split(
    grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["901", "2d", "0", "--splits", "single_source:south side", *SHORT]
    assert train.main([*words, "--workspace", str(grouped)]) == 0
    tag = split_tag("single_source:south side")
    told = capsys.readouterr().out
    assert f"--tag {tag}" in told
    assert told.count("checkpoint_best.pth is the epoch that was best on them") == 1
    content = collected(grouped, "-c", "2d")
    run = run_folder(grouped, tag)
    summary = json.loads((run / "validation/summary.json").read_text())
    cell = content["methods"]["2d_unet"]["sources"]["south side"]["targets"]["north"]
    assert cell["cases"] == 3
    assert cell["mean"]["Dice"] == summary["foreground_mean"]["Dice"]
    told = capsys.readouterr().out
    assert "samunet_train 901 2d_unet 0 --splits single_source:north" in told


def test_the_tag_of_a_split_is_told_once(grouped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["901", "2d", "0", "1", "--splits", "single_source", "--val", "--workspace", str(grouped)]
    assert train.main(words) == 2
    told = capsys.readouterr()
    assert (told.out + told.err).count("predict with it by --tag single_source") == 1


def test_sources_side_by_side(grouped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(grouped, "single_source-north", "north", 0.75)
    pretend(grouped, "single_source-south-side", "south side", 0.25)
    content = collected(grouped)
    assert "Missing" not in capsys.readouterr().out
    assert content["methods"]["2d_unet"]["overall"]["Dice"] == 0.5
    folder = grouped / "results" / NAME / "group_matrix"
    rows = list(csv.DictReader((folder / "matrix.csv").read_text().splitlines()))
    assert [(row["source"], row["target"], row["Dice"]) for row in rows] == [
        ("north", "south side", "0.75"),
        ("south side", "north", "0.25"),
    ]
    with Image.open(folder / "matrix_Dice.png") as picture:
        assert min(picture.size) > 200


def test_seeds_are_averaged_and_settings_are_not_mixed(grouped: Path, refused) -> None:
    pretend(grouped, "seed1", "north", 0.6)
    pretend(grouped, "seed2", "north", 0.8)
    pretend(grouped, "other", "north", 0.9, "f" * 16)
    content = collected(grouped, "--tag", "seed1", "seed2")
    cell = content["methods"]["2d_unet"]["sources"]["north"]["targets"]["south side"]
    assert cell["runs"]["Dice"] == pytest.approx([0.6, 0.8])
    assert cell["mean"]["Dice"] == pytest.approx(0.7)
    told = refused(group_matrix.main, grouped, "-d", "901", "--tag", "seed1", "other")
    assert "different settings" in told
    assert "seed1" in told


def test_what_cannot_be_collected(workspace: Path, refused) -> None:
    assert "groups.csv" in refused(group_matrix.main, workspace, "-d", "901")
    write_groups(workspace, {**dict.fromkeys(GROUPS, "a"), "tiny_005": "b"})
    for words, method in (((), "2d_unet"), (("-c", "2d_cnn"), "2d_cnn")):
        told = refused(group_matrix.main, workspace, "-d", "901", *words)
        assert f"samunet_train 901 {method} 0 --splits single_source:a" in told
        assert "single_source:b" not in told
    words = ("901", "2d", "0", "--splits", "single_source:b", *SHORT)
    assert "b: one case" in refused(train.main, workspace, *words)
    write_groups(workspace, {case: group for case, group in GROUPS.items() if case != "tiny_004"})
    told = refused(train.main, workspace, *words)
    assert "1 have none: tiny_004" in told
    assert "groups.csv" in told


def test_a_training_without_scores_is_named(grouped: Path, refused) -> None:
    shutil.rmtree(pretend(grouped, "single_source-north", "north", 0.5) / "validation")
    told = refused(group_matrix.main, grouped, "-d", "901")
    assert "--tag single_source-north --splits single_source:north --val" in told


def commands_of(told: str) -> list[list[str]]:
    """The training commands in a message, each as samunet_train reads it."""
    lines = [line.strip() for line in told.splitlines()]
    found = [shlex.split(line)[1:] for line in lines if line.startswith("samunet_train ")]
    for words in found:
        train.build_parser().parse_args(words)
    return found


def test_what_is_missing_is_trained_as_the_other_sources_were(
    grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "val_iterations=1", "--set", "batch_size=2", "--epochs", "1", "--iterations", "2"]
    assert group_matrix.main(["-d", "901", "-c", "2d", "--tag", "new", "--workspace", str(grouped)]) == 2
    assert commands_of(capsys.readouterr().err) == [
        ["901", "2d_unet", "0", "--tag", "new", "--splits", "single_source"],
        ["901", "2d_unet", "1", "--tag", "new", "--splits", "single_source"],
    ]
    pretend(grouped, "seed0", "north", 0.6)
    collected(grouped, "--tag", "seed0")
    beside = ["901", "2d_unet", "1", "--tag", "seed0", "--splits", "single_source", *settings]
    assert commands_of(capsys.readouterr().out) == [beside]
    pretend(grouped, "seed1", "south side", 0.6)  # its fold 0 would be that of the north
    collected(grouped, "--tag", "seed1")
    apart = ["901", "2d_unet", "0", "--tag", "seed1-north", "--splits", "single_source:north", *settings]
    assert commands_of(capsys.readouterr().out) == [apart]


def test_only_what_has_a_checkpoint_is_continued(grouped: Path, refused) -> None:
    folder = pretend(grouped, "single_source-north", "north", 0.5)
    (folder / "checkpoint_final.pth").unlink()
    words = ["901", "2d_unet", "0", "--tag", "single_source-north", "--splits", "single_source:north"]
    told = refused(group_matrix.main, grouped, "-d", "901")
    assert [*words, "--c"] in commands_of(told)
    for file in folder.glob("checkpoint_*"):
        file.unlink()
    told = refused(group_matrix.main, grouped, "-d", "901")
    first, second = commands_of(told)
    assert "--c" not in first
    assert first[: len(words)] == words
    assert second[3:5] == ["--splits", "single_source:south side"]


def test_cases_are_grouped_as_they_are_declared_now(
    grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pretend(grouped, "seed0", "north", 0.5)
    write_scores(folder, {"tiny_003": 0.2, "tiny_004": 0.4, "tiny_005": 0.9})
    cells = collected(grouped, "--tag", "seed0")["methods"]["2d_unet"]["sources"]["north"]["targets"]
    assert cells["south side"]["mean"]["Dice"] == pytest.approx(0.5)
    write_groups(grouped, {**GROUPS, "tiny_005": "west"})
    cells = collected(grouped, "--tag", "seed0")["methods"]["2d_unet"]["sources"]["north"]["targets"]
    assert {name: (cell["cases"], cell["mean"]["Dice"]) for name, cell in cells.items()} == {
        "south side": (2, pytest.approx(0.3)),
        "west": (1, pytest.approx(0.9)),
    }


def test_every_missing_pair_is_listed(grouped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_groups(grouped, {**GROUPS, "tiny_005": "west"})
    folder = pretend(grouped, "seed0", "north", 0.5)
    write_scores(folder, {"tiny_003": 0.2, "tiny_004": 0.4})
    content = collected(grouped, "--tag", "seed0")
    assert [(entry["source"], entry["targets"]) for entry in content["missing"]] == [
        ("north", ["west"]),
        ("south side", ["north", "west"]),
    ]
    told = capsys.readouterr().out
    assert "2d_unet, north -> west:" in told
    assert "2d_unet, south side -> north, west:" in told
    assert "--val" in commands_of(told)[0]  # its validation cases are all groups', only the scores lack


def test_a_run_counts_for_a_target_that_it_was_scored_on_as_a_whole(
    grouped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(grouped, "seed0", "north", 0.5)
    short = pretend(grouped, "seed1", "north", 0.9)
    write_scores(short, {"tiny_003": 0.9})
    cell = collected(grouped, "--tag", "seed0", "seed1")["methods"]["2d_unet"]["sources"]["north"]["targets"]
    assert cell["south side"]["runs"]["Dice"] == [0.5]
    assert [Path(folder).parent.name for folder in cell["south side"]["run_folders"]] == [
        "2d_unet__samunetPlans__seed0"
    ]


def test_cases_that_came_after_the_training_ask_for_another_split(grouped: Path, refused) -> None:
    folder = pretend(grouped, "single_source-north", "north", 0.5)
    write_scores(folder, {"tiny_003": 0.2})
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "val": ["tiny_003"]}))
    splits = grouped / "preprocessed" / NAME / "splits_single_source_north.json"
    splits.write_text(json.dumps([{"train": record["train"], "val": ["tiny_003"]}]))
    told = refused(group_matrix.main, grouped, "-d", "901")
    assert f"delete {splits}" in told
    assert "--overwrite" in commands_of(told)[0]
    splits.unlink()
    told = refused(group_matrix.main, grouped, "-d", "901")
    assert "delete" not in told


def test_methods_are_set_apart_with_intervals(grouped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second method is 0.1 to 0.3 worse on every case; a method without scores takes part in nothing."""
    better = pretend(grouped, "single_source-north", "north", 0.5)
    write_scores(better, {"tiny_003": 0.8, "tiny_004": 0.9, "tiny_005": 0.7})
    model = grouped / "results" / NAME / "2d_cnn__samunetPlans__single_source-north"
    shutil.copytree(better.parent, model)
    write_scores(model / "fold_0", {"tiny_003": 0.7, "tiny_004": 0.6, "tiny_005": 0.5})
    content = collected(grouped, "-c", "2d_cnn", "2d_unet", "2d_desam")
    cell = content["methods"]["2d_unet"]["sources"]["north"]["targets"]["south side"]
    low, high = cell["dice_interval"]
    assert low < 0.8 < high
    (pair,) = content["differences"]["pairs"]
    assert (pair["first"], pair["second"]) == ("2d_unet", "2d_cnn")
    assert pair["dice"] == pytest.approx(0.2)
    assert pair["interval"][0] < 0.2 < pair["interval"][1]
    assert content["differences"]["places"] == [["north", "south side"]]
    told = capsys.readouterr().out
    assert "2d_unet - 2d_cnn: +20.0 [" in told
    assert "too narrow: in one group a class is held by 3" in told
    rows = list(csv.DictReader((grouped / "results" / NAME / "group_matrix/matrix.csv").open()))
    assert [float(row["Dice_low"]) for row in rows if row["method"] == "2d_unet"] == [low]


def test_trainings_that_are_no_repeats_are_not_averaged(grouped: Path, refused) -> None:
    pretend(grouped, "seed0", "north", 0.5)
    longer = pretend(grouped, "longer", "north", 0.5)
    record = json.loads((longer / "run.json").read_text())
    (longer / "run.json").write_text(json.dumps({**record, "time_budget_minutes": 60.0}))
    other = pretend(grouped, "other", "north", 0.5)
    weights = {"file": "a.pth", "kind": "file", "sha256": "ab" * 32, "adapted": False}
    (other / "run.json").write_text(json.dumps({**record, "weights": weights}))
    assert "different time budgets" in refused(
        group_matrix.main, grouped, "-d", "901", "--tag", "seed0", "longer"
    )
    assert "different weights" in refused(group_matrix.main, grouped, "-d", "901", "--tag", "seed0", "other")


def test_patients_are_drawn_where_they_are_declared(grouped: Path) -> None:
    folder = pretend(grouped, "seed0", "north", 0.5)
    write_scores(folder, {"tiny_003": 0.2, "tiny_004": 0.4, "tiny_005": 0.9})
    cells = collected(grouped, "--tag", "seed0")["methods"]["2d_unet"]["sources"]["north"]["targets"]
    of_cases = cells["south side"]["dice_interval"]
    rows = [f"{case},{group},{case[:8]}" for case, group in GROUPS.items()]
    file = grouped / "raw" / NAME / "groups.csv"
    file.write_text(
        "\n".join(["case,group,patient", *rows[:3], *(f"{row[:-2]}4" for row in rows[3:])]) + "\n"
    )
    cells = collected(grouped, "--tag", "seed0")["methods"]["2d_unet"]["sources"]["north"]["targets"]
    assert cells["south side"]["mean"]["Dice"] == pytest.approx(0.5)
    assert of_cases != cells["south side"]["dice_interval"] == [None, None]  # all are of one patient


def test_a_group_of_one_case_has_no_interval(grouped: Path) -> None:
    write_groups(grouped, {**GROUPS, "tiny_005": "west"})
    folder = pretend(grouped, "seed0", "north", 0.5)
    write_scores(folder, {"tiny_003": 0.2, "tiny_004": 0.4, "tiny_005": 0.9})
    content = collected(grouped, "--tag", "seed0")
    cells = content["methods"]["2d_unet"]["sources"]["north"]["targets"]
    assert cells["west"]["dice_interval"] == [None, None]
    assert cells["south side"]["dice_interval"][0] < 0.3
    assert content["differences"] is None
