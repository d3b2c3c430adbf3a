"""Initial weights for a SAM that is trained from nothing; the package leaves torch's defaults.

Two things are given at the start that would otherwise have to be found first: positions of tokens in the
encoder, and that a prompt looks at its own place in the picture.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from samunet.networks.promptable import PromptableSam
from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.weights import SamWeights

SHARPNESS = 5.0
"""Logit of a prompt's attention to its own place; places two tokens away have about 0."""


@torch.no_grad()
def start_from_nothing(sam: PromptableSam) -> None:
    """Set the weights that matter at the start; draws from torch's default generator.

    Args:
        sam: as built.
    """
    _start_encoder(sam.image_encoder)
    transformer = sam.mask_decoder.transformer
    for layer in transformer.layers:
        look_at_own_place(layer.cross_attn_token_to_image)
        look_at_own_place(layer.cross_attn_image_to_token)
    look_at_own_place(transformer.final_attn_token_to_image)


def start_from_weights(sam: PromptableSam, weights: SamWeights) -> None:
    """Set all weights from a file; position tables are resized to the input size, adapters come along."""
    sam.image_encoder.load_tables(weights.image_encoder)
    sam.prompt_encoder.load_state_dict(weights.prompt_encoder)
    sam.mask_decoder.load_state_dict(weights.mask_decoder)


def _start_encoder(encoder: SamImageEncoder) -> None:
    """As masked autoencoders start (arXiv 2111.06377, A.1): Xavier, positions by sines and cosines."""
    for module in encoder.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(encoder.patch_embed.proj.weight.view(encoder.variant.width, -1))
    encoder.pos_embed.copy_(sine_positions(encoder.grid, encoder.variant.width))


def sine_positions(grid: int, width: int) -> Tensor:
    """(1, grid, grid, width): a quarter each of sines and cosines of the column and of the row."""
    rate = 10000 ** (-torch.arange(width // 4) / (width // 4))
    angle = torch.arange(grid)[:, None] * rate
    along = torch.cat([angle.sin(), angle.cos()], dim=-1)
    row, column = along[:, None].expand(-1, grid, -1), along[None].expand(grid, -1, -1)
    table = torch.cat([column, row], dim=-1)
    return nn.functional.pad(table, (0, width - table.shape[-1]))[None]


def look_at_own_place(attention: Any) -> None:
    """Let queries and keys of a cross-attention be the same projection, so that like positions meet.

    SAM adds the same code of a place to a prompt's token and to the image there. With independent projections
    attention is blind to that until training has aligned them. The code of width E has the squared norm E / 2
    and enters twice in tokens (as content, and as position).

    Args:
        attention: the package's Attention.
    """
    inner, outer, heads = attention.internal_dim, attention.embedding_dim, attention.num_heads
    nn.init.orthogonal_(attention.q_proj.weight)
    energy = 2 * (outer / 2) * (inner / outer) / heads  # of a code against itself, in one head
    attention.q_proj.weight.mul_(math.sqrt(SHARPNESS * math.sqrt(inner / heads) / energy))
    attention.k_proj.weight.copy_(attention.q_proj.weight)
    nn.init.zeros_(attention.q_proj.bias)
    nn.init.zeros_(attention.k_proj.bias)
