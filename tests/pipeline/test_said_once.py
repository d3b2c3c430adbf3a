"""A fact that several folds come upon is told once, as loudly as it was meant."""

from __future__ import annotations

import logging

import pytest

from samunet.pipeline.said_once import SaidOnce


def test_each_text_once_and_at_its_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    say = SaidOnce()
    for _ in range(2):
        say("a fact, 100 %s")
        say("a warning", logging.WARNING)
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("INFO", "a fact, 100 %s"),
        ("WARNING", "a warning"),
    ]
    SaidOnce()("a warning", logging.WARNING)
    assert len(caplog.records) == 3
