"""`2d_desam`: SAM's decoder split into a prompt-relevant IoU module and a prompt-decoupled mask module.

DeSAM, Gao et al., arXiv 2306.00499 (MICCAI 2024). A poor prompt cannot spoil the mask, which it hardly
reaches; it only lowers the predicted IoU. At prediction a grid of points is judged, and each class takes the
masks of the best ones; no other mask is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from samunet.networks.desam_blocks import MASK_TOKENS, chosen_blocks
from samunet.networks.desam_masks import DecoupledMasks
from samunet.networks.features import Features, zeros_of
from samunet.networks.picture import SliceSettings, covered_pixels
from samunet.networks.position import grid_position, point_position
from samunet.networks.sam.package import modeling
from samunet.networks.sam.variants import SamVariant, get_variant
from samunet.networks.sam_slices import SamSliceNetwork, SliceHead
from samunet.networks.two_way import two_way

Mode = Literal["grid_points", "whole_box"]
POSITIVE, CORNERS = 1, (2, 3)
"""Rows of SAM's point embeddings: a point on the object, the two corners of a box."""
JUDGEMENT = ("iou_prediction_head", "transformer.final_attn_token_to_image", "transformer.norm_final_attn")
"""Parts that nothing but the predicted IoU depends on."""
IOU_ROWS = ("iou_prediction_head.layers.2.weight", "iou_prediction_head.layers.2.bias")
"""A row for each mask that is judged: four in SAM, here one for each class."""
ABSENT = -5.0
"""Logit of a class that no prompt is good enough for: as sure as a mask's logits, for they are averaged over
mirrorings and folds, where one that found nothing must not outvote three that did."""


@dataclass(frozen=True, kw_only=True)
class DesamSettings:
    """What the head is built from.

    Attributes:
        variant: sizes of encoder and decoder.
        outputs: foreground classes or regions K.
        background: the logits get a background channel of zeros in front (exclusive classes), so that two
            classes are the paper's single sigmoid.
        input_size: side in pixels of the encoder's square.
        mode: points of a grid, or one box around everything.
        grid_side: points along a side of the grid at prediction.
        top_prompts: masks that each class averages, weighted by predicted IoU; 1 takes the best.
        min_iou: prompts of a lower predicted IoU are left out; a class without any is absent from the slice.
            0 keeps all.
        chunk: prompts judged or decoded at once.
        context_blocks: 0-based encoder blocks of the context, shallow to deep; None takes the paper's.
        iou_head / fusion: the paper's ablation; without both no prompt takes part. Points that nobody judges
            all count alike at prediction.
    """

    variant: SamVariant
    outputs: int
    background: bool
    input_size: int
    mode: Mode = "grid_points"
    grid_side: int = 9
    top_prompts: int = 1
    min_iou: float = 0.0
    chunk: int = 9
    context_blocks: tuple[int, ...] | None = None
    iou_head: bool = True
    fusion: bool = True

    @property
    def prompted(self) -> bool:
        """Whether prompts take part at all."""
        return self.fusion or (self.iou_head and self.mode == "grid_points")


