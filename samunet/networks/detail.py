"""Fine structure for the heads: a small convolutional pyramid over the picture that the encoder sees.

SAM's embedding has one vector for 16 x 16 pixels. A pretrained one describes edges inside that square, one
that is trained from scratch does not for a long time; the pyramid gives the head the edges directly, as the
skip connections of a U-Net do.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from samunet.networks.picture import SliceSettings
from samunet.networks.sam.variants import get_variant

SLOPE = 0.01
"""Slope of the leaky ReLU below zero, as in nnU-Net."""


def convolution(inputs: int, outputs: int, *, stride: int = 1, normalised: bool = True) -> nn.Sequential:
    """3x3 convolution, instance norm, leaky ReLU; or without the norm and with a plain ReLU."""
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not normalised)
    if not normalised:
        return nn.Sequential(layer, nn.ReLU(inplace=True))
    return nn.Sequential(layer, nn.InstanceNorm2d(outputs, affine=True), nn.LeakyReLU(SLOPE, inplace=True))


def initialise(module: nn.Module) -> None:
    """He initialisation of the convolutions, zero biases (nnU-Net's)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight, a=SLOPE)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def wants_image_skip(settings: SliceSettings) -> bool:
    """The variant's default for a network of these settings."""
    variant = get_variant(settings.variant)
    return variant.wants_image_skip(trained=not settings.frozen, paper_compat=settings.paper_compat)


class DetailPyramid(nn.Module):
    """Picture (B, 3, S, S) -> one map per width, finest first: (B, widths[i], S / (finest * 2^i), ...)."""

    def __init__(self, widths: Sequence[int], finest: int) -> None:
        super().__init__()
        self.finest = finest
        inputs = (3, *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(convolution(a, b, stride=2 if level else 1), convolution(b, b))
            for level, (a, b) in enumerate(zip(inputs, widths))
        )

    def forward(self, picture: Tensor) -> list[Tensor]:
        if self.finest > 1:
            picture = functional.avg_pool2d(picture, self.finest)
        maps = []
        for stage in self.stages:
            picture = stage(picture)
            maps.append(picture)
        return maps
