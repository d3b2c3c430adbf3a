from __future__ import annotations

import errno
import os
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from samunet import whole_files
from samunet.trainers.claim import claimed
from samunet.trainers.torch_files import write_torch
from samunet.whole_files import (
    atomic_path,
    partial_folder,
    partial_path,
    remove_partials,
    replace_folder,
    write_text,
)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def write_half() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_half()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_must_outlive_a_power_failure_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a node that loses power can leave an empty file under the name of a whole one."""
    told: list[object] = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *paths: (told.append("named"), replace(*paths)))
    monkeypatch.setattr(os, "fsync", lambda number: (told.append(os.fstat(number).st_size), fsync(number)))
    write_text(tmp_path / "a.txt", "text", lasting=True)
    assert told == [4, "named"]
    told.clear()
    write_torch(tmp_path / "a.pth", torch.zeros(3))
    assert told == [(tmp_path / "a.pth").stat().st_size, "named"]
    told.clear()
    write_text(tmp_path / "a.txt", "quick")
    assert told == ["named"]


@pytest.mark.parametrize(
    ("number", "text"), [(errno.EINVAL, "new"), (errno.ENOSYS, "new"), (errno.EIO, "old")]
)
def test_a_file_system_that_cannot_sync_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    """A disk that fails in it does."""

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    (file := tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, "fsync", refuse)
    with nullcontext() if text == "new" else pytest.raises(OSError, match=r"a\.txt"):
        write_text(file, "new", lasting=True)
    assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


def test_writers_of_one_number_do_not_share_a_name(tmp_path: Path) -> None:
    """Two containers on one disk give their processes the same numbers."""
    file = tmp_path / "a.txt"
    with atomic_path(file) as slow:
        slow.write_text("sl")
        with atomic_path(file) as quick:
            quick.write_text("quick")
        assert file.read_text() == "quick"
        assert slow.read_text() == "sl"
        slow.write_text("slow")
    assert file.read_text() == "slow"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.usefixtures("held_for_a_moment")
def test_a_file_that_is_held_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows while a scanner reads it; elsewhere such a refusal is final."""
    monkeypatch.setattr(whole_files, "REPLACE_TRIES", 1)
    with pytest.raises(PermissionError):
        write_text(tmp_path / "a.txt", "new")
    monkeypatch.setattr(whole_files, "REPLACE_TRIES", 3)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path: Path) -> None:
    """A file and a folder that nobody writes to any more; one that is being written and others stay."""
    (left := partial_path(tmp_path / "a.pth")).write_text("half")
    (folder := partial_path(tmp_path / "scores")).mkdir()
    (folder / "b.json").write_text("{}")
    (whole := tmp_path / "a.pth").write_text("whole")
    (own := tmp_path / ".2024-notes").write_text("of the user")
    for path in (left, folder, whole, own):
        os.utime(path, (0, time.time() - whole_files.ABANDONED_SECONDS - 1))
    with atomic_path(whole) as written:
        written.write_text("new")
        remove_partials(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {written.name, whole.name, own.name}
    remove_partials(tmp_path / "absent")


def test_whoever_claims_a_folder_removes_what_the_last_one_left_at_once(tmp_path: Path) -> None:
    (run := tmp_path / "fold_0").mkdir()
    partial_path(run / "checkpoint_latest.pth").write_text("half")
    with claimed(run):
        assert not list(run.iterdir())


@pytest.mark.parametrize("error", [PermissionError(13, "Access is denied"), KeyboardInterrupt()])
@pytest.mark.parametrize("held", ["older", "newer"])
def test_an_older_folder_stays_until_the_newer_has_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str, error: BaseException
) -> None:
    (target := tmp_path / "scores").mkdir()
    (target / "a.txt").write_text("old")
    replace = os.replace

    def put(text: str) -> None:
        with partial_folder(tmp_path) as fresh:
            (fresh / "a.txt").write_text(text)
            replace_folder(fresh, target)

    def refusing(source: Path, to: Path) -> None:
        what = "older" if source == target else (source / "a.txt").read_text()
        if what == {"older": "older", "newer": "new"}[held]:
            raise error
        replace(source, to)

    monkeypatch.setattr(os, "replace", refusing)
    with pytest.raises(type(error)):
        put("new")
    monkeypatch.undo()
    assert [(file.name, (file / "a.txt").read_text()) for file in tmp_path.iterdir()] == [("scores", "old")]
    put("newest")
    assert [(file.name, (file / "a.txt").read_text()) for file in tmp_path.iterdir()] == [
        ("scores", "newest")
    ]
