"""The room for the probabilities that samunet_run_all keeps: forecast, and refused where it is not there."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from commands import SHORT

from samunet.cli import run_all as command
from samunet.data.dataset import RawDataset
from samunet.data.splits import Split
from samunet.errors import SamunetError
from samunet.inference.probabilities import probability_files
from samunet.pipeline.run_all import run as run_all
from samunet.pipeline.run_all.folds import Training
from samunet.pipeline.run_all.room import check_probability_room
from samunet.pipeline.said_once import Say
from samunet.pipeline.train import TrainOptions, TrainOutcome
from samunet.workspace import Workspace, validation_folder

NAME = "Dataset901_Tiny3D"
BYTES = 2 * 3 * (10 * 32 * 36 + 11 * 34 * 35)
"""Half floats of background and two classes for tiny_000 and tiny_001."""


def training(workspace: Workspace, fold: int | str, configuration: str = "2d_unet") -> Training:
    folder = workspace.model_folder(NAME, configuration)
    return Training(configuration=configuration, fold=fold, model_folder=folder, hours=1.0)


@pytest.fixture
def workspace(tiny_copy: Path) -> Workspace:
    return Workspace.find(tiny_copy)


def check(workspace: Workspace, *trainings: Training) -> None:
    others = tuple(f"tiny_00{index}" for index in range(2, 6))
    split = Split(train=others, val=("tiny_000", "tiny_001"))
    raw = RawDataset.load(workspace.raw_folder(NAME))
    check_probability_room(workspace, raw, trainings, {0: split, 1: split, "all": split})


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """As if so many bytes could be used: nine tenths of what is free."""
    usage = type("Usage", (), {"free": -(-size * 10 // 9)})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)


def test_every_validation_case_of_every_training_is_counted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainings = [training(workspace, fold, name) for name in ("2d_unet", "2d_cnn") for fold in (0, 1)]
    free(monkeypatch, 4 * BYTES)
    with caplog.at_level(logging.INFO):
        check(workspace, *trainings)
    assert "8 validation predictions" in caplog.text
    assert f"about {4 * BYTES / 1e6:.1f} MB" in caplog.text
    free(monkeypatch, 4 * BYTES - 1)
    with pytest.raises(
        SamunetError, match=r"need about 0\.6 MB in .*results; .* can be used.*--no_ensembles"
    ):
        check(workspace, *trainings)


def test_what_is_there_or_never_written_needs_no_room(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 0)
    check(workspace, training(workspace, "all"))
    begun = training(workspace, 0)
    folder = validation_folder(begun.model_folder, 0)
    folder.mkdir(parents=True)
    probability_files(folder / "tiny_000.nii.gz")[0].touch()
    with pytest.raises(SamunetError):
        check(workspace, begun)
    probability_files(folder / "tiny_001.nii.gz")[0].touch()
    check(workspace, begun)
    (folder / "summary.json").touch()
    (folder.parent / "checkpoint_final.pth").touch()
    for name in ("tiny_000", "tiny_001"):
        probability_files(folder / f"{name}.nii.gz")[0].unlink()
    check(workspace, begun)


def test_a_full_disk_ends_the_command_before_it_prepares_cases(
    tiny_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[TrainOptions] = []

    def pretend(workspace: Workspace, options: TrainOptions, *, say: Say) -> TrainOutcome:
        trained.append(options)
        return TrainOutcome(folder=tiny_copy, interrupted=True)

    monkeypatch.setattr(run_all, "train", pretend)
    monkeypatch.setattr(run_all, "preprocess", lambda *_: None)
    words = ["901", "-c", "2d", "-f", "0", *SHORT, "--workspace", str(tiny_copy)]
    assert command.main(words) == 130
    assert trained[0].save_probabilities is True
    free(monkeypatch, 0)
    assert command.main(words) == 2
    assert "--no_ensembles" in capsys.readouterr().err
    assert len(trained) == 1

    assert command.main([*words, "--no_ensembles"]) == 130
    assert trained[1].save_probabilities is False
    assert "no ensembles are tried" in capsys.readouterr().out
