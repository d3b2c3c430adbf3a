"""Where the logits of a case wait for their export: in memory, above a limit in a temporary file."""

from __future__ import annotations

import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samunet.inference.probabilities import reserve

IN_MEMORY_BYTES = 2**30
"""Logits of a case that are kept in memory; what is above goes to disk."""


class LogitsOnDisk:
    """Logits (K, Z, Y, X) float32 in a nameless temporary file that goes when the last part of it does.

    Like `Probabilities`, it is mapped anew at each access.
    """

    def __init__(self, shape: tuple[int, ...], file: Any, offset: int = 0) -> None:
        self.shape = shape
        self._file = file
        self._offset = offset

    @classmethod
    def create(cls, shape: tuple[int, ...], folder: Path) -> LogitsOnDisk:
        """Logits to be filled in.

        Raises:
            NoSpaceError: no space is left.
        """
        file = tempfile.TemporaryFile(dir=folder, prefix=".samunet_logits_")  # noqa: SIM115 - lives as long as this
        reserve(
            file, 4 * prod(shape), folder, f"the logits of a case in {folder}", "predict fewer models at once"
        )
        return cls(shape, file)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def classes(self, first: int, stop: int) -> LogitsOnDisk:
        """Part of the classes, in the same file."""
        return LogitsOnDisk(
            (stop - first, *self.shape[1:]), self._file, self._offset + 4 * first * prod(self.shape[1:])
        )

    def __getitem__(self, where: Any) -> Tensor:
        return torch.from_numpy(np.array(self._mapped("r")[where]))

    def __setitem__(self, where: Any, values: Tensor) -> None:
        self._mapped("r+")[where] = values.float().cpu().numpy()

    def _mapped(self, mode: Any) -> np.ndarray:
        return np.memmap(self._file, np.float32, mode, self._offset, self.shape)


Logits = Tensor | LogitsOnDisk


class LogitStorage:
    """Gives room for the logits of one case.

    Args:
        folder: for what does not fit into memory.
        limit_bytes: of all logits in memory.
    """

    def __init__(self, folder: Path, limit_bytes: int = IN_MEMORY_BYTES) -> None:
        self.folder = folder
        self.left = limit_bytes

    def __call__(self, shape: tuple[int, ...]) -> Logits:
        size = 4 * prod(shape)
        if size > self.left:
            return LogitsOnDisk.create(shape, self.folder)
        self.left -= size
        return torch.empty(shape)
