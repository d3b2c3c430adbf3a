"""`2d_autosam`: SAM's mask decoder without prompts, a set of tokens per class (AutoSAM, arXiv 2306.13731).

For every class the embedding is decoded on its own: its tokens [IoU, mask] and a copy of the embedding pass
through SAM's two-way transformer; the mask token becomes the weights of a classifier on the upscaled copy.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samunet.errors import SamunetError
from samunet.networks.detail import DetailPyramid, wants_image_skip
from samunet.networks.features import Features
from samunet.networks.mask_upscaling import upscaled_masks
from samunet.networks.picture import SliceSettings
from samunet.networks.position import grid_position
from samunet.networks.sam.package import modeling
from samunet.networks.sam.variants import STRIDE, SamVariant, get_variant
from samunet.networks.sam_slices import SamSliceNetwork, SliceHead
from samunet.networks.two_way import two_way

logger = logging.getLogger(__name__)

TOKEN_NOISE = 0.02
"""Deviation of the noise that tells the classes' tokens apart at the start."""


@dataclass(frozen=True, kw_only=True)
class AutoSamHeadSettings:
    """What the head is built from.

    Attributes:
        variant: sizes of the decoder.
        outputs: classes K, background included.
        width: width of transformer and tokens; other than the embedding's, a 1x1 projection stands between.
        class_chunk: classes decoded at once; None all.
        image_skip: add maps computed from the picture while upscaling, as SAM 2 adds its early features.
        paper_compat: as the public code: random positional matrix, no no-mask embedding, two mask tokens a
            class of which one is used, frozen random IoU tokens and IoU head.
    """

    variant: SamVariant
    outputs: int
    width: int
    class_chunk: int | None = None
    image_skip: bool = False
    paper_compat: bool = False


