from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from samunet.pipeline import other_work
from samunet.pipeline.other_work import OtherWork, are_too_few


def test_a_busy_process_is_seen() -> None:
    """It takes a core, or where it gets less, others have that core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            watch = OtherWork()
            time.sleep(0.6)
            assert watch.cores() > 0.5
        finally:
            busy.kill()


def test_own_work_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that does nothing else."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 100.0)
    watch = OtherWork()
    start, own = time.monotonic(), time.process_time()
    while time.process_time() - own < other_work.LEAST_SECONDS:
        pass
    share = other_work.LEAST_SECONDS / (time.monotonic() - start)
    assert watch.cores() == pytest.approx(1 - share, abs=0.05)


def test_a_moment_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 100.0)
    assert OtherWork().cores() == 0.0


@pytest.mark.parametrize(
    ("others", "threads", "too_few"), [(0.3, 8, False), (1.9, 8, False), (2.1, 8, True), (6.0, 2, False)]
)
def test_cores_left(monkeypatch: pytest.MonkeyPatch, others: float, threads: int, too_few: bool) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert are_too_few(others, threads) is too_few
