"""Which parameters AdamW decays: kernels and projections, never embeddings, norms or biases."""

from __future__ import annotations

import torch
from torch import nn

from samunet.networks.sam.weights import expected_shapes
from samunet.trainers.base import decayed_apart

SAM_EMBEDDINGS = {
    "image_encoder.pos_embed",
    *(f"image_encoder.blocks.{block}.attn.rel_pos_{axis}" for block in range(7) for axis in "hw"),
    *(f"prompt_encoder.point_embeddings.{kind}.weight" for kind in range(4)),
    "prompt_encoder.not_a_point_embed.weight",
    "prompt_encoder.no_mask_embed.weight",
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",  # a buffer, in no optimizer
    "mask_decoder.iou_token.weight",
    "mask_decoder.mask_tokens.weight",
}


def spared(shapes: dict[str, tuple[int, ...]]) -> set[str]:
    named = [(name, nn.Parameter(torch.empty(shape))) for name, shape in shapes.items()]
    groups = decayed_apart(named)
    chosen = {id(p) for group in groups if group.get("weight_decay") == 0.0 for p in group["params"]}
    return {name for name, parameter in named if id(parameter) in chosen}


def test_sams_cross_attentions_are_decayed_and_its_embeddings_are_not() -> None:
    shapes = expected_shapes("vit_tiny")
    matrices = {name for name, shape in shapes.items() if len(shape) > 1}
    assert spared(shapes) & matrices == SAM_EMBEDDINGS
    assert spared(shapes) >= set(shapes) - matrices
    kernels = {name for name in matrices if "cross_attn_token_to_image" in name or "patch_embed" in name}
    assert len(kernels) == 2 * 4 + 1
    assert not kernels & spared(shapes)


def test_embeddings_of_other_networks_are_spared_too() -> None:
    shapes = {
        "encoder.depth_embed": (1, 4, 1, 1, 8),
        "encoder.blocks.0.attn.rel_pos_d": (7, 8),
        "mask_token": (1, 8),
        "swin.layers1.0.blocks.0.attn.relative_position_bias_table": (169, 3),
        "iou_tokens.weight": (3, 8),
    }
    kernels = {
        "encoder.patch_embed.slices": (8, 16),
        "tokenizer.weight": (8, 8),
        "positions.proj.weight": (8, 8),
    }
    assert spared(shapes | kernels) == set(shapes)
