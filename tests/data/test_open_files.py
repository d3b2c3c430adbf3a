"""Files that a process may hold open: how many are kept, and what is said where there are too many."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from samunet.data.open_files import ENOUGH, allow_open_files, most_open
from samunet.errors import SamunetError
from samunet.preprocessing.open_cases import OpenCases
from samunet.preprocessing.store import CaseStore, load_array, open_packed, pack, write_packed

resource = pytest.importorskip("resource", reason="a limit of Unix")


@pytest.fixture
def limit() -> Iterator[None]:
    """A soft limit of 200 open files, as small as macOS' usual one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def exhausted(limit: None) -> Iterator[None]:
    """A process that cannot open one more file."""
    held = []
    with suppress(OSError):
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    yield
    for number in held:
        os.close(number)


@pytest.mark.usefixtures("limit")
def test_as_many_are_kept_open_as_the_limit_leaves_room_for() -> None:
    assert most_open(512, 0.5) == 100
    assert most_open(64, 0.25, files_each=3) == 16
    assert most_open(20, 0.5) == 20
    assert most_open(20, 0.001) == 1


@pytest.mark.usefixtures("limit")
def test_open_cases_keep_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files each, a quarter of what the process may open."""
    entry = SimpleNamespace(may_be_of=bool, made_from="")
    monkeypatch.setattr(CaseStore, "open_whole", lambda *_: SimpleNamespace(entry=entry))
    cases = OpenCases(tmp_path, "hash")
    for number in range(30):
        cases.get(f"case_{number}")
    assert len(cases._open) == 16
    assert cases.get("case_29") is next(reversed(cases._open.values()))


def test_without_a_limit_all_that_is_wanted_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY,) * 2
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    assert most_open(512, 0.5) == 512
    allow_open_files()


@pytest.mark.parametrize(("hard", "soft"), [(resource.RLIM_INFINITY, ENOUGH), (300, 300), (ENOUGH, ENOUGH)])
def test_a_low_limit_is_raised_as_far_as_it_may_be(
    monkeypatch: pytest.MonkeyPatch, hard: int, soft: int
) -> None:
    limits = [(256, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    allow_open_files()
    allow_open_files()
    assert limits == [(256, hard), (soft, hard)]


def test_a_limit_that_cannot_be_raised_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_open_files()


def test_too_many_open_files_are_no_damage(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    write_packed(tmp_path / "a.b2nd", pack(np.zeros((1, 4, 4, 4), np.float32), False))
    request.getfixturevalue("exhausted")
    for read, name in ((load_array, "a.npy"), (open_packed, "a.b2nd")):
        with pytest.raises(SamunetError, match=rf"{name} .*\(200\).*`ulimit -n {ENOUGH}`") as told:
            read(tmp_path / name, "Delete it.")
        assert "Delete" not in str(told.value)


def test_too_many_open_files_of_the_whole_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENFILE, "Too many open files in system")

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(SamunetError, match=r"a\.npy .*all programs") as told:
        load_array(tmp_path / "a.npy", "Delete it.", mapped=True)
    assert "Delete" not in str(told.value)
    assert "ulimit" not in str(told.value)
