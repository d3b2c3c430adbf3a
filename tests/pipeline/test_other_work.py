from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import psutil
import pytest

from samunet.pipeline import other_work
from samunet.pipeline.other_work import OtherWork, are_too_few


def test_a_busy_process_is_seen() -> None:
    """It takes a core once it has started, or where it gets less, others have that core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            for _ in range(100):
                watch = OtherWork()
                time.sleep(0.6)
                if watch.cores() > 0.5:
                    return
            pytest.fail("a process that is never idle was not seen")
        finally:
            busy.kill()


def test_own_work_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four cores were busy for two seconds, half a core of it with this process."""
    clocks = {"monotonic": 100.0, "process_time": 7.0}
    told = SimpleNamespace(**{name: partial(clocks.__getitem__, name) for name in clocks})
    monkeypatch.setattr(other_work, "time", told)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 75.0)
    watch = OtherWork()
    clocks.update(monotonic=102.0, process_time=8.0)
    assert watch.cores() == pytest.approx(2.5)


def test_a_moment_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 100.0)
    assert OtherWork().cores() == 0.0


@pytest.mark.parametrize(
    ("others", "threads", "too_few"), [(0.3, 8, False), (1.9, 8, False), (2.1, 8, True), (6.0, 2, False)]
)
def test_cores_left(monkeypatch: pytest.MonkeyPatch, others: float, threads: int, too_few: bool) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert are_too_few(others, threads) is too_few
