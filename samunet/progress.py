"""How a long piece of work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[int, int], None]
"""Called with (done, all): cases, tiles, bytes."""
Screen = Callable[[str], AbstractContextManager[Progress | None]]
"""Given a title, a context in which progress is shown."""


def no_screen(title: str) -> AbstractContextManager[Progress | None]:
    """Show no progress."""
    return nullcontext()
