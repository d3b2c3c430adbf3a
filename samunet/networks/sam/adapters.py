"""Bottleneck adapters in the blocks of a 2D SAM encoder whose own weights stay as they are.

Two a block, as Medical SAM Adapter places them (Wu et al. 2023, arXiv 2304.12620): one on what attention
gives, before the residual; one beside the MLP, scaled. Their up-projections start at zero, so that an encoder
with new adapters equals itself without them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from samunet.networks.sam.package import import_modeling

import_modeling()
from segment_anything.modeling.image_encoder import (  # noqa: E402
    Block,
    window_partition,
    window_unpartition,
)

SCALE = 0.5
"""Of the adapter beside the MLP."""
REDUCTION = 4
"""Width of the encoder over that of an adapter, where no other is asked for."""
_KEY = re.compile(r"blocks\.\d+\.(attention|mlp)_adapter\.(down|up)\.(weight|bias)$")


class Adapter(nn.Module):
    """Tokens (..., width) -> what is added to them, of the same shape: down, ReLU, up; zero at the start."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.up(self.down(tokens).relu())


class AdaptedBlock(Block):
    """The package's block with two adapters: tokens (B, H, W, width) in and out."""

    attention_adapter: Adapter
    mlp_adapter: Adapter

    def forward(self, x: Tensor) -> Tensor:
        attended = self._attend(self.norm1(x))
        x = x + attended + self.attention_adapter(attended)
        normed = self.norm2(x)
        return x + self.mlp(normed) + SCALE * self.mlp_adapter(normed)

    def _attend(self, x: Tensor) -> Tensor:
        if not self.window_size:
            return self.attn(x)
        height, width = x.shape[1], x.shape[2]
        windows, padded = window_partition(x, self.window_size)
        return window_unpartition(self.attn(windows), self.window_size, padded, (height, width))


def add_adapters(encoder: Any, hidden: int | None = None) -> None:
    """Give every block of a SAM encoder its adapters; they are frozen where the encoder is.

    Args:
        encoder: a `SamImageEncoder` without any.
        hidden: width of the adapters; None takes a quarter of the encoder's.
    """
    width = encoder.variant.width
    like = encoder.pos_embed
    for block in encoder.blocks:
        block.__class__ = AdaptedBlock  # same parameters, another forward, as for its attention
        for name in ("attention_adapter", "mlp_adapter"):
            adapter = Adapter(width, hidden or width // REDUCTION).to(like.device, like.dtype)
            setattr(block, name, adapter.requires_grad_(like.requires_grad))


def has_adapters(encoder: nn.Module) -> bool:
    """Whether an encoder's blocks have adapters."""
    return any(isinstance(block, AdaptedBlock) for block in encoder.modules())


def is_adapter_key(key: str) -> bool:
    """Whether a state-dict key, of an encoder or of what holds one, is of an adapter."""
    return _KEY.search(key) is not None


def adapter_width(state: Mapping[str, Tensor]) -> int | None:
    """Width of the adapters in a state dict, whatever stands before its keys; None where it has none."""
    for key, value in state.items():
        if key.endswith("adapter.down.weight") and is_adapter_key(key):
            return int(value.shape[0])
    return None
