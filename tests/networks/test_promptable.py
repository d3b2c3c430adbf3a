"""Prompts in batches give what the package gives one by one; hidden patches are the only ones that count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samunet.networks.masked import MaskedPixels, hidden_patches, patch_targets
from samunet.networks.promptable import ONE, PADDING, THREE, PromptableSam, Prompts, normalised
from samunet.networks.promptable_start import sine_positions, start_from_nothing
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weights import expected_shapes

MICRO = get_variant("vit_micro")


@pytest.fixture(scope="module")
def sam() -> PromptableSam:
    torch.manual_seed(0)
    return PromptableSam(MICRO).eval()


@pytest.fixture(scope="module")
def embedding(sam: PromptableSam) -> Tensor:
    torch.manual_seed(1)
    return sam.embed(torch.randn(2, 3, 64, 64)).detach()


def of_the_package(sam: PromptableSam, embedding: Tensor, ambiguous: bool, **prompt: Tensor) -> list[Tensor]:
    points = (prompt["points"][None], prompt["labels"][None]) if "points" in prompt else None
    boxes = prompt["box"][None] if "box" in prompt else None
    masks = prompt["mask"][None, None] if "mask" in prompt else None
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
    return sam.mask_decoder(
        image_embeddings=embedding[None],
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=ambiguous,
    )


@torch.no_grad()
@pytest.mark.parametrize("ambiguous", [True, False])
def test_points_and_boxes_in_one_batch_equal_the_package(
    sam: PromptableSam, embedding: Tensor, ambiguous: bool
) -> None:
    point, box = torch.tensor([10.0, 50.0]), torch.tensor([5.0, 8.0, 40.0, 60.0])
    points = torch.stack([torch.stack([point, point]), box.view(2, 2)])
    labels = torch.tensor([[1, PADDING], [2, 3]])
    prompts = Prompts(points.expand(2, -1, -1, -1), labels.expand(2, -1, -1))
    logits, iou = sam(embedding, prompts, THREE if ambiguous else ONE)
    for index in range(2):
        by_point = of_the_package(
            sam, embedding[index], ambiguous, points=point[None], labels=torch.tensor([1])
        )
        by_box = of_the_package(sam, embedding[index], ambiguous, box=box)
        for number, (masks, quality) in enumerate((by_point, by_box)):
            assert torch.allclose(logits[index, number], masks[0], atol=1e-5)
            assert torch.allclose(iou[index, number], quality[0], atol=1e-5)


@torch.no_grad()
def test_clicks_with_an_earlier_mask_equal_the_package(sam: PromptableSam, embedding: Tensor) -> None:
    points = torch.tensor([[10.0, 50.0], [30.0, 3.0]])
    mask = torch.randn(16, 16)
    prompts = Prompts(
        torch.cat([points, points[:1]]).expand(2, 1, -1, -1),
        torch.tensor([1, 0, PADDING]).expand(2, 1, -1),
        mask.expand(2, 1, -1, -1),
    )
    logits, iou = sam(embedding, prompts, ONE)
    masks, quality = of_the_package(
        sam, embedding[1], False, points=points, labels=torch.tensor([1, 0]), mask=mask
    )
    assert torch.allclose(logits[1, 0], masks[0], atol=1e-5)
    assert torch.allclose(iou[1, 0], quality[0], atol=1e-5)


def test_its_state_dict_is_a_sam_file(sam: PromptableSam) -> None:
    shapes = {key: tuple(value.shape) for key, value in sam.state_dict().items()}
    assert shapes == expected_shapes("vit_micro")


def attended(sam: PromptableSam, point_xy: tuple[float, float]) -> Tensor:
    """Where the first cross-attention of the decoder looks for a point: (grid, grid), summing to 1."""
    grid, dim = MICRO.native_grid, MICRO.prompt_dim
    attention = sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    place = torch.tensor([[point_xy]])
    code = sam.prompt_encoder.pe_layer.forward_with_coords(place, (64, 64))
    query = attention.q_proj(2 * code).view(attention.num_heads, 1, -1)
    key = attention.k_proj(sam.prompt_encoder.pe_layer((grid, grid)).flatten(1).T)
    key = key.view(grid * grid, attention.num_heads, -1).transpose(0, 1)
    logits = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    assert dim == code.shape[-1]
    return logits.softmax(-1).mean(0).view(grid, grid)


@torch.no_grad()
def test_a_prompt_looks_at_its_own_place_from_the_start() -> None:
    torch.manual_seed(0)
    started = PromptableSam(MICRO)
    found = {}
    for name in ("default", "started"):
        places = [(8.0 + 16 * column, 8.0 + 16 * row) for row in range(4) for column in range(4)]
        looks = torch.stack([attended(started, place).flatten() for place in places])
        found[name] = looks.diagonal().mean().item()
        start_from_nothing(started)
    assert found["default"] < 0.1  # of 16 places
    assert found["started"] > 0.4


def test_positions_by_sines_tell_all_places_apart() -> None:
    table = sine_positions(14, 258).flatten(0, 2)
    assert table.shape == (196, 258)
    assert torch.cdist(table, table).add(100 * torch.eye(196)).min() > 0.5


def test_pixels_are_normalised_as_sam_does_it() -> None:
    white = normalised(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    assert white[0, 0, 0, 0] == pytest.approx((255 - 123.675) / 58.395)


def test_the_asked_share_of_patches_is_hidden() -> None:
    hidden = hidden_patches(torch.rand(3, 8, 8), 0.75)
    assert hidden.flatten(1).sum(1).tolist() == [48, 48, 48]
    assert torch.equal(hidden_patches(torch.arange(16.0).view(1, 4, 4), 0.25)[0, 0], torch.ones(4) > 0)


def test_targets_have_no_mean_and_unit_deviation() -> None:
    targets = patch_targets(5 + 3 * torch.randn(2, 3, 64, 64))
    assert targets.shape == (2, 4, 4, 768)
    assert targets.mean(-1).abs().max() < 1e-5
    assert (targets.std(-1) - 1).abs().max() < 1e-3


def test_seen_patches_have_no_loss_and_hidden_pixels_do_not_leak(sam: PromptableSam) -> None:
    torch.manual_seed(0)
    masked = MaskedPixels(MICRO.width, MICRO.prompt_dim)
    picture = torch.randn(1, 3, 64, 64)
    hidden = hidden_patches(torch.rand(1, 4, 4), 0.75)
    loss = masked(sam.image_encoder, picture, hidden)
    assert (loss[~hidden] == 0).all()
    assert (loss[hidden] > 0).all()
    # What stands in hidden patches never reaches the network: the prediction is the same without it.
    wiped = picture * (~hidden).repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    kept: list[Tensor] = []
    hook = masked.to_pixels.register_forward_hook(lambda _m, _i, output: kept.append(output))
    for given in (picture, wiped):
        masked(sam.image_encoder, given, hidden)
    hook.remove()
    assert torch.equal(kept[0], kept[1])
