"""A workspace on which the commands have run, made once; tests that change something take a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from commands import SHORT

from samunet.cli import plan_and_preprocess, train

Main = Callable[[Sequence[str] | None], int]


@pytest.fixture(scope="session")
def made_once(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace: Dataset901 planned, preprocessed in 2D, `2d_unet` trained on fold 0. Not to be changed."""
    root = tmp_path_factory.mktemp("commands") / "workspace"
    shutil.copytree(tiny_root / "raw", root / "raw")
    where = ["--workspace", str(root)]
    assert plan_and_preprocess.main(["-d", "901", "-c", "2d", "-np", "1", *where]) == 0
    assert train.main(["901", "2d", "0", *SHORT, *where]) == 0
    return root


@pytest.fixture
def workspace(made_once: Path, tmp_path: Path) -> Path:
    """A copy of that workspace to change and to break."""
    root = tmp_path / "workspace"
    shutil.copytree(made_once, root)
    return root


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must end with 2 and one message; returns the message."""

    def run(main: Main, root: Path, *words: str) -> str:
        capsys.readouterr()
        code = main([*words, "--workspace", str(root)])
        told = capsys.readouterr().err
        assert code == 2, told
        assert "Traceback" not in told
        assert told.startswith("samunet_")
        assert told.count("samunet_") - told.count(" samunet_") - told.count("`samunet_") <= 1
        return told

    return run
