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


def hidden_patches(order: Tensor, share: float, real: Tensor | None = None) -> Tensor:
    """Which patches are hidden: those with the lowest numbers.

    Args:
        order: (B, g, g) random numbers.
        share: of the patches; the same number in pictures of one shape.
        real: (B, g, g) boolean, patches that hold a part of the picture: no other ones are hidden. None: all.
    """
    chosen, count = lowest(order, share, real)
    return at_places(chosen, torch.arange(chosen.shape[1], device=order.device) < count).view_as(order)


def lowest(order: Tensor, share: float, real: Tensor | None = None, least: int = 1) -> tuple[Tensor, Tensor]:
    """Real patches in the order of their numbers, the others behind; and how many of them are a share.

    Args:
        order / share / real: as in `hidden_patches`.
        least: number of patches at least.

    Returns:
        places (B, g * g) in the flattened grid, and counts (B, 1).
    """
    flat = order.flatten(1)
    valid = torch.ones_like(flat, dtype=torch.bool) if real is None else real.flatten(1)
    count = (share * valid.sum(1, keepdim=True)).round().clamp_min(least).long()
    return flat.masked_fill(~valid, torch.inf).argsort(1), count


def at_places(places: Tensor, values: Tensor) -> Tensor:
    """Values in the order of `places` brought back to their places."""
    return torch.zeros_like(values).scatter(1, places, values)
