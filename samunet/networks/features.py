"""What a frozen encoder hands to a head: everything that decoding needs, and nothing of the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Output of `network.encode`, input of `network.decode`; B samples.

    Attributes:
        levels: feature maps (B, E_i, h_i, w_i), the last one is the neck output (256 channels in SAM).
        output_size: spatial size of the logits, that of the network's input patch.
        image: the encoder's input picture (B, 3, s, s) when a head asks for an image skip, else None.
    """

    levels: tuple[Tensor, ...]
    output_size: tuple[int, ...]
    image: Tensor | None = None


@runtime_checkable
class EncodingNetwork(Protocol):
    """A network in two halves: one pass of the encoder serves the heads of several folds, and the cache."""

    def encode(self, inputs: Tensor, /) -> Features:
        """Patches (B, C, *patch) -> what `decode` needs."""

    def decode(self, features: Features, /) -> Tensor:
        """Features -> logits (B, K, *patch)."""


def zeros_of(values: Tensor) -> Tensor:
    """Zeros of that shape and type; unlike `zeros_like` no constant of the traced batch in an ONNX file."""
    return values.detach().clamp(0, 0)
