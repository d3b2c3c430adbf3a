"""SAM's image encoder made 3D by light adapters (AutoProSAM, arXiv 2308.14936; 3DSAM-adapter, 2306.13465)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from samunet.networks.area import area_means
from samunet.networks.sam.package import modeling
from samunet.networks.sam.variants import get_variant
from samunet.networks.volume_attention import VolumeAttention, WindowLayout
from samunet.networks.volume_front import VolumeFront, check_tokens
from samunet.networks.volume_shape import level_blocks

INITIAL_STD = 0.02
"""Of position embeddings that start at random, as in SAM's own initialisation of its linear layers."""


@dataclass(frozen=True, kw_only=True)
class VolumeEncoderSettings:
    """What the encoder is built from.

    Attributes:
        variant: SAM encoder, a key of `VARIANTS`.
        patch_size: voxels (z, y, x) of the patches; z is the slice axis.
        token_size: voxels (z, y, x) that a token covers, each 1, 2 or 4.
        window: wished side of the attention windows in tokens.
        adapter_width: channels inside an adapter.
        neck_width: channels of the feature maps.
        paper_relu: the adapter ends in a ReLU and starts with the code's initialisation.
        adapters: False builds the encoder without adapters (tests, ablation).
        checkpointing: keep only the blocks' inputs for the backward pass and compute the rest again.
    """

    variant: str
    patch_size: tuple[int, int, int]
    token_size: tuple[int, int, int]
    window: int = 8
    adapter_width: int
    neck_width: int
    paper_relu: bool = False
    adapters: bool = True
    checkpointing: bool = False

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of a patch along (z, y, x)."""
        depth, height, width = (n // t for n, t in zip(self.patch_size, self.token_size))
        return depth, height, width


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a volume (B, C, D, H, W), as SAM's LayerNorm2d over those of an
    image."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        moved = x.movedim(1, -1)
        return functional.layer_norm(moved, moved.shape[-1:], self.weight, self.bias, self.eps).movedim(-1, 1)


class Adapter(nn.Module):
    """Bottleneck with a depthwise 3 x 3 x 3 convolution: tokens (B, D, H, W, E) -> what is added to them.

    The up-projection starts at zero, so that an encoder with fresh adapters is the encoder itself. The public
    code ends in a ReLU, which can only add and keeps a zero start at zero for ever; `paper_relu` restores
    that with the code's random start.
    """

    def __init__(self, width: int, inside: int, paper_relu: bool) -> None:
        super().__init__()
        self.down = nn.Linear(width, inside)
        self.mix = nn.Conv3d(inside, inside, 3, padding=1, groups=inside)
        self.up = nn.Linear(inside, width)
        self.paper_relu = paper_relu
        if not paper_relu:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        inside = functional.relu(self.down(tokens)).movedim(-1, 1)
        added = self.up(functional.relu(self.mix(inside)).movedim(1, -1))
        return functional.relu(added) if self.paper_relu else added


class VolumeBlock(nn.Module):
    """Adapter, then SAM's block with attention in (every second time shifted) cubic windows."""

    def __init__(self, settings: VolumeEncoderSettings, index: int) -> None:
        super().__init__()
        variant = get_variant(settings.variant)
        width = variant.width
        side = variant.native_grid if index in variant.global_blocks else variant.window
        self.adapter = (
            Adapter(width, settings.adapter_width, settings.paper_relu) if settings.adapters else None
        )
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = VolumeAttention(width, variant.heads, side)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = modeling.image_encoder.MLPBlock(width, 4 * width)
        self.layout = WindowLayout.of(settings.grid, settings.window, shifted=index % 2 == 0)
        self.register_buffer("regions", self.layout.regions(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.adapter is not None:
            tokens = tokens + self.adapter(tokens)
        windows = self.layout.cut(self.norm1(tokens))
        tokens = tokens + self.layout.join(self.attn(windows, self.layout.window, self.regions))
        return tokens + self.mlp(self.norm2(tokens))


class VolumeEncoder(nn.Module):
    """Colours (B, 3, Z, Y, X), normalised as SAM does it -> feature maps, each (B, neck_width, D, H, W).

    The parts that are SAM's have SAM's state-dict names (`patch_embed.proj`, `pos_embed`,
    `blocks.N.attn...`); `load_sam` fills them from the state dict of a 2D image encoder.

    Raises:
        SamunetError: the patch cannot be divided into such tokens.
    """

    def __init__(self, settings: VolumeEncoderSettings) -> None:
        super().__init__()
        check_tokens(settings.patch_size, settings.token_size)
        variant = get_variant(settings.variant)
        self.settings = settings
        self.patch_embed = VolumeFront(variant.width, settings.token_size)
        side = variant.native_grid
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, variant.width))
        self.depth_embed = nn.Parameter(torch.zeros(1, settings.grid[0], 1, 1, variant.width))
        self.blocks = nn.ModuleList(VolumeBlock(settings, index) for index in range(variant.depth))
        self.levels = level_blocks(variant.depth)
        self.necks = nn.ModuleList(_neck(variant.width, settings.neck_width) for _ in self.levels)

    def forward(self, colours: Tensor) -> tuple[Tensor, ...]:
        tokens = self.patch_embed(colours) + self.position() + self.depth_embed
        maps = []
        for index, block in enumerate(self.blocks):
            if self.settings.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if index in self.levels:
                maps.append(tokens.movedim(-1, 1))
        return tuple(neck(level) for neck, level in zip(self.necks, maps))

    def position(self) -> Tensor:
        """SAM's table on the rows and columns of the grid, (1, 1, H, W, width); averaged where it shrinks."""
        size = self.settings.grid[1:]
        table = self.pos_embed.permute(0, 3, 1, 2)
        if table.shape[2] >= size[0] and table.shape[3] >= size[1]:
            table = area_means(table, size)
        else:
            table = functional.interpolate(table, size, mode="bicubic", align_corners=False)
        return table.permute(0, 2, 3, 1)[:, None]

    def initialise(self) -> None:
        """A start for training from scratch: small random positions, so that tokens differ by place."""
        nn.init.trunc_normal_(self.pos_embed, std=INITIAL_STD)
        nn.init.trunc_normal_(self.depth_embed, std=INITIAL_STD)

    def load_sam(self, state: Mapping[str, Tensor]) -> set[str]:
        """Take over a 2D SAM encoder; the table of the slice axis becomes the mean of the others, and the
        depth embedding zero, so that the first forward pass is not shifted.

        Args:
            state: keys as in the state dict of SAM's image encoder.

        Returns:
            the keys used: all but those of the 2D neck.
        """
        used = {key for key in state if not key.startswith("neck.")}
        missing, unexpected = self.load_state_dict({key: state[key] for key in used}, strict=False)
        assert not unexpected, unexpected
        assert not set(missing) & self.sam_keys(), missing
        for block in self.blocks:
            assert isinstance(block, VolumeBlock)
            block.attn.set_depth_table()
        nn.init.zeros_(self.depth_embed)
        return used

    def sam_keys(self) -> set[str]:
        """State-dict keys that a 2D SAM encoder fills."""
        own = ("adapter.", "rel_pos_d", "necks.", "depth_embed", "patch_embed.slices")
        return {key for key in self.state_dict() if not any(part in key for part in own)}

    def freeze(self) -> None:
        """Leave trainable what AutoProSAM trains: adapters, norms, necks, slice and depth embedding,
        `rel_pos_d`."""
        shared = {name for name in self.sam_keys() if ".norm" not in name}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in shared)


def _neck(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(width, outputs, 1, bias=False),
        ChannelNorm(outputs),
        nn.Conv3d(outputs, outputs, 3, padding=1, bias=False),
        ChannelNorm(outputs),
    )
