"""Pictures with hidden patches, rebuilt from those that are seen (MAE, arXiv 2111.06377)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.variants import PATCH

EPSILON = 1e-6


class MaskedPixels(nn.Module):
    """What rebuilding needs besides the encoder: a learned token for hidden patches and a layer to pixels.

    The whole grid is encoded, hidden tokens too (as SimMIM does, arXiv 2111.09886), because SAM's windows and
    relative positions need all of it. The token replaces the patch's embedding BEFORE the absolute position
    is added, so that a hidden place still knows where it is. Pixels are predicted from the neck's output, so
    that the neck is trained too.

    Args:
        width: of the encoder's tokens.
        embedding: channels of the neck.
    """

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.to_pixels = nn.Conv2d(embedding, 3 * PATCH * PATCH, 1)

    def forward(self, encoder: SamImageEncoder, picture: Tensor, hidden: Tensor) -> Tensor:
        """Loss of each patch (B, g, g): mean squared error of its normalised pixels, 0 where it is seen.

        Args:
            encoder: whose blocks and neck are trained.
            picture: (B, 3, S, S), normalised.
            hidden: (B, g, g) boolean.
        """
        tokens = encoder.patch_embed(picture)
        tokens = torch.where(hidden[..., None], self.mask_token.to(tokens.dtype), tokens) + encoder.pos_embed
        rebuilt = self.to_pixels(encoder.encode_tokens(tokens)).permute(0, 2, 3, 1).float()
        return (rebuilt - patch_targets(picture)).square().mean(-1) * hidden


def patch_targets(picture: Tensor) -> Tensor:
    """Pixels (B, g, g, 768) of each patch, with the patch's own mean and deviation removed."""
    pixels = nn.functional.pixel_unshuffle(picture.float(), PATCH).permute(0, 2, 3, 1)
    mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True)
    return (pixels - mean) / (variance + EPSILON).sqrt()


def hidden_patches(order: Tensor, share: float) -> Tensor:
    """Which patches are hidden: those with the lowest numbers.

    Args:
        order: (B, g, g) random numbers.
        share: of the patches; the same number in each picture.
    """
    flat = order.flatten(1)
    count = round(share * flat.shape[1])
    hidden = torch.zeros_like(flat, dtype=torch.bool)
    hidden.scatter_(1, flat.argsort(1)[:, :count], True)
    return hidden.view_as(order)
