"""The networks of a model over a whole image; what goes wrong on the way is told with what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from samunet.errors import CPU_ALLOCATOR, SamunetError, lacks_gpu_memory, lacks_main_memory
from samunet.inference.logit_storage import Logits
from samunet.inference.pass_statistics import PassStatistics
from samunet.inference.sliding_window import CPU, Room, WindowSettings, predict_logits
from samunet.trainers.devices import FP32

logger = logging.getLogger(__name__)


class Forward:
    """Runs networks over preprocessed images, in the device's number type.

    An image on which half precision overflows is computed in single precision. Where the device's memory does
    not suffice, fewer tiles are run at once, then logits are gathered in main memory (where they are anyway
    on a CPU); what sufficed once is kept for the next images.

    Attributes:
        networks: in the order of the window's groups.
        window: how tiles are laid and averaged, as far as memory allows.
        models: folders that the networks are from, for messages.
    """

    def __init__(self, networks: Sequence[nn.Module], window: WindowSettings, models: Sequence[Path]) -> None:
        self.networks = networks
        self.window = window
        self.models = tuple(models)

    def __call__(
        self, image: np.ndarray, storage: Room | None = None, observer: PassStatistics | None = None
    ) -> Logits:
        """Logits of an image (C, Z, Y, X); see `predict_logits`.

        Raises:
            SamunetError: they are not finite, or there is too little memory for a single tile.
        """
        room = None if storage is None else cache(storage)  # one room, however often it is tried
        precision = self.window.precision
        while True:
            window = replace(self.window, precision=precision)
            try:
                with torch.inference_mode(), window.precision.autocast(window.device):
                    return predict_logits(
                        self.networks, torch.from_numpy(image), window, storage=room, observer=observer
                    )
            except FloatingPointError as fault:
                if precision == FP32:
                    raise SamunetError(self._not_finite()) from fault
                overflows, is_main = True, False
            except (RuntimeError, MemoryError) as fault:  # torch's own error is a RuntimeError
                overflows, is_main = False, lacks_main_memory(fault)
                if not (is_main or lacks_gpu_memory(fault)):
                    raise
                reason = str(fault).split("\n")[0].rpartition(CPU_ALLOCATOR)[2]
            # Out of the block above, whose traceback holds the tensors of this attempt.
            if observer is not None:
                observer.restart()
            if overflows:
                logger.warning("This image overflows %s and is computed in fp32, slower.", precision.name)
                precision = FP32
            elif is_main:
                self.window = self._less_main_memory(self.window, reason)
            else:
                self.window = self._smaller(self.window, reason)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _smaller(self, window: WindowSettings, reason: str) -> WindowSettings:
        """A window that takes less of the device's memory.

        Raises:
            SamunetError: there is none.
        """
        short = f"Not enough memory on {window.device.type} ({reason})"
        if window.batch_size > 1:
            return _fewer_tiles(window, short)
        if window.band_device is None:
            logger.warning("%s: from here on logits are gathered in main memory, which is slower.", short)
            return replace(window, band_device=CPU)
        raise SamunetError(
            f"{short}, even for one tile at once with the logits in main memory. Free it from other "
            "programs, predict with fewer folds (-f) or models at once, or use -device cpu."
        )

    def _less_main_memory(self, window: WindowSettings, reason: str) -> WindowSettings:
        """A window that takes less of the main memory, which is where networks on a CPU are.

        Raises:
            SamunetError: there is none.
        """
        short, on_cpu = f"Not enough memory on cpu ({reason})", window.device.type == "cpu"
        if on_cpu and window.batch_size > 1:
            return _fewer_tiles(window, short)
        raise SamunetError(
            f"{short}{', even for one tile at once' if on_cpu else ''}. Free it from other programs, predict "
            "with fewer folds (-f) or models at once, or use a machine with more."
        )

    def _not_finite(self) -> str:
        models = " and ".join(map(str, self.models))
        return (
            f"{models} gives NaN or infinity for this image, which decides nothing. Take another checkpoint "
            "(-chk) or other folds (-f), or train it again."
        )


def _fewer_tiles(window: WindowSettings, short: str) -> WindowSettings:
    fewer = window.batch_size // 2
    logger.warning("%s: from here on %d instead of %d tiles at once.", short, fewer, window.batch_size)
    return replace(window, batch_size=fewer)
