"""Attention in cubic windows with decomposed relative positions on three axes (AutoProSAM's encoder).

SAM's tables serve the rows and columns of a slice; a table of their mean, which is trained, serves the slice
axis. The bias of each axis and the mask between regions of a shifted window are carried by further features
of queries and keys, so that the fused kernels serve and no tokens x tokens tensor exists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from samunet.networks.sam.package import import_modeling
from samunet.networks.sam.variants import KERNEL_WIDTH

import_modeling()
from segment_anything.modeling.image_encoder import Attention, get_rel_pos  # noqa: E402

MASKED = 100.0
"""Taken off the scores between tokens that do not belong together, as in Swin."""


@dataclass(frozen=True, kw_only=True)
class WindowLayout:
    """Windows over a token grid, axes (z, y, x).

    Attributes:
        grid: tokens along each axis.
        window: tokens of a window along each axis: the smallest size that needs no more windows than the
            wished one, so that little or nothing is padded.
        shift: tokens by which the grid is rolled before it is cut; 0 along an axis of one window.
    """

    grid: tuple[int, int, int]
    window: tuple[int, int, int]
    shift: tuple[int, int, int]

    @classmethod
    def of(cls, grid: Sequence[int], wished: int, *, shifted: bool) -> WindowLayout:
        """The layout for a grid and the wished side of a window."""
        counts = [math.ceil(n / wished) for n in grid]
        window = [math.ceil(n / count) for n, count in zip(grid, counts)]
        shift = [size // 2 if shifted and count > 1 else 0 for size, count in zip(window, counts)]
        return cls(grid=_three(grid), window=_three(window), shift=_three(shift))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Windows along each axis."""
        return _three([math.ceil(n / size) for n, size in zip(self.grid, self.window)])

    @property
    def padded(self) -> tuple[int, int, int]:
        """Tokens along each axis after padding to whole windows."""
        return _three([count * size for count, size in zip(self.counts, self.window)])

    def cut(self, tokens: Tensor) -> Tensor:
        """Tokens (B, D, H, W, E) -> windows (B * windows, tokens of a window, E); padded with zeros."""
        missing = [whole - n for whole, n in zip(self.padded, self.grid)]
        if any(missing):
            tokens = functional.pad(tokens, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
        if any(self.shift):
            tokens = tokens.roll([-s for s in self.shift], (1, 2, 3))
        (a, b, c), (p, q, r) = self.counts, self.window
        parts = tokens.reshape(len(tokens), a, p, b, q, c, r, tokens.shape[-1])
        return parts.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, p * q * r, tokens.shape[-1])

    def join(self, windows: Tensor) -> Tensor:
        """Windows as `cut` returns them -> tokens (B, D, H, W, E)."""
        (a, b, c), (p, q, r) = self.counts, self.window
        parts = windows.reshape(-1, a, b, c, p, q, r, windows.shape[-1]).permute(0, 1, 4, 2, 5, 3, 6, 7)
        tokens = parts.reshape(-1, *self.padded, windows.shape[-1])
        if any(self.shift):
            tokens = tokens.roll(self.shift, (1, 2, 3))
        depth, height, width = self.grid
        return tokens[:, :depth, :height, :width]

    def regions(self) -> Tensor | None:
        """One-hot regions (windows, tokens of a window, R) of each axis side by side; None without any.

        Along an axis tokens belong together that were neighbours before the roll; padding is a region apart.
        """
        features = []
        for axis in range(3):
            numbers = self._region_of(axis)
            count = max(numbers) + 1
            if count > 1:
                shape = [1, 1, 1, count]
                shape[axis] = self.padded[axis]
                one_hot = functional.one_hot(torch.tensor(numbers), count).float().reshape(shape)
                features.append(one_hot.expand(*self.padded, count))
        if not features:
            return None
        unshifted = WindowLayout(grid=self.padded, window=self.window, shift=(0, 0, 0))
        return unshifted.cut(torch.cat(features, dim=-1)[None])

    def _region_of(self, axis: int) -> list[int]:
        """Number of the region of every token along an axis, in the rolled order."""
        size, whole, shift = self.grid[axis], self.padded[axis], self.shift[axis]
        padding = 2 if shift else 1
        rolled = [(place + shift) % whole for place in range(whole)]
        return [padding if place >= size else int(place < shift) for place in rolled]


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    first, second, third = values
    return first, second, third


class VolumeAttention(Attention):
    """SAM's Attention (same parameters and names) on windows of volume tokens, with `rel_pos_d` for slices.

    forward: windows (N, tokens, E), their (z, y, x) size, and regions as from `WindowLayout.regions` or None
    -> the same shape.
    """

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__(width, num_heads=heads, qkv_bias=True, use_rel_pos=True, input_size=(side, side))
        self.rel_pos_d = nn.Parameter(torch.zeros_like(self.rel_pos_h))

    def set_depth_table(self) -> None:
        """Start the table of the slice axis as the mean of those of rows and columns."""
        with torch.no_grad():
            self.rel_pos_d.copy_((self.rel_pos_h + self.rel_pos_w) / 2)

    def forward(self, windows: Tensor, size: tuple[int, int, int], regions: Tensor | None) -> Tensor:
        count, tokens, _ = windows.shape
        qkv = self.qkv(windows).reshape(count, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        features = query.shape[-1]
        queries, keys = [query], [key]
        for axis, table in enumerate((self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)):
            queries.append(_axis_bias(query, table, size, axis) / self.scale)
            keys.append(_places(size, axis, key).expand(count, self.num_heads, -1, -1))
        if regions is not None:
            own = regions.to(key).repeat(count // len(regions), 1, 1)[:, None]
            own = own.expand(-1, self.num_heads, -1, -1)
            queries.append((own - 1) * (MASKED / self.scale))
            keys.append(own)
        wide_query, wide_key = torch.cat(queries, dim=-1), torch.cat(keys, dim=-1)
        spare = -wide_query.shape[-1] % KERNEL_WIDTH
        out = functional.scaled_dot_product_attention(
            functional.pad(wide_query, (0, spare)),
            functional.pad(wide_key, (0, spare)),
            functional.pad(value, (0, wide_query.shape[-1] + spare - features)),
            scale=self.scale,
        )
        return self.proj(out[..., :features].transpose(1, 2).reshape(count, tokens, -1))


def _axis_bias(query: Tensor, table: Tensor, size: tuple[int, int, int], axis: int) -> Tensor:
    """Products (N, heads, tokens, side) of each query with the table at its distance to every place of an
    axis."""
    relative = get_rel_pos(size[axis], size[axis], table).to(query.dtype)
    grid = query.unflatten(2, size)
    letter = "zyx"[axis]
    return torch.einsum(f"nhzyxc,{letter}kc->nhzyxk", grid, relative).flatten(2, 4)


def _places(size: tuple[int, int, int], axis: int, like: Tensor) -> Tensor:
    """One-hot place (tokens, side) of each token of a window along an axis."""
    place = torch.arange(size[axis], device=like.device)
    shape = [1, 1, 1]
    shape[axis] = size[axis]
    return functional.one_hot(place.reshape(shape).expand(size).reshape(-1), size[axis]).to(like.dtype)