class AutoSamHead(SliceHead):
    """SAM's decoder per class; logits (B, K, S/4, S/4). What is SAM's keeps SAM's parameter names."""

    def __init__(self, settings: AutoSamHeadSettings) -> None:
        super().__init__()
        self.settings = settings
        variant, width = settings.variant, settings.width
        step = 2 * variant.decoder_heads
        if width % step:
            raise SamunetError(
                f"head_width {width}: the heads of SAM's attention need a multiple of {step}, such as "
                f"--set head_width={max(1, round(width / step)) * step}."
            )
        self.project = (
            nn.Identity() if width == variant.prompt_dim else nn.Conv2d(variant.prompt_dim, width, 1)
        )
        self.pe_layer = modeling.prompt_encoder.PositionEmbeddingRandom(width // 2)
        decoder = modeling.MaskDecoder(
            num_multimask_outputs=1,
            transformer=modeling.TwoWayTransformer(2, width, variant.decoder_heads, variant.decoder_mlp),
            transformer_dim=width,
        )
        self.transformer = decoder.transformer
        self.output_upscaling = decoder.output_upscaling
        self.iou_tokens = nn.Embedding(settings.outputs, width)
        self.masks_per_class = 2 if settings.paper_compat else 1
        self.mask_tokens = nn.Embedding(self.masks_per_class * settings.outputs, width)
        self.output_hypernetworks_mlps = decoder.output_hypernetworks_mlps[: self.masks_per_class]
        self.iou_prediction_head: nn.Module | None = None
        self.no_mask_embed: nn.Embedding | None = None
        if settings.paper_compat:
            self.iou_prediction_head = decoder.iou_prediction_head.requires_grad_(False)
            self.iou_tokens.requires_grad_(False)
        else:
            self.no_mask_embed = nn.Embedding(1, width)
        self.uses_image = settings.image_skip
        if settings.image_skip:
            self.detail = DetailPyramid((width // 8, width // 4), STRIDE)
            self.to_quarter = nn.Conv2d(width // 4, width // 4, 1)
            self.to_eighth = nn.Conv2d(width // 8, width // 8, 1)

    def forward(self, features: Features) -> Tensor:
        embedding = self.project(features.levels[-1])
        if self.no_mask_embed is not None:
            embedding = embedding + self.no_mask_embed.weight[:, :, None, None]
        position = grid_position(self.pe_layer, embedding.shape[-2:]).to(embedding.dtype)
        details = self._details(features.image)
        outputs = self.settings.outputs
        step = self.settings.class_chunk or outputs
        chunks = [range(k, min(k + step, outputs)) for k in range(0, outputs, step)]
        parts = [self._decode_apart(embedding, position, details, chunk) for chunk in chunks]
        return torch.cat(parts, dim=1)

    def _decode_apart(
        self, embedding: Tensor, position: Tensor, details: list[Tensor], classes: range
    ) -> Tensor:
        """Logits of a chunk; its activations are computed again in the backward pass, one chunk at a time."""
        if len(classes) == self.settings.outputs or not torch.is_grad_enabled():
            return self._decode(embedding, position, details, classes)
        return checkpoint(self._decode, embedding, position, details, classes, use_reentrant=False)

    def _details(self, image: Tensor | None) -> list[Tensor]:
        """Maps to add while upscaling, finest first; none without an image skip."""
        if not self.uses_image:
            return []
        fine, coarse = self.detail(image)
        return [self.to_eighth(fine), self.to_quarter(coarse)]

    def _decode(self, embedding: Tensor, position: Tensor, details: list[Tensor], classes: range) -> Tensor:
        """Logits of some classes: embedding (B, E, h, w), position (h w, E) -> (B, classes, 4h, 4w)."""
        height, width = embedding.shape[-2:]
        image = embedding.flatten(2).transpose(1, 2)
        queries, keys = two_way(self.transformer, image, position, self._tokens(classes))
        # Only the first mask is used; the public code computes a second one and drops it.
        weights = self.output_hypernetworks_mlps[0](queries[:, :, 1])
        return upscaled_masks(self.output_upscaling, keys, weights, (height, width), details)

    def _tokens(self, classes: range) -> Tensor:
        """Tokens (classes, 1 + masks per class, E) of some classes."""
        chosen = slice(classes.start, classes.stop)
        masks = self.mask_tokens.weight.unflatten(0, (-1, self.masks_per_class))
        return torch.cat([self.iou_tokens.weight[chosen, None], masks[chosen]], dim=1)

    def load_decoder(self, prompt_encoder: dict[str, Tensor], mask_decoder: dict[str, Tensor]) -> set[str]:
        """Start from SAM's decoder; class tokens start as SAM's, told apart by a little noise.

        With `paper_compat` only what the public code loads: transformer, upscaling, two hypernetworks.
        """
        if self.settings.width != self.settings.variant.prompt_dim:
            logger.warning("head_width %d is not SAM's: its mask decoder is not loaded.", self.settings.width)
            return set()
        copied: dict[str, str] = {}
        for name in self.state_dict():
            part = name.partition(".")[0]
            if part in ("transformer", "output_upscaling", "output_hypernetworks_mlps"):
                copied[name] = f"mask_decoder.{name}"
            elif part in ("pe_layer", "no_mask_embed") and not self.settings.paper_compat:
                copied[name] = f"prompt_encoder.{name}"
        source = {f"prompt_encoder.{k}": v for k, v in prompt_encoder.items()}
        source |= {f"mask_decoder.{k}": v for k, v in mask_decoder.items()}
        faults = self.load_state_dict({own: source[key] for own, key in copied.items()}, strict=False)
        assert not faults.unexpected_keys
        if self.settings.paper_compat:
            return set(copied.values())
        with torch.no_grad():
            for table, token in ((self.iou_tokens, "iou_token"), (self.mask_tokens, "mask_tokens")):
                table.weight.copy_(source[f"mask_decoder.{token}.weight"][:1].expand_as(table.weight))
                table.weight.add_(TOKEN_NOISE * torch.randn_like(table.weight))
        return {*copied.values(), "mask_decoder.iou_token.weight", "mask_decoder.mask_tokens.weight"}


def build_autosam(
    settings: SliceSettings,
    head_width: int | None = None,
    *,
    class_chunk: int | None = None,
    image_skip: bool | None = None,
) -> SamSliceNetwork:
    """`2d_autosam`: (B, C, H, W) -> (B, K, H, W).

    Args:
        settings: everything but the head.
        head_width: width of the transformer; None takes the embedding's (256 for the official encoders).
        class_chunk: classes decoded at once, which bounds the memory, in training for a second forward pass;
            None all together.
        image_skip: add maps computed from the picture; None does so where the encoder is small and trained.
    """
    variant = get_variant(settings.variant)
    head = AutoSamHead(
        AutoSamHeadSettings(
            variant=variant,
            outputs=settings.num_outputs,
            width=variant.prompt_dim if head_width is None else head_width,
            class_chunk=class_chunk,
            image_skip=wants_image_skip(settings) if image_skip is None else image_skip,
            paper_compat=settings.paper_compat,
        )
    )
    return SamSliceNetwork(settings, head)
