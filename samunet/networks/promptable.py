"""SAM with prompts in batches: several objects of several pictures at once, points and boxes mixed.

The package's modules take one picture and one kind of prompt a call. Here every object has a row of prompt
tokens of the same length; what a token is, is said by a label. Parts and parameter names are the package's,
so that the state dict is a SAM file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samunet.networks.mask_upscaling import upscaled_masks
from samunet.networks.position import grid_position, point_position
from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.variants import PIXEL_MEAN, PIXEL_STD, SamVariant
from samunet.networks.sam.weights import build_parts
from samunet.networks.two_way import two_way

PADDING, NEGATIVE, POSITIVE, FIRST_CORNER, LAST_CORNER = -1, 0, 1, 2, 3
"""Labels of prompt tokens. SAM writes a single point as the point and one padding, a box as two corners."""
ONE, THREE, ALL = slice(0, 1), slice(1, 4), slice(0, 4)
"""Mask tokens: the one for prompts that are clear (SAM's `multimask_output=False`), the three for one that
may mean several objects, and all of them."""


@dataclass(frozen=True)
class Prompts:
    """Prompt tokens of B x K objects.

    Attributes:
        points_xy: (B, K, T, 2) float32, pixels of the encoder's input, x first; ignored for padding.
        labels: (B, K, T) integers: PADDING, NEGATIVE, POSITIVE, FIRST_CORNER or LAST_CORNER.
        masks: (B, K, 4g, 4g) logits of an earlier answer, or None.
    """

    points_xy: Tensor
    labels: Tensor
    masks: Tensor | None = None


class PromptableSam(nn.Module):
    """The three parts of a SAM at its native input size, or another one.

    Args:
        variant: sizes.
        input_size: side in pixels of the pictures; None takes the native one.
    """

    image_encoder: SamImageEncoder
    prompt_encoder: Any  # these two are the package's, which has no types
    mask_decoder: Any

    def __init__(self, variant: SamVariant, input_size: int | None = None) -> None:
        super().__init__()
        parts = build_parts(variant, input_size)
        self.variant = variant
        self.image_encoder = parts["image_encoder"]
        self.prompt_encoder = parts["prompt_encoder"]
        self.mask_decoder = parts["mask_decoder"]

    def embed(self, picture: Tensor) -> Tensor:
        """Pictures (B, 3, S, S), normalised -> embedding (B, E, g, g)."""
        return self.image_encoder(picture)

    def forward(self, embedding: Tensor, prompts: Prompts, wanted: slice) -> tuple[Tensor, Tensor]:
        """Masks of the prompted objects.

        Args:
            embedding: (B, E, g, g).
            prompts: of B x K objects.
            wanted: ONE, THREE or ALL mask tokens.

        Returns:
            logits (B, K, M, 4g, 4g) and predicted IoU (B, K, M); M is 1, 3 or 4.
        """
        batch, objects = prompts.labels.shape[:2]
        decoder, grid = self.mask_decoder, (embedding.shape[-2], embedding.shape[-1])
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        sparse = self._tokens(prompts)
        tokens = torch.cat([own.expand(batch, objects, -1, -1), sparse.to(own.dtype)], dim=2)
        position = grid_position(self.prompt_encoder.pe_layer, grid).to(embedding.dtype)
        image = embedding.flatten(2).transpose(1, 2)
        if prompts.masks is None:
            image = image + self.prompt_encoder.no_mask_embed.weight
        else:  # each object has an image of its own from here on
            dense = self.prompt_encoder.mask_downscaling(prompts.masks.flatten(0, 1)[:, None])
            image = image.repeat_interleave(objects, 0) + dense.flatten(2).transpose(1, 2)
            tokens = tokens.flatten(0, 1)[:, None]
        tokens, image = two_way(decoder.transformer, image, position, tokens)
        tokens, image = (x.reshape(batch, objects, *x.shape[2:]) for x in (tokens, image))
        iou = decoder.iou_prediction_head(tokens[:, :, 0])[..., wanted]
        return self._masks(tokens[:, :, 1:], image, wanted, grid), iou

    def _masks(self, tokens: Tensor, image: Tensor, wanted: slice, grid: tuple[int, int]) -> Tensor:
        chosen = range(self.mask_decoder.num_mask_tokens)[wanted]
        weights = [self.mask_decoder.output_hypernetworks_mlps[i](tokens[:, :, i]) for i in chosen]
        # One upscaled image of an object serves all its masks; the products with it are cheap.
        upscaling = self.mask_decoder.output_upscaling
        return upscaled_masks(upscaling, image, torch.stack(weights, dim=2), grid, [])

    def _tokens(self, prompts: Prompts) -> Tensor:
        """Embeddings (B, K, T, E) of the prompt tokens, as the package's prompt encoder makes them."""
        encoder, labels = self.prompt_encoder, prompts.labels
        placed = point_position(encoder.pe_layer, prompts.points_xy, encoder.input_image_size)
        table = torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embeddings)])
        known = (labels != PADDING).unsqueeze(-1)
        return placed * known + table[labels + 1]


def normalised(pictures: Tensor) -> Tensor:
    """Pictures uint8 (B, 3, S, S), red, green, blue -> as SAM's encoder expects them, float32."""
    mean = torch.tensor(PIXEL_MEAN, device=pictures.device).view(3, 1, 1)
    std = torch.tensor(PIXEL_STD, device=pictures.device).view(3, 1, 1)
    return (pictures.float() - mean) / std
