"""Files of torch: plain data and tensors, written whole or not at all; what cannot be read is one message."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from samunet.errors import SamunetError
from samunet.whole_files import atomic_path, sync

_UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, BadZipFile, ValueError, OSError)


def write_torch(path: Path, data: Any) -> None:
    """Write a checkpoint atomically, whatever fails; it loads with `torch.load(path, weights_only=True)`.

    Raises:
        OSError: the disk is full, or the file cannot be written for another reason.
    """
    # Through a Python file, so that a full disk is an OSError, which torch hides behind its own.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(data, file)
        except RuntimeError as error:
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        sync(file)


def read_torch(path: Path, advice: str) -> Any:
    """Content of a checkpoint, on the CPU.

    Args:
        path: of a file that is there.
        advice: what to do where it is damaged.

    Raises:
        SamunetError: it is cut off, damaged, or no file of plain data and tensors.
        OSError: it may not be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # torch's word for a damaged file
            raise
        raise SamunetError(
            f"{path} cannot be read ({type(error).__name__}): it is cut off or not a checkpoint. {advice}"
        ) from error
