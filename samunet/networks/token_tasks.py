"""e-Mix and ShED: objectives on patch embeddings, before the absolute position is added.

As in DABS (Tamkin et al. 2021, arXiv 2111.12062). Were the position added first, a shuffled token would give
itself away by its place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from samunet.networks.masked import at_places, lowest
from samunet.networks.sam.encoder import SamImageEncoder

TEMPERATURE = 0.2
SHUFFLED_SHARE = 0.15
NOT_JUDGED = -100
"""Class of tokens without a loss."""


class MixedExamples(nn.Module):
    """e-Mix: which two pictures is a mixture made of, and in which parts? Has no parameters of its own."""

    def forward(self, encoder: SamImageEncoder, picture: Tensor, mixing: Tensor, real: Tensor) -> Tensor:
        """Mean loss of a batch.

        Args:
            encoder: trained.
            picture: (B, 3, S, S), normalised, B at least 2.
            mixing: (B, 2) in 0..1: the own picture's share, and numbers whose order says who is the other.
            real: (B, g, g) boolean, tokens that hold a part of the picture.
        """
        tokens = encoder.patch_embed(picture)
        partner = partners(mixing[:, 1])
        share = torch.maximum(mixing[:, 0], 1 - mixing[:, 0])  # Beta(1, 1), the larger part
        part = share.view(-1, 1, 1, 1).to(tokens.dtype)
        mixed = part * tokens + (1 - part) * tokens[partner].detach()
        either = real | real[partner]
        pooled = [_pooled(encoder, kind, counted) for kind, counted in ((mixed, either), (tokens, real))]
        logits = pooled[0] @ pooled[1].T / TEMPERATURE
        own = torch.arange(len(picture), device=picture.device)
        losses = share * functional.cross_entropy(logits, own, reduction="none")
        losses = losses + (1 - share) * functional.cross_entropy(logits, partner, reduction="none")
        return losses.mean()


class ShuffledTokens(nn.Module):
    """ShED: which tokens are not at their place?

    Args:
        embedding: channels of the neck, whose output is judged.
    """

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.judge = nn.Conv2d(embedding, 2, 1)

    def forward(self, encoder: SamImageEncoder, picture: Tensor, order: Tensor, real: Tensor) -> Tensor:
        """Mean loss over the real tokens.

        Args:
            encoder: trained.
            picture: (B, 3, S, S), normalised.
            order: (B, g, g) random numbers; the tokens with the lowest ones change places in a circle.
            real: (B, g, g) boolean, tokens that hold a part of the picture; the others stay.
        """
        tokens = encoder.patch_embed(picture)
        shuffled, moved = shifted_tokens(tokens, order, real)
        logits = self.judge(encoder.encode_tokens(shuffled + encoder.pos_embed)).float()
        return functional.cross_entropy(logits, moved.long().masked_fill(~real, NOT_JUDGED))


def partners(draws: Tensor) -> Tensor:
    """(B,) another picture for each: the next one in the order of the random numbers."""
    order = draws.argsort()
    partner = torch.empty_like(order)
    partner[order] = order.roll(-1)
    return partner


def shifted_tokens(tokens: Tensor, order: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens (B, g, g, E) with some of the real ones moved on in a circle, and which (B, g, g)."""
    flat = tokens.flatten(1, 2)
    places, count = lowest(order, SHUFFLED_SHARE, real, least=2)
    rank = torch.arange(places.shape[1], device=places.device).expand_as(places)
    before = torch.where(rank == 0, count - 1, rank - 1)
    origin = places.gather(1, torch.where(rank < count, before, rank))
    wide = at_places(places, origin)[..., None].expand_as(flat)
    return flat.gather(1, wide).view_as(tokens), at_places(places, rank < count).view_as(order)


def _pooled(encoder: SamImageEncoder, tokens: Tensor, counted: Tensor) -> Tensor:
    """Mean embedding (B, E) of the tokens that count (B, g, g), of length 1."""
    embedding = encoder.encode_tokens(tokens + encoder.pos_embed).float()
    mean = (embedding * counted[:, None]).sum((-2, -1)) / counted.sum((-2, -1))[:, None]
    return functional.normalize(mean, dim=-1)
