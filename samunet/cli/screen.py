"""Progress on the screen: a bar in a terminal, a few lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from samunet.progress import Progress

BAR_WIDTH = 28
REDRAW_SECONDS = 0.2
LINES_IN_A_LOG = 4


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Show `title` with (done, all) while the block runs; silent when nothing is reported.

    Only ASCII, so that every console can show it.
    """
    bar = _Bar(title)
    try:
        yield bar.update
    finally:
        bar.close()


class _Bar:
    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.monotonic()
        self.drawn = 0.0
        self.open = False
        self.is_terminal = sys.stdout.isatty()

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        finished = done >= total
        if self.is_terminal:
            if finished or now - self.drawn >= REDRAW_SECONDS:
                self.drawn, self.open = now, True
                print("\r" + self._line(done, total, now), end="", flush=True)
        elif done and (finished or done * LINES_IN_A_LOG // total > (done - 1) * LINES_IN_A_LOG // total):
            print(f"{self.title}: {done} of {total} ({now - self.started:.0f} s)", flush=True)

    def _line(self, done: int, total: int, now: float) -> str:
        filled = BAR_WIDTH * done // max(total, 1)
        spent = now - self.started
        left = spent / done * (total - done) if done else 0.0
        bar = "#" * filled + "-" * (BAR_WIDTH - filled)
        return f"{self.title} [{bar}] {done}/{total}, {spent:.0f} s, {left:.0f} s left   "

    def close(self) -> None:
        if self.open:
            print(flush=True)
