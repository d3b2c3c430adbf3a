"""samunet_run_all: each step once, going on after a stop, a fair rival, no mixing of runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from commands import SHORT, no_measuring
from tiny_runs import make_configuration, make_plan

from samunet.cli import run_all as command
from samunet.errors import SamunetError
from samunet.pipeline import calibrate, run_all
from samunet.pipeline.run_all import DONE, HALFWAY, NEW, UNSCORED, Training, chosen_methods
from samunet.planning.plan import Plan, Verdict

NAME = "Dataset901_Tiny3D"


@pytest.fixture(autouse=True)
def quick_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "measure_gflops", no_measuring)


def plan_with(recommended: str, fitting: tuple[str, ...]) -> Plan:
    names = (recommended, *fitting)
    made = make_plan(make_configuration(recommended))
    verdicts = tuple(
        Verdict(method=name, status="recommended" if name == recommended else "fits", reasons=("why",))
        for name in names
    )
    configurations = {name: make_configuration(name) for name in names}
    return replace(made, recommended=recommended, configurations=configurations, verdicts=verdicts)


@pytest.mark.parametrize(
    ("recommended", "fitting", "chosen"),
    [
        ("3d_unet", ("2d_linear", "2d_cnn"), ("3d_unet", "2d_cnn")),
        ("3d_unet", ("2d_linear", "2d_unet"), ("3d_unet", "2d_linear")),
        ("3d_unet", ("2d_unet",), ("3d_unet",)),
        ("2d_cnn", ("3d_unet",), ("2d_cnn", "2d_unet")),
        ("3d_adapter", ("2d_unet",), ("3d_adapter", "3d_unet")),
    ],
)
def test_the_recommended_method_meets_its_rival(
    recommended: str, fitting: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    assert chosen_methods(plan_with(recommended, fitting), None) == chosen


def test_names_are_taken_as_given_and_once() -> None:
    made = plan_with("2d_cnn", ())
    assert chosen_methods(made, ["auto", "2d", "2d_unet"]) == ("2d_cnn", "2d_unet")
    with pytest.raises(SamunetError, match="2d_cn"):
        chosen_methods(made, ["2d_cn"])


def test_state_is_read_from_the_files(tmp_path: Path) -> None:
    training = Training(configuration="2d_unet", fold=0, model_folder=tmp_path, hours=1.0)
    assert training.state == NEW
    validation = tmp_path / "fold_0" / "validation"
    validation.mkdir(parents=True)
    (tmp_path / "fold_0" / "checkpoint_latest.pth").touch()
    assert training.state == HALFWAY
    (tmp_path / "fold_0" / "checkpoint_final.pth").touch()
    assert training.state == UNSCORED
    (validation / "summary.json").touch()
    assert training.state == DONE
    everything = Training(configuration="2d_unet", fold="all", model_folder=tmp_path, hours=1.0)
    (tmp_path / "fold_all").mkdir()
    (tmp_path / "fold_all" / "checkpoint_final.pth").touch()
    assert everything.state == DONE


def test_from_raw_data_to_a_report_and_on_from_a_stop(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["901", "-c", "2d", "-f", "0", "1", *SHORT, "--workspace", str(tiny_copy)]
    genuine, trained = run_all.train, []

    def train_one(workspace: object, options: object) -> object:
        if trained:
            raise KeyboardInterrupt
        trained.append(options)
        return genuine(workspace, options)  # type: ignore[arg-type]

    with monkeypatch.context() as stopped:
        stopped.setattr(run_all, "train", train_one)
        assert command.main(flags) == 130
    assert "[1 of 2] 2d_unet, fold 0" in capsys.readouterr().out
    file = tiny_copy / "results" / NAME / "report.html"
    assert not file.exists()

    assert command.main(flags) == 0
    told = capsys.readouterr().out
    assert "[1 of 2] 2d_unet, fold 0: done before" in told
    assert "[2 of 2] 2d_unet, fold 1; about" in told
    assert str(file) in told
    page = file.read_text()
    assert "2d_unet" in page

    words = ["901", "-c", "2d", "-f", "1", "9", *SHORT, "--tag", "other", "--workspace", str(tiny_copy)]
    assert command.main(words) == 2  # before fold 1 is trained for nothing
    assert "Fold 9 does not exist" in capsys.readouterr().err
    assert not list((tiny_copy / "results" / NAME).glob("*__other"))

    assert command.main([*flags, "--seed", "4"]) == 2
    assert "seed was None, is 4" in capsys.readouterr().err
