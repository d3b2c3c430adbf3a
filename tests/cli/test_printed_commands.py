"""Commands that are printed for the user are read back by the parsers that they are meant for."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from samunet.cli import apply_postprocessing, find_best_configuration, plan_and_preprocess, predict, train
from samunet.cli.train import settings_of
from samunet.pipeline.demo.run import DEMO_METHODS, DemoOptions
from samunet.pipeline.demo.run import _commands as demo_commands
from samunet.pipeline.report.verdict import verdict_content
from samunet.pipeline.selection.find import _commands as selection_commands
from samunet.pipeline.selection.record import Member
from samunet.workspace import DEFAULT_PLANS, Workspace

DATASET = "Dataset950_Made"
PARSERS: dict[str, ModuleType] = {
    f"samunet_{module.__name__.rpartition('.')[2]}": module
    for module in (apply_postprocessing, find_best_configuration, plan_and_preprocess, predict, train)
}


def read_back(command: str) -> argparse.Namespace:
    program, *words = shlex.split(command)
    return PARSERS[program].build_parser().parse_args(words)


def test_the_demo_by_hand_goes_beside_what_the_demo_made() -> None:
    place = Path("my demo")
    planned, *lines = map(
        read_back, demo_commands(DemoOptions(workspace=place, quick=True, seed=3, device="cpu"))
    )
    assert (planned.workspace, planned.device) == (place, "cpu")
    for method, trained, predicted in zip(DEMO_METHODS, lines[::2], lines[1::2]):
        minutes, settings = method.chosen(quick=True)
        assert (trained.configuration, trained.time_budget, trained.seed) == (method.name, minutes, 3)
        assert settings_of(trained) == settings
        assert trained.tag == predicted.tag == "by_hand"
        assert trained.device == predicted.device == "cpu"
        assert predicted.configurations == [method.name]
        assert predicted.input.parts[0] == str(place)


def test_the_report_names_the_plan(tmp_path: Path) -> None:
    for scored in (False, True):
        (sentence,) = verdict_content(Workspace.find(tmp_path), DATASET, "other", scored=scored).sentences
        command = sentence[sentence.index("samunet_find") :].split(",")[0].rstrip(".")
        assert read_back(command).plans == "other"


def test_commands_of_a_selection_with_a_space_in_its_folder(tmp_path: Path) -> None:
    workspace = Workspace.find(tmp_path / "my results")
    members = [
        Member(
            configuration="2d_unet",
            plans=DEFAULT_PLANS,
            tag=tag,
            folds=(0, 1),
            checkpoint="checkpoint_final.pth",
        )
        for tag in (None, "wide")
    ]
    best, both, rules = map(read_back, selection_commands(workspace, DATASET, members, True))
    assert best.configurations == ["best"]
    folder = workspace.results / DATASET
    assert both.models == [folder / "2d_unet__samunetPlans", folder / "2d_unet__samunetPlans__wide"]
    assert both.folds == [0, 1]
    assert rules.file == folder / "postprocessing.json"


@pytest.mark.parametrize("flag", ["--c", "--val"])
def test_a_run_is_kept_or_replaced(flag: str, tmp_path: Path, refused) -> None:
    (tmp_path / "raw" / DATASET).mkdir(parents=True)
    told = refused(train.main, tmp_path, "950", "2d", "0", flag, "--overwrite")
    assert f"{flag} and --overwrite exclude each other" in told
