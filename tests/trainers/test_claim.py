"""One process to a run folder; and folders on file systems that know no locks."""

from __future__ import annotations

import errno
import logging
import os
import warnings
from pathlib import Path

import pytest

from samunet.errors import SamunetError
from samunet.file_locks import locked
from samunet.trainers.claim import claimed
from samunet.whole_files import partial_path

fcntl = pytest.importorskip("fcntl", reason="of Unix")


@pytest.fixture
def lockless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses locks with the error of that name."""

    def refuse(*_: object) -> None:
        raise OSError(number := getattr(errno, request.param), os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("lockless", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"], indirect=True)
@pytest.mark.usefixtures("lockless")
def test_where_there_are_no_locks_training_goes_on_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing stays there that could refuse a later start, whatever ends this one."""
    folder = tmp_path / "model" / "fold_0"
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING), warnings.catch_warnings():
            warnings.simplefilter("error")
            with claimed(folder):
                assert list(folder.parent.iterdir()) == []
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(folder) in caplog.text
        assert "no locks" in caplog.text


@pytest.mark.parametrize("lockless", ["ENOLCK"], indirect=True)
@pytest.mark.usefixtures("lockless")
def test_without_a_lock_nothing_is_removed_that_another_may_be_writing(tmp_path: Path) -> None:
    (folder := tmp_path / "fold_0").mkdir()
    (half := partial_path(folder / "checkpoint_latest.pth")).write_text("half")
    with claimed(folder):
        assert half.exists()


@pytest.mark.parametrize("lockless", ["EIO"], indirect=True)
@pytest.mark.usefixtures("lockless")
def test_another_problem_of_a_lock_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), claimed(tmp_path / "fold_0"):
        pass


def test_a_second_claim_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "fold_0"
    taken = pytest.raises(SamunetError, match="Another process is training into")
    with claimed(folder), taken, claimed(folder):
        pass
    with claimed(folder):
        pass
    assert list(tmp_path.iterdir()) == []
    assert caplog.text == ""


@pytest.mark.parametrize("lockless", ["ENOLCK"], indirect=True)
@pytest.mark.usefixtures("lockless")
def test_preprocessing_goes_on_without_locks(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / ".cases.lock"):
            assert list(tmp_path.iterdir()) == []


def test_who_has_a_lock_for_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samunet.file_locks.LOCK_SECONDS", 0.05)
    path = tmp_path / ".cases.lock"
    with locked(path), pytest.raises(SamunetError, match=r"\.cases\.lock locked"), locked(path):
        pass
    with locked(path):
        pass
