"""SAM's two-way transformer for several token sets on one image: what they share is computed once.

The package's `TwoWayTransformer` takes a copy of the image for every token set. Until the first layer has
written to the image, the copies are the same, and so are their projections. The position enters projections
only, as a term of its own. Both leave the result as it is; parameters and their names are the package's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def two_way(transformer: Any, image: Tensor, position: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Run the package's TwoWayTransformer on C token sets for each of B images.

    Args:
        transformer: `segment_anything.modeling.TwoWayTransformer`; without its final attention (None) the
            tokens are those of the last layer.
        image: (B, N, E), N cells.
        position: (N, E), added wherever the transformer asks the image where things are.
        tokens: (C, T, E) for all images alike, or (B, C, T, E).

    Returns:
        tokens (B, C, T, E) and image (B, C, N, E) after the last layer.
    """
    start = tokens if tokens.ndim == 4 else tokens.expand(image.shape[0], *tokens.shape)
    queries, keys = start, image[:, None]
    for layer in transformer.layers:
        queries, keys = _layer(layer, queries, keys, start, position)
    last = transformer.final_attn_token_to_image
    if last is None:
        return queries, keys
    key, value = _project(keys, [last.k_proj, last.v_proj])
    key = key + functional.linear(position, last.k_proj.weight)
    queries = queries + _attend(last, last.q_proj(queries + start), key, value)
    return transformer.norm_final_attn(queries), keys


def _layer(
    layer: Any, queries: Tensor, keys: Tensor, start: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """One block: tokens (B, C, T, E) and image (B, C or 1, N, E) -> both with C sets."""
    own = layer.self_attn
    if layer.skip_first_layer_pe:
        queries = _attend(own, own.q_proj(queries), own.k_proj(queries), own.v_proj(queries))
    else:
        placed = queries + start
        queries = queries + _attend(own, own.q_proj(placed), own.k_proj(placed), own.v_proj(queries))
    queries = layer.norm1(queries)

    read, write = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
    key, value, query = _project(keys, [read.k_proj, read.v_proj, write.q_proj])
    key = key + functional.linear(position, read.k_proj.weight)
    query = query + functional.linear(position, write.q_proj.weight)
    queries = layer.norm2(queries + _attend(read, read.q_proj(queries + start), key, value))
    queries = layer.norm3(queries + layer.mlp(queries))
    written = _attend(write, query, write.k_proj(queries + start), write.v_proj(queries))
    return queries, layer.norm4(keys + written)


def _project(x: Tensor, layers: list[nn.Linear]) -> tuple[Tensor, ...]:
    """Several linear layers of one input in one product."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return functional.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of projected (B, C or 1, n, I) features, and the output projection: (B, C, n, E)."""
    sets = max(query.shape[1], key.shape[1])
    parts = (
        x.expand(-1, sets, -1, -1).unflatten(-1, (attention.num_heads, -1)).transpose(2, 3)
        for x in (query, key, value)
    )
    mixed = functional.scaled_dot_product_attention(*parts)
    return attention.out_proj(mixed.transpose(2, 3).flatten(3))
