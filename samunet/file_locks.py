"""Locks of files, where there are any: some network file systems are mounted without."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from samunet.errors import SamunetError
from samunet.whole_files import partial_path

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""Numbers of the errors of file systems without locks."""
LOCK_SECONDS = 60.0
"""Longest wait for a lock that is held for moments."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, for moments; nobody is kept away on a file system without locks.

    Args:
        path: of the lock. It stays there: who waits for it would hold a lock that nobody else sees.

    Raises:
        SamunetError: another process has kept it for a minute.
    """
    if missing_locks(path) is not None:
        yield
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as taken:
        raise SamunetError(
            f"Another process has kept {path} locked for {LOCK_SECONDS:.0f} s. See what it does, or stop it; "
            "then run the command again."
        ) from taken
    try:
        yield
    finally:
        lock.release()


def missing_locks(place: Path) -> OSError | None:
    """Why no file beside a file or folder can be locked; None where one can, or for another reason cannot.

    Tried on a file of its own: depending on its version, filelock raises one error or another, or takes a
    file in place of a lock, which stays when its process is killed.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    path = partial_path(place.with_name("lock"))
    try:
        with path.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        return problem if problem.errno in NO_LOCKS else None
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return None
