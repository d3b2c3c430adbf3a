"""SAM's image encoder for any input size: the package's modules and parameter names, lighter attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from samunet.errors import SamunetError
from samunet.networks.sam.adapters import adapter_width, add_adapters, has_adapters
from samunet.networks.sam.attention import RelativeAttention
from samunet.networks.sam.package import modeling
from samunet.networks.sam.variants import PATCH, SamVariant


class SamImageEncoder(modeling.ImageEncoderViT):
    """Vision transformer of SAM: picture (B, 3, S, S) -> embedding (B, prompt_dim, S/16, S/16).

    Its state dict has the names of `segment_anything`'s ImageEncoderViT, and at the same weights it gives the
    same result. Tables of another input size are resized when they are loaded (see `load_tables`).

    Args:
        variant: sizes of the network.
        input_size: side S in pixels, a multiple of 16; None takes the variant's default.
        checkpointing: keep only the blocks' inputs for the backward pass and compute the rest again.

    Raises:
        SamunetError: the input size is not a multiple of 16.
    """

    def __init__(
        self, variant: SamVariant, input_size: int | None = None, *, checkpointing: bool = False
    ) -> None:
        size = variant.input_size if input_size is None else input_size
        if size <= 0 or size % PATCH:
            raise SamunetError(f"input_size {size}: a SAM encoder needs a multiple of {PATCH} pixels.")
        super().__init__(
            img_size=size,
            patch_size=PATCH,
            embed_dim=variant.width,
            depth=variant.depth,
            num_heads=variant.heads,
            out_chans=variant.prompt_dim,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=variant.window,
            global_attn_indexes=variant.global_blocks,
        )
        self.variant = variant
        self.checkpointing = checkpointing
        for block in self.blocks:  # same parameters, another forward: nothing is allocated twice
            block.attn.__class__ = RelativeAttention

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.img_size // PATCH

    def forward(self, picture: Tensor) -> Tensor:
        return self.levels(picture)[-1]

    def levels(self, picture: Tensor, blocks: Sequence[int] = ()) -> tuple[Tensor, ...]:
        """Outputs of some blocks and of the neck.

        Args:
            picture: (B, 3, S, S), normalised as SAM does it.
            blocks: 0-based numbers of blocks, ascending.

        Returns:
            (B, width, S/16, S/16) for each block asked for, then the neck's (B, prompt_dim, S/16, S/16).
        """
        assert picture.shape[-2:] == (self.img_size, self.img_size), tuple(picture.shape)
        return self._run_blocks(self.patch_embed(picture) + self.pos_embed, blocks)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, S/16, S/16, width), position added -> embedding (B, prompt_dim, S/16, S/16)."""
        return self._run_blocks(tokens, ())[-1]

    def _run_blocks(self, tokens: Tensor, blocks: Sequence[int]) -> tuple[Tensor, ...]:
        kept = []
        for index, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if index in blocks:
                kept.append(tokens.permute(0, 3, 1, 2))
        return (*kept, self.neck(tokens.permute(0, 3, 1, 2)))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Torch's hook before the blocks are filled: a state with adapters brings them along."""
        hidden = adapter_width({key: v for key, v in state_dict.items() if key.startswith(prefix)})
        if hidden is not None and not has_adapters(self):
            add_adapters(self, hidden)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def load_tables(self, state: Mapping[str, Tensor]) -> None:
        """Load all weights strictly; position tables of another input size are resized to this one's.

        The absolute table is resized bicubically, the relative tables of the global blocks linearly, as the
        package's attention would resize them in every step.

        Adapters that the state has are added to the blocks.

        Args:
            state: keys as in `state_dict`, no prefix.
        """
        own = self.state_dict()
        fitted = {key: _fit(key, value, own[key]) if key in own else value for key, value in state.items()}
        self.load_state_dict(fitted)


def _fit(key: str, value: Tensor, wanted: Tensor) -> Tensor:
    if value.shape == wanted.shape:
        return value
    if key == "pos_embed":
        table = value.float().permute(0, 3, 1, 2)
        resized = functional.interpolate(table, wanted.shape[1:3], mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1)
    if ".rel_pos_" in key and value.ndim == 2:
        table = value.float().T[None]
        return functional.interpolate(table, wanted.shape[0], mode="linear", align_corners=False)[0].T
    return value
