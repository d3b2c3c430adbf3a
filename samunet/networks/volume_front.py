"""The front end of SAM in 3D, on native voxels.

AutoProSAM (arXiv 2308.14936) enlarges a patch four times along every axis, runs SAM's 16 x 16 patch embedding
on each of the resulting slices and merges 16 slices by a depthwise convolution: one token stands for 4 x 4 x
4 voxels. Enlarging, embedding and merging are linear, so together they are one convolution over the voxels
that a token depends on, 6 x 6 x 6 with stride 4. Nothing is approximated, and a patch costs a ninetieth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from samunet.errors import SamunetError
from samunet.networks.full_precision import full_precision
from samunet.networks.sam.package import modeling
from samunet.networks.sam.variants import PATCH

TOKEN_SIZES = (1, 2, 4)
"""Voxels that a token may cover along an axis."""


def interpolation_matrix(token: int) -> Tensor:
    """Weights (16, token + 2) of the voxels around a token in the 16 pixels that it is enlarged to.

    Linear interpolation with half-pixel centres, as `torch.nn.functional.interpolate` does it. The first and
    the last voxel are the neighbours on both sides; at the border of the volume the border is repeated.
    """
    factor = PATCH // token
    place = (torch.arange(PATCH, dtype=torch.float64) + 0.5) / factor - 0.5
    below = place.floor()
    share = place - below
    matrix = torch.zeros(PATCH, token + 2, dtype=torch.float64)
    rows = torch.arange(PATCH)
    matrix[rows, below.long() + 1] = 1 - share
    matrix[rows, below.long() + 2] += share
    return matrix.float()


def check_tokens(patch_size: Sequence[int], token_size: Sequence[int]) -> None:
    """Refuse tokens that a patch is not made of.

    Raises:
        SamunetError: a size that does not exist, or a patch that is no multiple of it.
    """
    if len(token_size) != 3 or any(token not in TOKEN_SIZES for token in token_size):
        raise SamunetError(
            f"token_size {tuple(token_size)}: give three of {TOKEN_SIZES}, voxels along z, y and x."
        )
    if any(size % token for size, token in zip(patch_size, token_size)):
        raise SamunetError(
            f"A patch of {tuple(patch_size)} voxels cannot be divided into tokens of {tuple(token_size)}. "
            "Change patch_size or token_size with --set."
        )


class VolumeFront(nn.Module):
    """Colours (B, 3, Z, Y, X) -> tokens (B, Z/t, Y/t, X/t, width), t being the token size of each axis.

    `proj` is SAM's patch embedding (its state-dict name), `slices` the weights and `slices_bias` the bias
    that merge 16 enlarged slices into one token; they start as the mean.
    """

    enlarge_z: Tensor
    enlarge_y: Tensor
    enlarge_x: Tensor

    def __init__(self, width: int, token_size: Sequence[int]) -> None:
        super().__init__()
        self.token_size = tuple(token_size)
        self.proj = modeling.image_encoder.PatchEmbed((PATCH, PATCH), (PATCH, PATCH), embed_dim=width).proj
        self.slices = nn.Parameter(torch.full((width, PATCH), 1 / PATCH))
        self.slices_bias = nn.Parameter(torch.zeros(width))
        for axis, token in zip("zyx", self.token_size):
            self.register_buffer(f"enlarge_{axis}", interpolation_matrix(token), persistent=False)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Weight (width, 3, t + 2, t + 2, t + 2) and bias (width,) of the one convolution."""
        along = self.slices @ self.enlarge_z
        plane = torch.einsum("ecij,ia,jb->ecab", self.proj.weight, self.enlarge_y, self.enlarge_x)
        weight = torch.einsum("ez,ecab->eczab", along, plane)
        bias = self.proj.bias * self.slices.sum(1) + self.slices_bias
        return weight, bias

    def forward(self, colours: Tensor) -> Tensor:
        with full_precision(colours.device.type):
            weight, bias = self.kernel()
        padded = functional.pad(colours, (1,) * 6, mode="replicate")
        tokens = functional.conv3d(padded, weight, bias, stride=self.token_size)
        return tokens.permute(0, 2, 3, 4, 1)
