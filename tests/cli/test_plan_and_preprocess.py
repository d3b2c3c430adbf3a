"""samunet_plan_and_preprocess: what it says at its end."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samunet.cli import plan_and_preprocess, train
from samunet.pipeline.goal_split import same_sites_only, training_for_goal


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        (["-c", "3d_adapter"], "samunet_train 901 3d_adapter 0"),
        (["-c", "3d_fullres", "-p", "mine"], "samunet_train 901 3d_unet 0 -p mine"),
        (["-c", "2d_linear", "2d"], "samunet_train 901 2d_unet 0"),
        ([], "samunet_train 901 2d_unet 0"),
    ],
)
def test_the_command_to_go_on_with_runs_on_what_was_prepared(
    flags: list[str], command: str, tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-d", "901", "-np", "1", *flags, "--workspace", str(tiny_copy)]
    assert plan_and_preprocess.main(words) == 0
    told = capsys.readouterr().out
    assert f"Train with: {command}\n" in told


def test_a_single_case_is_trained_on_as_a_whole(tiny_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tiny_copy / "raw" / "Dataset901_Tiny3D"
    for file in [*(raw / "imagesTr").iterdir(), *(raw / "labelsTr").iterdir()]:
        if not file.name.startswith("tiny_000"):
            file.unlink()
    words = ["-d", "901", "-np", "1", "-c", "2d", "--workspace", str(tiny_copy)]
    assert plan_and_preprocess.main(words) == 0
    assert "Train with: samunet_train 901 2d_unet all\n" in capsys.readouterr().out


def test_a_wrong_name_is_told_before_anything_is_planned(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, told in (("3d_lowres", "out of scope; use 3d_unet"), ("2d_unett", "Did you mean 2d_unet")):
        words = ["-d", "901", "-np", "1", "-c", "2d", name, "--workspace", str(tiny_copy)]
        assert plan_and_preprocess.main(words) == 2
        assert told in capsys.readouterr().err
    assert not list((tiny_copy / "preprocessed").rglob("*.json"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda declared: declared["labels"].update(more=99), "other labels"),
        (lambda declared: declared["channel_names"].update({"0": "CT"}), "other channels"),
        (lambda declared: declared["channel_names"].update({"0": "any name"}), ""),
    ],
)
def test_what_is_declared_anew_is_planned_anew(
    change: Callable[[dict[str, Any]], None], told: str, tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--workspace", str(tiny_copy)]
    assert plan_and_preprocess.main(["-d", "901", "-np", "1", "-c", "2d", *where]) == 0
    file = tiny_copy / "raw" / "Dataset901_Tiny3D" / "dataset.json"
    declared = json.loads(file.read_text())
    change(declared)
    file.write_text(json.dumps(declared))
    short = ["--epochs", "1", "--iterations", "1", "-np", "0", "-device", "cpu"]
    code = train.main(["901", "2d", "0", *short, *where])
    assert code == (2 if told else 0)
    said = capsys.readouterr().err
    assert not told or f"{file} declares {told} than the plan samunetPlans" in said
    assert not told or "samunet_plan_and_preprocess -d Dataset901_Tiny3D" in said


def test_the_command_for_other_sites_has_a_split_by_group(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "-d",
        "901",
        "-np",
        "1",
        "-c",
        "2d_linear",
        "--goal",
        "generalize",
        "--workspace",
        str(tiny_copy),
    ]
    assert plan_and_preprocess.main(words) == 0
    told = capsys.readouterr().out
    assert "Train with: samunet_train 901 2d_linear 0 --set augmentation=generalize\n" in told
    assert "Goal generalize: no groups are declared" in told
    rows = [f"tiny_{number:03d},{'north' if number < 3 else 'south'}" for number in range(6)]
    file = tiny_copy / "raw" / "Dataset901_Tiny3D" / "groups.csv"
    file.write_text("\n".join(["case,group", *rows]))
    assert plan_and_preprocess.main(words) == 0
    told = capsys.readouterr().out
    assert "Goal generalize" not in told
    command = told[told.index("samunet_train 901") :].splitlines()[0]
    asked = train.build_parser().parse_args(shlex.split(command)[1:])
    assert (asked.configuration, asked.splits) == ("2d_linear", "leave_one_group_out")
    assert asked.settings == ["augmentation=generalize"]


@pytest.mark.parametrize(
    ("goal", "groups", "settings", "expected"),
    [
        ("accuracy", "aabbcc", {}, ("kfold", {})),
        ("generalize", "aaaaaa", {}, ("kfold", {"augmentation": "generalize"})),
        (
            "generalize",
            "aabbc",
            {"augmentation": "light"},
            ("kfold", {}),
        ),  # the sixth case has none: such splits are refused
        ("generalize", "aabbcc", {}, ("leave_one_group_out", {"augmentation": "generalize"})),
        ("generalize", "aabbcc", {"augmentation": "light"}, ("leave_one_group_out", {})),
        ("generalize", "abcdef", {}, ("group_kfold", {"augmentation": "generalize"})),
    ],
)
def test_split_and_augmentation_of_a_plan_for_other_sites(
    goal: str, groups: str, settings: dict[str, str], expected: tuple[str, dict[str, str]]
) -> None:
    plan = SimpleNamespace(goal=goal, overrides={"settings": settings})
    assert training_for_goal(plan, dict(enumerate(groups)), 6) == expected
    told = same_sites_only(plan, dict(enumerate(groups)), 6)
    assert bool(told) == (goal == "generalize" and expected[0] == "kfold")


@pytest.mark.parametrize(
    ("groups", "words"),
    [("", "no groups are declared"), ("aab", "3 of 6 cases have no group"), ("aaaaaa", "of one group")],
)
def test_that_scores_cannot_be_of_other_sites_is_said(groups: str, words: str) -> None:
    plan = SimpleNamespace(goal="generalize", overrides={})
    assert words in same_sites_only(plan, dict(enumerate(groups)), 6)
