"""Files that a process may hold open (Unix): a mapped array is one, and macOS allows 256."""

from __future__ import annotations

import errno
import sys
from contextlib import suppress
from pathlib import Path

from samunet.errors import SamunetError

ENOUGH = 1024
"""What Linux allows by default; `select`, which some libraries wait with, knows no file beyond it."""


def allow_open_files() -> None:
    """Raise a lower limit of this process to `ENOUGH`, as far as it may; its later children inherit that."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    most = ENOUGH if hard == unlimited else min(ENOUGH, hard)
    if soft != unlimited and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def most_open(wanted: int, share: float, files_each: int = 1) -> int:
    """How many things of one kind to keep open, at least 1.

    Args:
        wanted: as many as are of use.
        share: of the files that this process may open.
        files_each: files that each of them takes.
    """
    limit = _limit()
    return wanted if limit is None else max(1, min(wanted, int(share * limit) // files_each))


def too_many_open(path: Path, problem: Exception) -> SamunetError | None:
    """What to tell where a file could not be opened because too many are; None where that is not why.

    Args:
        problem: met in opening it; one without a number, as blosc2 raises, is looked into.
    """
    if not isinstance(problem, OSError):
        try:
            path.open("rb").close()
        except OSError as refused:
            problem = refused
    number = problem.errno if isinstance(problem, OSError) else None
    if number == errno.EMFILE:
        limit = _limit() or 0
        return SamunetError(
            f"{path} cannot be opened: this process holds as many files open as it may ({limit}). Nothing is "
            f"damaged. Allow it more (`ulimit -n {max(ENOUGH, 2 * limit)}` in the shell), then run the "
            "command again; a training goes on with --c."
        )
    if number == errno.ENFILE:
        return SamunetError(
            f"{path} cannot be opened: all programs together hold as many files open as this machine allows. "
            "Nothing is damaged. End some of them, then run the command again; a training goes on with --c."
        )
    return None


def _limit() -> int | None:
    """Files that this process may hold open; None without a limit that could be told."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
