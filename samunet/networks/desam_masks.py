"""DeSAM's prompt-decoupled mask module: a U-Net-like path over the encoder's own depths (arXiv 2306.00499).

What the encoder saw at three depths enters as context that no prompt can change; the mask embedding of the
prompt-relevant module joins at the bottom only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from samunet.networks.desam_blocks import SE_LEAST, SE_REDUCTION

SLOPE = 0.01


class SqueezeExcitation(nn.Module):
    """Scales the channels of (B, C, H, W) by what two small layers make of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside = max(SE_LEAST, channels // SE_REDUCTION)
        self.squeeze = nn.Linear(channels, inside, bias=False)
        self.excite = nn.Linear(inside, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.excite(functional.relu(self.squeeze(x.mean((2, 3))))))
        return x * scale[:, :, None, None]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with instance norm, squeeze-excitation, and a shortcut; (B, a, H, W) -> (B, b,
    H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.scale = SqueezeExcitation(outputs)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(functional.instance_norm(self.first(x)), SLOPE)
        y = self.scale(functional.instance_norm(self.second(y)))
        if self.shortcut is not None:
            x = functional.instance_norm(self.shortcut(x))
        return functional.leaky_relu(x + y, SLOPE)


def _double(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False)


class DecoupledMasks(nn.Module):
    """Context of three depths, and logits (B, K, 4h, 4w) from it with or without a mask embedding.

    Args:
        depth_width: channels of the encoder's blocks.
        width: channels of the mask embedding and of the bottom (256 in SAM); half and a quarter above.
        outputs: channels K of the logits.
        fused: whether a mask embedding joins the context.
    """

    def __init__(self, depth_width: int, width: int, outputs: int, *, fused: bool) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.deep = ResidualBlock(depth_width, width)
        self.middle = nn.Sequential(
            ResidualBlock(depth_width, half), _double(half, half), ResidualBlock(half, half)
        )
        self.shallow = nn.Sequential(
            ResidualBlock(depth_width, quarter),
            _double(quarter, quarter),
            ResidualBlock(quarter, quarter),
            _double(quarter, quarter),
            ResidualBlock(quarter, quarter),
        )
        self.fuse = ResidualBlock(2 * width, width) if fused else None
        self.up_half = _double(width, half)
        self.join_half = ResidualBlock(2 * half, half)
        self.up_quarter = _double(half, quarter)
        self.join_quarter = ResidualBlock(2 * quarter, quarter)
        self.classify = nn.Conv2d(quarter, outputs, 1, bias=False)

    def context(self, depths: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What all prompts share: depths (B, depth_width, h, w), shallow to deep -> maps of width, half,
        quarter."""
        shallow, middle, deep = depths
        return self.deep(deep), self.middle(middle), self.shallow(shallow)

    def forward(self, context: tuple[Tensor, Tensor, Tensor], embedding: Tensor | None) -> Tensor:
        """Logits (B * P, K, 4h, 4w), prompts running fastest.

        Args:
            context: of B slices.
            embedding: (B, P, width, h, w) of P prompts a slice; None without fusion.
        """
        prompts = 1 if embedding is None else int(embedding.shape[1])
        bottom, middle, shallow = (_repeat(x, prompts) for x in context)
        if self.fuse is not None:
            assert embedding is not None
            bottom = self.fuse(torch.cat([embedding.flatten(0, 1), bottom], dim=1))
        x = self.join_half(torch.cat([self.up_half(bottom), middle], dim=1))
        x = self.join_quarter(torch.cat([self.up_quarter(x), shallow], dim=1))
        return self.classify(x)


def _repeat(x: Tensor, prompts: int) -> Tensor:
    """Each of B maps P times in a row, without a copy where P is 1."""
    return x if prompts == 1 else x[:, None].expand(-1, prompts, -1, -1, -1).flatten(0, 1)
