"""The networks of a model over a whole image; what goes wrong on the way is told with what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from samunet.errors import SamunetError
from samunet.inference.sliding_window import PassObserver, Storage, WindowSettings, predict_logits


class Forward:
    """Runs networks over preprocessed images, in the device's number type.

    Attributes:
        networks: in the order of the window's groups.
        window: how tiles are laid and averaged.
        models: folders that the networks are from, for messages.
    """

    def __init__(self, networks: Sequence[nn.Module], window: WindowSettings, models: Sequence[Path]) -> None:
        self.networks = networks
        self.window = window
        self.models = tuple(models)

    def __call__(
        self, image: np.ndarray, storage: Storage | None = None, observer: PassObserver | None = None
    ) -> Any:
        """Logits of an image (C, Z, Y, X); see `predict_logits`.

        Raises:
            SamunetError: they are not finite.
        """
        window = self.window
        try:
            with torch.inference_mode(), window.precision.autocast(window.device):
                return predict_logits(
                    self.networks, torch.from_numpy(image), window, storage=storage, observer=observer
                )
        except FloatingPointError as fault:
            raise SamunetError(self._not_finite()) from fault

    def _not_finite(self) -> str:
        precision, device = self.window.precision.name, self.window.device.type
        if precision == "fp32":
            advice = "Take another checkpoint (-chk) or other folds (-f), or train it again"
        else:
            advice = f"It computed in {precision}: train it again with --set precision=fp32"
            if device != "cpu":
                advice += ", or see whether -device cpu can do it"
        models = " and ".join(map(str, self.models))
        return f"{models} gives NaN or infinity for this image, which decides nothing. {advice}."
