"""AutoProSAM's automatic prompt generator: a small 3D U-Net in the place of SAM's prompt encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from samunet.networks.volume_shape import WIDTH_FACTORS, pooling_plan


class PromptGenerator(nn.Module):
    """Feature map (B, E, D, H, W) of the grid it is built for -> prompted feature map of the same shape.

    Two 3 x 3 x 3 convolutions with instance norm and ReLU a level, max pooling down, trilinear up with
    concatenation, a 1 x 1 x 1 convolution at the end. The output takes the place of the feature map;
    with `residual` it is added to it and starts at zero.
    """

    def __init__(self, channels: int, grid: Sequence[int], width: int, *, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.pools = pooling_plan(grid)
        widths = [width * factor for factor in WIDTH_FACTORS[: len(self.pools) + 1]]
        inputs = [channels, *widths[:-1]]
        self.down = nn.ModuleList(_pair(a, b) for a, b in zip(inputs, widths))
        self.up = nn.ModuleList(_pair(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1]))
        self.last = nn.Conv3d(widths[0], channels, 1)
        if residual:
            for parameter in self.last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        x = self.down[0](features)
        kept = []
        for pool, stage in zip(self.pools, self.down[1:]):
            kept.append(x)
            x = stage(functional.max_pool3d(x, pool))
        for stage in self.up:
            skip = kept.pop()
            x = functional.interpolate(x, skip.shape[2:], mode="trilinear", align_corners=True)
            x = stage(torch.cat([skip, x], dim=1))
        x = self.last(x)
        return features + x if self.residual else x


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_convolution(inputs, outputs), *_convolution(outputs, outputs))


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv3d(inputs, outputs, 3, padding=1, bias=False),
        nn.InstanceNorm3d(outputs),
        nn.ReLU(inplace=True),
    )
