"""One process to a run folder: two that write checkpoints and history into one would spoil both."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from samunet.errors import SamunetError
from samunet.file_locks import missing_locks
from samunet.whole_files import remove_partials

logger = logging.getLogger(__name__)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from training into `folder`; the system ends the claim of one that died.

    What that one left half written is removed. Where the file system has no locks, nobody is kept away.

    Raises:
        SamunetError: another process has it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    missing = missing_locks(folder)
    if missing is not None:
        logger.warning(
            "The file system of %s has no locks (%s), so nothing keeps a second training out of it. See that "
            "only one is started there at a time.",
            folder,
            missing.strerror,
        )
        remove_partials(folder)  # of long ago only: another process may be writing
        yield
        return
    # Beside the folder, which --overwrite removes.
    path = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as taken:
        raise SamunetError(
            f"Another process is training into {folder}. Wait until it has ended, or stop it and continue "
            "with --c; another training of the same fold needs a --tag (samunet_pretrain: another -o)."
        ) from taken
    try:
        remove_partials(folder, untouched=0)
        yield
    finally:
        # While it is held, so that nobody's file is removed but our own; Windows lets no open file go.
        if os.name != "nt":
            path.unlink(missing_ok=True)
        lock.release()
