"""What messages show: of many names the first few and how many more there are; a command to be typed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence


def listed(items: Sequence[object], most: int = 5, between: str = ", ") -> str:
    """The first items in words, `a, b and 3 more`.

    Args:
        items: names or numbers, in the order to be told.
        most: how many are told; of as many or fewer, all are.
        between: stands between two of them.
    """
    shown = between.join(map(str, items[:most]))
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown


def counted_cases(names: Sequence[str]) -> str:
    """How many cases, and which: `7 cases (a, b, c, d, e and 2 more)`."""
    return f"{len(names)} case{'s' * (len(names) != 1)} ({listed(names)})"


def fold_words(folds: Sequence[int]) -> str:
    """`fold 2`, or `folds 2 3`."""
    return f"fold{'s' * (len(folds) > 1)} {' '.join(map(str, folds))}"


def shown_command(words: Sequence[str]) -> str:
    """A command as it is typed here: quoted for a POSIX shell, or for those of Windows, where 'a b' is two
    words and a backslash no reason to quote."""
    import subprocess

    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
