"""AutoProSAM's decoder: all levels of the encoder aggregated, the image joined in, logits at stride 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from samunet.networks.area import area_means
from samunet.networks.volume_shape import REFINED_WIDTH


@dataclass(frozen=True, kw_only=True)
class VolumeDecoderSettings:
    """Sizes of the decoder.

    Attributes:
        inputs: channels of the encoder's feature maps; `levels` how many there are.
        width: channels of each level and of the aggregate.
        image_channels: of the picture that is joined in.
        outputs: channels K of the logits.
        token_size: voxels (z, y, x) of a token; the logits have half of that, or 1.
        refine: add detail at full resolution.
    """

    inputs: int
    levels: int
    width: int
    image_channels: int
    outputs: int
    token_size: tuple[int, int, int]
    refine: bool = False


class VolumeDecoder(nn.Module):
    """Feature maps (B, E, D, H, W) and image (B, C, Z, Y, X) -> logits (B, K, Z, Y, X).

    Each map goes through two convolutions and is enlarged twofold (along axes whose tokens have more than one
    voxel); all are joined with the image at that resolution, a convolution aggregates them, another gives the
    logits, which are enlarged to the voxels. The refinement, ours, adds what two convolutions make of the
    aggregate and the image at full resolution; without it no detail finer than two voxels can be drawn.
    """

    def __init__(self, settings: VolumeDecoderSettings) -> None:
        super().__init__()
        width = settings.width
        self.factors = tuple(2 if token > 1 else 1 for token in settings.token_size)
        self.levels = nn.ModuleList(
            nn.Sequential(convolution(settings.inputs, width), convolution(width, width))
            for _ in range(settings.levels)
        )
        self.aggregate = convolution(settings.levels * width + settings.image_channels, width)
        self.classify = nn.Conv3d(width, settings.outputs, 3, padding=1, bias=False)
        self.refine: nn.ModuleDict | None = None
        if settings.refine:
            self.refine = nn.ModuleDict(
                {
                    "reduce": nn.Conv3d(width, REFINED_WIDTH, 1),
                    "mix": convolution(REFINED_WIDTH + settings.image_channels, REFINED_WIDTH),
                    "classify": nn.Conv3d(REFINED_WIDTH, settings.outputs, 3, padding=1, bias=False),
                }
            )

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        size = [n * factor for n, factor in zip(maps[0].shape[2:], self.factors)]
        parts = [_enlarge(level(x), size, corners=True) for level, x in zip(self.levels, maps)]
        parts.append(area_means(image, size).to(parts[0].dtype))
        joined = self.aggregate(torch.cat(parts, dim=1))
        logits = _enlarge(self.classify(joined), image.shape[2:])
        if self.refine is None:
            return logits
        detail = _enlarge(self.refine["reduce"](joined), image.shape[2:])
        detail = self.refine["mix"](torch.cat([detail, image.to(detail.dtype)], dim=1))
        return logits + self.refine["classify"](detail)


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3 x 3 x 3 convolution, instance norm (no parameters), ReLU."""
    layer = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(layer, nn.InstanceNorm3d(outputs), nn.ReLU(inplace=True))


def _enlarge(x: Tensor, size: Sequence[int], *, corners: bool = False) -> Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return functional.interpolate(x, tuple(size), mode="trilinear", align_corners=corners)
