"""Planning again: what differs from the plan that is replaced is said, and that plan is kept."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import make_configuration, make_plan

from samunet.cli import plan_and_preprocess
from samunet.cli.planning_flags import plan_options
from samunet.pipeline.calibrate import assumed_gflops
from samunet.pipeline.info import collect
from samunet.pipeline.replaced_plan import plan_differences, planning_command, save_plan
from samunet.planning.plan import Budget, Plan
from samunet.workspace import Workspace

PLAN = make_plan(make_configuration("3d_unet"))
CHANGED = replace(
    PLAN,
    overrides={
        "spacing": (3.0, 0.7421875, 1.0),
        "encoder": "vit_b",
        "weights": "/my weights/x.pth",
        "settings": {"encoder": "full", "patch_size": [4, 8, 8], "image_skip": True, "head_width": None},
    },
    goal="speed",
    budget=replace(PLAN.budget, hours=3.5),
)


def test_what_was_asked_otherwise() -> None:
    assert plan_differences(PLAN, PLAN) == []
    measured = replace(PLAN.budget, memory_gb=8.05, disk_gb=3.0, gflops={"vit": 1.0})
    assert plan_differences(PLAN, replace(PLAN, budget=measured)) == []
    told = plan_differences(CHANGED, PLAN)
    assert told[:3] == [
        "spacing [3.0, 0.7421875, 1.0] -> the planner's",
        "encoder vit_b -> the planner's",
        "weights /my weights/x.pth -> the planner's",
    ]
    assert told[-1] == "2 more"
    one = replace(PLAN, goal="speed", budget=replace(PLAN.budget, device="cuda", memory_gb=24, hours=2))
    assert plan_differences(one, PLAN) == [
        "goal speed -> accuracy",
        "hours 2 -> 1",
        "memory 24 GB (cuda) -> 8 GB (cpu)",
    ]


def test_what_was_edited_by_hand() -> None:
    chosen = PLAN.configuration("3d_unet")
    edited = replace(chosen, batch_size=5, settings={**chosen.settings, "epochs": 7}, reasons=("mine",))
    old = replace(PLAN, configurations={"3d_unet": edited})
    assert plan_differences(old, PLAN) == ["3d_unet.batch_size 5 -> 2", "3d_unet.settings.epochs 7 -> 2"]
    expected = replace(chosen, reasons=("quicker",), forecast=replace(chosen.forecast, train_hours=9))
    assert plan_differences(replace(PLAN, configurations={"3d_unet": expected}), PLAN) == []


def test_the_command_repeats_what_was_decided(tmp_path: Path) -> None:
    program, *words = shlex.split(planning_command(CHANGED))
    assert program == "samunet_plan_and_preprocess"
    arguments = plan_and_preprocess.build_parser().parse_args(words)
    options = plan_options(arguments, Workspace.find(tmp_path, {}))
    assert (arguments.datasets, options.plans) == ([PLAN.dataset], PLAN.name)
    assert (options.goal, options.hours) == ("speed", 3.5)
    told = {"spacing": options.spacing_mm, "encoder": options.encoder, "weights": str(options.weights)}
    assert {**told, "settings": options.settings} == CHANGED.overrides
    plain = replace(PLAN, budget=replace(PLAN.budget, hours=24.0))
    assert planning_command(plain) == "samunet_plan_and_preprocess -d Dataset900_Tiny -p tinyPlans"
    absent = Budget(device="cuda", memory_gb=12, hours=24, disk_gb=1, gflops=assumed_gflops(12))
    assert planning_command(replace(PLAN, budget=absent)).endswith("-gpu_memory_target 12")
    measured = replace(absent, gflops={"vit": 3.0})
    assert "-gpu" not in planning_command(replace(PLAN, budget=measured))


def test_a_plan_that_cannot_be_read_is_kept_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "tinyPlans.json"
    file.write_text('{"version": 1, "batch_sise": 3}')
    save_plan(PLAN, file)
    assert "could not be read" in caplog.text
    assert "batch_sise" in (tmp_path / "tinyPlans.json.before").read_text()
    assert Plan.load(file) == PLAN


def test_planning_again_without_the_flags_is_said(tiny_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    words = ["-d", "901", "-np", "1", "-device", "cpu", "--no_pp", "--workspace", str(tiny_copy)]
    flags = ["-overwrite_target_spacing", "4", "1.2", "1.2", "--set", "epochs=7"]
    folder = tiny_copy / "preprocessed/Dataset901_Tiny3D"
    kept = folder / "samunetPlans.json.before"
    for _ in range(2):
        assert plan_and_preprocess.main([*words, *flags]) == 0
    assert not kept.exists()
    assert "another plan" not in caplog.text
    first = (folder / "samunetPlans.json").read_bytes()
    assert plan_and_preprocess.main(words) == 0
    assert kept.read_bytes() == first
    assert "spacing [4.0, 1.2, 1.2] -> the planner's; --set epochs 7 -> the planner's" in caplog.text
    again = (
        "samunet_plan_and_preprocess -d Dataset901_Tiny3D -p samunetPlans -overwrite_target_spacing 4 1.2 1.2"
    )
    assert f"{again} --set epochs=7" in caplog.text
    facts = collect(Workspace.find(tiny_copy, {}))
    assert facts["datasets"]["Dataset901_Tiny3D"]["plans"] == ["samunetPlans"]