class FrozenPrompts(nn.Module):
    """Point and box embeddings of SAM's prompt encoder, under its parameter names; never trained."""

    def __init__(self, width: int, input_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.pe_layer = modeling.prompt_encoder.PositionEmbeddingRandom(width // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.no_mask_embed = nn.Embedding(1, width)
        self.requires_grad_(False)

    def points(self, points_xy: Tensor) -> Tensor:
        """Points (..., 2), input pixels x, y -> tokens (..., 2, E): the point, always positive, and SAM's
        padding."""
        placed = self._place(points_xy[..., None, :])[..., 0, :] + self._kinds()[POSITIVE]
        return torch.stack([placed, self.not_a_point_embed.weight[0].expand_as(placed)], dim=-2)

    def box(self, box_xyxy: Tensor) -> Tensor:
        """Boxes (..., 4), input pixels -> tokens (..., 2, E) of the two corners."""
        corners = self._place(box_xyxy.unflatten(-1, (2, 2)))
        return corners + self._kinds()[list(CORNERS)]

    def _kinds(self) -> Tensor:
        """(4, E): what tells points and corners apart."""
        return torch.cat(list(self.point_embeddings.parameters()))

    def _place(self, points_xy: Tensor) -> Tensor:
        return point_position(self.pe_layer, points_xy, (self.input_size, self.input_size))


class DesamHead(SliceHead):
    """DeSAM's decoder; `forward` predicts, `prompted` decodes the prompts that training draws."""

    def __init__(self, settings: DesamSettings) -> None:
        super().__init__()
        self.settings = settings
        variant, width = settings.variant, settings.variant.prompt_dim
        chosen = chosen_blocks(variant, settings.context_blocks)
        self.blocks = tuple(sorted(set(chosen)))
        self._order = [self.blocks.index(block) for block in chosen]
        self.masks = DecoupledMasks(variant.width, width, settings.outputs, fused=settings.fusion)
        self.prompts: FrozenPrompts | None = None
        if settings.prompted:
            self.prompts = FrozenPrompts(width, settings.input_size)
            decoder = modeling.MaskDecoder(
                num_multimask_outputs=MASK_TOKENS - 1,
                transformer=modeling.TwoWayTransformer(2, width, variant.decoder_heads, variant.decoder_mlp),
                transformer_dim=width,
            )
            self.transformer = decoder.transformer
            self.iou_token, self.mask_tokens = decoder.iou_token, decoder.mask_tokens
            self.iou_prediction_head = decoder.iou_prediction_head
            last = self.iou_prediction_head.layers[-1]
            self.iou_prediction_head.layers[-1] = nn.Linear(last.in_features, settings.outputs)
            if not self.judged:
                for part in JUDGEMENT:
                    owner, _, name = part.rpartition(".")
                    setattr(self.get_submodule(owner), name, None)

    @property
    def pointed(self) -> bool:
        """Whether training draws points."""
        return self.prompts is not None and self.settings.mode == "grid_points"

    @property
    def judged(self) -> bool:
        """Whether a predicted IoU tells good prompts from bad ones."""
        return self.settings.iou_head and self.settings.mode == "grid_points"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A judgement that was not learnt (whole box, no IoU head) and judged masks beyond the classes may be
        in a checkpoint; they are passed over."""
        for key in (f"{prefix}{name}" for name in IOU_ROWS):
            if key in state_dict and len(state_dict[key]) == MASK_TOKENS:
                state_dict[key] = state_dict[key][: self.settings.outputs]
        if not self.judged:
            unlearnt = tuple(f"{prefix}{part}." for part in JUDGEMENT)
            for key in [key for key in state_dict if key.startswith(unlearnt)]:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def context(self, features: Features) -> tuple[Tensor, Tensor, Tensor]:
        """The prompt-independent part, once a slice."""
        return self.masks.context([features.levels[index] for index in self._order])

    def prompted(
        self, context: tuple[Tensor, Tensor, Tensor], features: Features, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Decode P prompts on each of B slices.

        Args:
            context: of the slices.
            features: of the slices; the neck's map is the last level.
            tokens: (P, T, E) for all slices alike, or (B, P, T, E); None without prompts.

        Returns:
            logits (B, P, K, 4h, 4w), and predicted IoU (B, P, K) or None.
        """
        if tokens is None:
            return self.masks(context, None)[:, None], None
        iou, keys = self._relevant(features, tokens)
        height, width = features.levels[-1].shape[-2:]
        embedding: Tensor | None = None
        if self.settings.fusion:
            embedding = keys.transpose(2, 3).unflatten(3, (height, width))
        logits = self.masks(context, embedding).unflatten(0, (keys.shape[0], -1))
        return logits.expand(-1, keys.shape[1], -1, -1, -1), iou

    def _relevant(self, features: Features, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        """The prompt-relevant module: IoU (B, P, K) if it is judged, image stream (B, P, h * w, E)."""
        assert self.prompts is not None
        neck = features.levels[-1]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        queries = torch.cat([zeros_of(tokens[..., :1, :]) + own, tokens], dim=-2)
        image = (neck + self.prompts.no_mask_embed.weight[:, :, None, None]).flatten(2).transpose(1, 2)
        position = grid_position(self.prompts.pe_layer, neck.shape[-2:]).to(image.dtype)
        queries, keys = two_way(self.transformer, image, position, queries)
        if not self.judged:
            return None, keys
        return self.iou_prediction_head(queries[:, :, 0]), keys

    def judge(self, features: Features, tokens: Tensor) -> Tensor:
        """Predicted IoU (B, P, K) of prompts (P, T, E), without decoding their masks."""
        parts = (self._relevant(features, part)[0] for part in tokens.split(self.settings.chunk))
        return torch.cat([part for part in parts if part is not None], dim=1)

    def forward(self, features: Features) -> Tensor:
        context = self.context(features)
        fused, asks_presence = self.settings.fusion, self.judged and self.settings.min_iou > 0
        if not fused and not asks_presence:  # no prompt reaches the masks
            return self.with_background(self.masks(context, None))
        if self.settings.mode == "whole_box":
            return self.with_background(self.prompted(context, features, self._box_tokens())[0][:, 0])
        assert self.prompts is not None
        tokens = self.prompts.points(self.grid_xy(features))
        if not self.judged:
            return self.with_background(self._mean_mask(context, features, tokens))
        weights = self.prompt_weights(self.judge(features, tokens))
        if fused:
            logits = self._weighted_masks(context, features, tokens, weights)
        else:
            logits = self.masks(context, None)
        return self.with_background(torch.where(weights.sum(1)[..., None, None] > 0, logits, ABSENT))

    def prompt_weights(self, iou: Tensor) -> Tensor:
        """Share of each prompt in each class's mask.

        Args:
            iou: predicted, (B, P, K).

        Returns:
            (B, P, K): predicted IoU over its sum for the best prompts of a class, 0 for the others. All are 0
            for a class whose best prompt is not good enough.
        """
        best, chosen = iou.float().topk(min(self.settings.top_prompts, iou.shape[1]), dim=1)
        weights = best.clamp_min(1e-6)
        if self.settings.min_iou > 0:
            weights = weights * (best > self.settings.min_iou)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-6)
        return zeros_of(iou.to(weights.dtype)).scatter(1, chosen, weights)

    def _weighted_masks(
        self, context: tuple[Tensor, Tensor, Tensor], features: Features, tokens: Tensor, weights: Tensor
    ) -> Tensor:
        """Sum over prompts of weight times logits, (B, K, 4h, 4w); only masks that some class uses are
        decoded."""
        outputs, number = weights.shape[2], min(self.settings.top_prompts, len(tokens))
        total: Tensor | None = None
        if number * outputs >= len(tokens):  # all of them are fewer
            places = torch.arange(len(tokens), device=tokens.device).expand(weights.shape[0], -1)
            shares = weights
        else:  # the best prompts of every class, next to each other
            places = weights.topk(number, dim=1).indices.flatten(1)
            # No torch.eye: ONNX runtimes have none for truth values.
            classes = torch.arange(outputs, device=weights.device)
            own = (classes == classes[:, None]).repeat(number, 1)
            shares = weights.gather(1, places[..., None].expand(-1, -1, outputs)) * own
        for first in range(0, int(places.shape[1]), self.settings.chunk):
            part = slice(first, first + self.settings.chunk)
            share = shares[:, part]
            logits, _ = self.prompted(context, features, tokens[places[:, part]])
            summed = (logits * share[..., None, None].to(logits.dtype)).sum(1)
            total = summed if total is None else total + summed
        assert total is not None
        return total

    def _mean_mask(
        self, context: tuple[Tensor, Tensor, Tensor], features: Features, tokens: Tensor
    ) -> Tensor:
        """Mean over all prompts of the logits, (B, K, 4h, 4w): where nobody judges points none is better."""
        parts = tokens.split(self.settings.chunk)
        sums = [self.prompted(context, features, part)[0].sum(1) for part in parts]
        return torch.stack(sums).sum(0) / len(tokens)

    def with_background(self, logits: Tensor) -> Tensor:
        """A channel of zeros in front of (B, K, ...) logits, where there is a background class."""
        if not self.settings.background:
            return logits
        return torch.cat([zeros_of(logits[:, :1]), logits], dim=1)

    def grid_xy(self, features: Features) -> Tensor:
        """Points (grid_side ** 2, 2), input pixels: in the middle of equal cells of what the slices fill of
        the square, as the points of training do. Where a slice was padded to the planned size before, they
        may lie on that padding."""
        side, size = self.settings.grid_side, self.settings.input_size
        filled = covered_pixels([int(n) for n in features.output_size], size)
        places = torch.arange(side, device=features.levels[-1].device) + 0.5
        rows, columns = torch.meshgrid(*(places * n / side - 0.5 for n in filled), indexing="ij")
        return torch.stack([columns, rows], dim=-1).reshape(-1, 2)

    def _box_tokens(self) -> Tensor:
        """Tokens (1, 2, E) of one box around the whole square."""
        assert self.prompts is not None
        size = float(self.settings.input_size)
        box = torch.tensor([[0.0, 0.0, size, size]], device=self.iou_token.weight.device)
        return self.prompts.box(box)

    def training_tokens(self, points_xy: Tensor | None) -> Tensor | None:
        """Tokens (B, 1, 2, E) of one point a slice, (1, 2, E) of the box, or None without prompts."""
        if self.prompts is None:
            return None
        if points_xy is None:
            return self._box_tokens()
        return self.prompts.points(points_xy[:, None])

    def load_decoder(self, prompt_encoder: dict[str, Tensor], mask_decoder: dict[str, Tensor]) -> set[str]:
        """Start the prompt-relevant module and the prompt embeddings from SAM's."""
        if self.prompts is None:
            return set()
        offered = {f"prompts.{key}": (f"prompt_encoder.{key}", v) for key, v in prompt_encoder.items()}
        offered |= {key: (f"mask_decoder.{key}", v) for key, v in mask_decoder.items()}
        own = self.state_dict()
        taken = {k: (name, v) for k, (name, v) in offered.items() if k in own and own[k].shape == v.shape}
        start = {key: value for key, (_, value) in taken.items()}
        for key in IOU_ROWS:
            if key in own and key in offered:
                name, rows = offered[key]
                taken[key] = (name, rows)
                start[key] = torch.cat([rows.to(own[key]), own[key][len(rows) :]])[: len(own[key])]
        self.load_state_dict(start, strict=False)
        return {name for name, _ in taken.values()}


def build_desam(settings: SliceSettings, head: DesamSettings) -> SamSliceNetwork:
    """`2d_desam`: (B, C, H, W) -> (B, K, H, W)."""
    assert head.variant == get_variant(settings.variant)
    return SamSliceNetwork(settings, DesamHead(head))
