"""SAM's self-attention with decomposed relative positions, without the attention matrix where that pays.

The bias of a query at (i, j) and a key at (k, l) is q.R_h[i - k] + q.R_w[j - l]. Two exact ways to have it:

- `masked`: the bias is handed to `scaled_dot_product_attention` as its mask (N x N per head). Best on CPUs.
- `widened`: queries carry their products with all rows and columns as further features, keys a one-hot row
  and column. Their inner product is the bias, no N x N tensor exists, fused kernels serve. Best on CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from samunet.networks.sam.package import import_modeling
from samunet.networks.sam.variants import KERNEL_WIDTH

import_modeling()
from segment_anything.modeling.image_encoder import Attention, get_rel_pos  # noqa: E402


class RelativeAttention(Attention):
    """Drop-in for the package's Attention: same parameters, same result, tokens (B, H, W, E) in and out."""

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        attend = _widened if x.is_cuda else _masked
        rows, columns = self._bias(query, height, width)
        out = attend(query, key, value, rows, columns)
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, -1))

    def _bias(self, query: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Bias by key row (B, heads, N, H) and by key column (B, heads, N, W)."""
        table_h = get_rel_pos(height, height, self.rel_pos_h).to(query.dtype)
        table_w = get_rel_pos(width, width, self.rel_pos_w).to(query.dtype)
        grid = query.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, table_h)
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, table_w)
        return rows.flatten(2, 3), columns.flatten(2, 3)


def _masked(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    bias = (rows[..., :, None] + columns[..., None, :]).flatten(3)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _widened(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    height, width, features = rows.shape[-1], columns.shape[-1], query.shape[-1]
    scale = features**-0.5
    total = features + height + width
    spare = -total % KERNEL_WIDTH
    tokens = torch.arange(height * width, device=query.device)
    places = torch.cat(
        [functional.one_hot(tokens // width, height), functional.one_hot(tokens % width, width)], dim=1
    ).to(key.dtype)
    places = places.expand(*key.shape[:2], -1, -1)
    wide_query = torch.cat([query, rows / scale, columns / scale], dim=-1)
    wide_key = torch.cat([key, places], dim=-1)
    out = functional.scaled_dot_product_attention(
        functional.pad(wide_query, (0, spare)),
        functional.pad(wide_key, (0, spare)),
        functional.pad(value, (0, total + spare - features)),
        scale=scale,
    )
    return out[..., :features]
