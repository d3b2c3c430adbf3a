"""What a command does to its process: log, signals, and problems of the machine in plain words."""

from __future__ import annotations

import errno
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from samunet.errors import lacks_gpu_memory, lacks_main_memory
from samunet.whole_files import NO_SPACE

_WRONG_KIND = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def write_any_name(*streams: TextIO) -> None:
    """A path in letters that a log's encoding lacks is written with escapes; it is no reason to fail."""
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, which schedulers send, ends a command as Ctrl-C does, so that no half-written file stays."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def explain(problem: BaseException) -> str | None:
    """A readable message for a full disk, a path that cannot be used or too little memory, else None."""
    for error in _chain(problem):
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            name = f" while writing {error.filename}" if error.filename else ""
            return f"No space left on the disk{name}. Free some, or choose another place with --workspace."
    if isinstance(problem, OSError) and problem.errno in _NOT_ALLOWED:
        return f"Not allowed to use {_place_of(problem)}: {problem.strerror}. Check its permissions."
    if isinstance(problem, OSError) and problem.filename and problem.errno in _WRONG_KIND:
        kinds = ("folder", "file") if problem.errno == errno.EISDIR else ("file", "folder")
        return f"{_place_of(problem)} is a {kinds[0]} where a {kinds[1]} is needed. Give another path."
    if isinstance(problem, FileNotFoundError) and problem.filename:
        return (
            f"There is no file or folder {_place_of(problem)}. Put it back, or give another path; if another "
            "program has just moved or removed it, run the command again."
        )
    if lacks_main_memory(problem):
        return (
            "Not enough main memory. Use fewer workers (-np 1) or a machine with more; of a training you may "
            "also lower the batch, with --set batch_size=N."
        )
    if lacks_gpu_memory(problem):
        return (
            f"Not enough GPU memory ({str(problem).splitlines()[0]}). Free it from other programs, or use "
            "-device cpu; for a training also plan for less with -gpu_memory_target, or lower the batch with "
            "--set batch_size=N."
        )
    return None


def _place_of(error: OSError) -> str:
    """The path that an error is about; of a rename not the hidden temporary name."""
    names = [str(name) for name in (error.filename, error.filename2) if name]
    return next((name for name in names if not Path(name).name.startswith(".")), names[0] if names else "?")


def _chain(problem: BaseException | None) -> Iterator[BaseException]:
    """The error and those it arose from, each once: torch reports a full disk as an error of its own."""
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        seen.add(id(problem))
        yield problem
        problem = problem.__cause__ or problem.__context__


def set_up_logging(screen: TextIO, verbose: bool) -> None:
    """Send the package's log to the screen, plain; warnings are marked."""
    logger = logging.getLogger("samunet")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    for old in [h for h in logger.handlers if getattr(h, "is_screen", False)]:
        logger.removeHandler(old)
    handler = logging.StreamHandler(screen)
    handler.is_screen = True  # type: ignore[attr-defined]
    handler.setFormatter(_ScreenFormatter())
    logger.addHandler(handler)


class _ScreenFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.capitalize()}: {text}" if record.levelno >= logging.WARNING else text
