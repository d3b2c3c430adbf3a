"""Ctrl-C and SIGTERM ask the loop to stop at the next step instead of killing it in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopFlag:
    """Set by SIGINT or SIGTERM."""

    def __init__(self) -> None:
        self.name: str | None = None


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """SIGINT and SIGTERM set a flag within the block; a second one acts as usual. Main thread only."""
    flag = StopFlag()
    previous: dict[int, Any] = {}

    def ask(number: int, _frame: Any) -> None:
        flag.name = signal.Signals(number).name
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, ask)
    try:
        yield flag
    finally:
        for code, handler in previous.items():
            signal.signal(code, handler)
