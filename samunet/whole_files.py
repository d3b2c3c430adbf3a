"""Files that are whole or absent, whatever ends the process that writes them.

Those of trainings also where the machine loses its power: they are on the disk before they get their names,
which costs some ten milliseconds a file and is too much for each of thousands that are easily made again.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from samunet.errors import SamunetError

REPLACE_TRIES = 10 if os.name == "nt" else 1
REPLACE_SECONDS = 0.2
PARTIAL = ".partial."
ABANDONED_SECONDS = 24 * 3600.0
"""No write pauses for a day, on a clock that a file server runs neither."""

NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Numbers of the errors of a full disk."""
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Numbers of the errors of file systems that cannot be told to write a file out."""
DISK_SHARE = 0.9
"""Of the free disk that one thing of ours may take."""


def room_bytes(folder: Path) -> int:
    """What may be written into a folder, which need not exist: a share of what is free on its disk."""
    while not folder.exists():
        folder = folder.parent
    return int(DISK_SHARE * shutil.disk_usage(folder).free)


def check_room(folder: Path, needed: float, what: str, advice: str) -> None:
    """See that so many bytes may be written into a folder, which need not exist, before any of them is.

    Args:
        what: what needs them, up to the number: "The slices need up to".
        advice: what to do where there is too little room.

    Raises:
        SamunetError: there is; says what is needed and what can be used.
    """
    available = room_bytes(folder)
    if needed > available:
        raise SamunetError(
            f"{what} {shown_bytes(needed)} in {folder}; {shown_bytes(available)} can be used. {advice}"
        )


def take_space(file: IO[bytes], size: int, folder: Path) -> None:
    """Take the disk space of a new file in a folder.

    Raises:
        OSError: there is none, one of `NO_SPACE`.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    elif shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def lacks_space(folder: Path, size: int) -> bool:
    """Whether a folder has no room for so many bytes, by the disk or by a quota, which only trying tells."""
    probe = partial_path(folder / "space")
    try:
        with probe.open("xb") as file:
            take_space(file, max(1, size), folder)
    except OSError as error:
        return error.errno in NO_SPACE
    finally:
        probe.unlink(missing_ok=True)
    return False


def shown_bytes(size: float) -> str:
    """A size on the disk as text, in GB or MB of 1e9 and 1e6 bytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


@contextmanager
def atomic_path(path: Path, keep_existing: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside `path` (same suffixes) that replaces it once the block succeeds.

    With `keep_existing` a file that another process has put there meanwhile stays, and this one's goes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    try:
        yield temporary
        if not (keep_existing and _linked(temporary, path)):
            replace_path(temporary, path)
    except OSError as error:
        if error.errno and error.filename is None:  # a failed write (disk full) does not say of which file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent` for files that get their place by `replace_path`; the rest goes with it.

    For writers that choose their files' names themselves; `atomic_path` is for one file.
    """
    folder = partial_path(parent / "files")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_path(temporary: Path, path: Path) -> None:
    """`os.replace`; on Windows a file that a scanner or a viewer holds for a moment is waited for."""
    for _ in range(REPLACE_TRIES - 1):
        try:
            return os.replace(temporary, path)
        except PermissionError:
            time.sleep(REPLACE_SECONDS)
    return os.replace(temporary, path)


def replace_folder(fresh: Path, target: Path) -> None:
    """Give a finished folder its name, on one disk; an older one goes only then, and stays if that fails."""
    older = partial_path(target.with_name("replaced"))
    try:
        if target.exists():
            replace_path(target, older)
        replace_path(fresh, target)
    except BaseException:
        if older.exists() and not target.exists():
            os.replace(older, target)
        raise
    shutil.rmtree(older, ignore_errors=True)


def partial_path(path: Path) -> Path:
    """A hidden name beside `path` (same suffixes) that no other process takes, on other machines neither."""
    return path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}{path.name}")


def _linked(temporary: Path, path: Path) -> bool:
    """Give a file its name unless that is taken; False where nothing was done for want of hard links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return True
    except OSError:
        return path.exists()
    return True


def write_text(path: Path, text: str, *, lasting: bool = False) -> None:
    """Write a text file so that it is either complete or absent; a lasting one after a power failure too."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        if lasting:
            with temporary.open("r+b") as file:
                sync(file)


def sync(file: IO[Any]) -> None:
    """Have the system write out what was written to a file, where it can.

    A rename may reach the disk before what it renames: an empty file would replace a whole one.
    """
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as problem:
        if problem.errno not in NO_SYNC:
            raise


def remove_partials(folder: Path, untouched: float = ABANDONED_SECONDS) -> None:
    """Remove what processes that were killed have left half written in a folder (not in those within).

    Args:
        untouched: seconds since the last write to a file that counts as left; 0 where nobody else writes.
    """
    latest = time.time() - untouched
    for path in folder.glob(f".*-*{PARTIAL}*"):
        with suppress(OSError):  # of another process, which removes it itself
            if path.stat().st_mtime > latest:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
