"""start.py, which must run before samunet is installed: a broken environment never passes for a whole one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; making an environment writes its python and is then interrupted."""
    spec = importlib.util.spec_from_file_location("start", Path(__file__).parents[1] / "start.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def interrupted(command: list[str]) -> None:
        python = module.program(Path(command[-1]), "python")
        python.parent.mkdir(parents=True)
        python.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(module.subprocess, "run", interrupted)
    return module


def test_an_interrupted_environment_is_removed(start: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        start.make_environment(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()


def test_a_folder_that_was_there_stays(start: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/notes.txt").touch()
    with pytest.raises(KeyboardInterrupt):
        start.make_environment(tmp_path / "venv")
    assert (tmp_path / "venv/notes.txt").exists()
