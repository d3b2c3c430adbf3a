"""DeSAM's decoder against SAM's modules, the paper's sizes, and what prompts may change."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from samunet.errors import SamunetError
from samunet.networks.desam import ABSENT, IOU_ROWS, JUDGEMENT, DesamHead, DesamSettings, FrozenPrompts
from samunet.networks.desam_blocks import chosen_blocks, depth_blocks
from samunet.networks.features import Features
from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.package import modeling
from samunet.networks.sam.variants import get_variant
from samunet.networks.two_way import two_way
from samunet.planning.desam_costs import desam_head_cost
from samunet.planning.head_costs import HeadInput

MICRO = get_variant("vit_micro")
UNUSED_DEEP_SUPERVISION = 128
UNUSED_SHORTCUTS = 128**2 + 64**2 + 64**2
"""1 x 1 convolutions that the public code builds, counts and never uses: of an output for deep supervision,
and of blocks that keep their channels, whose shortcut is the identity. Ours does not have them."""
UNUSED_OUTPUTS = 3 * (256 + 1)
"""Of SAM's IoU head, which judges four masks where one is asked for."""
UNUSED = UNUSED_DEEP_SUPERVISION + UNUSED_SHORTCUTS


def head(**changes) -> DesamHead:
    torch.manual_seed(0)
    settings = {"variant": MICRO, "outputs": 1, "background": True, "input_size": 64, **changes}
    return DesamHead(DesamSettings(**settings)).eval()


def features(of: DesamHead, batch: int = 2) -> Features:
    torch.manual_seed(1)
    depths = tuple(torch.randn(batch, MICRO.width, 4, 4) for _ in of.blocks)
    neck = torch.randn(batch, MICRO.prompt_dim, 4, 4)
    return Features(levels=(*depths, neck), output_size=(64, 64))


def sams_parts() -> tuple[nn.Module, nn.Module]:
    """SAM's prompt encoder and mask decoder at the sizes of `head`, random weights."""
    prompts = modeling.PromptEncoder(32, (4, 4), (64, 64), 16)
    transformer = modeling.TwoWayTransformer(2, 32, MICRO.decoder_heads, MICRO.decoder_mlp)
    return prompts.eval(), modeling.MaskDecoder(transformer_dim=32, transformer=transformer).eval()


@pytest.mark.parametrize(
    ("variant", "of_the_code", "masks"),
    [("vit_b", 10_888_260, 7_463_104), ("vit_l", 12_035_140, 8_609_984), ("vit_h", 13_182_020, 9_756_864)],
)
def test_parameters_of_the_public_code_without_dead_ones(variant, of_the_code, masks):
    with torch.device("meta"):
        built = DesamHead(
            DesamSettings(variant=get_variant(variant), outputs=1, background=True, input_size=1024)
        )
    trained = sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert trained == of_the_code - UNUSED - UNUSED_OUTPUTS
    assert sum(p.numel() for p in built.masks.parameters()) == masks - UNUSED


@pytest.mark.parametrize("changes", [{"mode": "whole_box"}, {"iou_head": False}])
def test_nothing_is_kept_for_an_iou_that_nobody_learns(changes):
    """As many parameters as are planned for, all trained but SAM's prompt embeddings."""
    sizes = get_variant("vit_b")
    with torch.device("meta"):
        built = DesamHead(
            DesamSettings(variant=sizes, outputs=1, background=True, input_size=1024, **changes)
        )
    learnt = sum(p.numel() for name, p in built.named_parameters() if not name.startswith("prompts."))
    assert learnt == 10_598_720
    assert learnt == sum(p.numel() for p in built.parameters() if p.requires_grad)
    place = HeadInput(variant=sizes, input_size=1024, patch_size=(1024, 1024), num_outputs=2, detail=False)
    cost = desam_head_cost(place, judged=False, fused=True)
    assert cost.parameters == sum(p.numel() for p in built.parameters())
    assert not [key for key in built.state_dict() if key.startswith(JUDGEMENT)]


def four_judged(**changes) -> DesamHead:
    """As heads of earlier versions: all parts, four judged masks, some of them not learnt."""
    built = head(**changes)
    last = built.iou_prediction_head.layers[-1]
    built.iou_prediction_head.layers[-1] = nn.Linear(last.in_features, 4)
    return built


def test_checkpoints_that_judge_four_masks_load():
    older, built = nn.ModuleDict({"head": four_judged()}), nn.ModuleDict({"head": head()})
    built.load_state_dict(older.state_dict())
    given = features(built["head"])
    tokens = built["head"].prompts.points(built["head"].grid_xy(given))
    with torch.no_grad():
        expected = older["head"].judge(given, tokens)[..., :1]
        assert torch.allclose(
            built["head"].judge(given, tokens), expected, atol=1e-6
        )  # sums of another order


@pytest.mark.parametrize("changes", [{"mode": "whole_box"}, {"iou_head": False}])
def test_checkpoints_with_a_judgement_that_was_not_learnt_load_without_the_judgement_that_was_not_learnt(
    changes,
):
    older = nn.ModuleDict({"head": four_judged()})
    built = nn.ModuleDict({"head": head(**changes)})
    given = {key: value + 1 for key, value in older.state_dict().items()}
    assert len(given) > len(built.state_dict())
    built.load_state_dict(given)
    assert all(torch.equal(value, given[key]) for key, value in built.state_dict().items())
    with pytest.raises(RuntimeError, match="iou_prediction_head"):
        older.load_state_dict(built.state_dict())


def test_without_a_judgement_the_masks_are_the_same():
    whole = head(mode="whole_box")
    built = head()
    built.load_state_dict({**built.state_dict(), **whole.state_dict()})
    given = features(built)
    with torch.no_grad():
        expected, _ = built.prompted(built.context(given), given, built._box_tokens())
        assert torch.equal(whole(given), whole.with_background(expected[:, 0]))


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_shapes_at_sams_size(variant):
    """1024 pixels: three depths of the encoder's width, the neck, masks of 256 pixels, an IoU a class."""
    sizes = get_variant(variant)
    with torch.device("meta"):
        encoder = SamImageEncoder(sizes, 1024)
        built = DesamHead(DesamSettings(variant=sizes, outputs=2, background=True, input_size=1024))
        levels = encoder.levels(torch.zeros(1, 3, 1024, 1024), built.blocks)
        tokens = torch.zeros(3, 2, 256)
    assert [tuple(level.shape) for level in levels] == [(1, sizes.width, 64, 64)] * 3 + [(1, 256, 64, 64)]
    given = Features(levels=levels, output_size=(1024, 1024))
    masks, iou = built.prompted(built.context(given), given, tokens)
    assert (tuple(masks.shape), tuple(iou.shape)) == ((1, 3, 2, 256, 256), (1, 3, 2))


@pytest.mark.parametrize(("variant", "context"), [("vit_b", 57.5), ("vit_h", 76.3)])
def test_arithmetic_of_the_shared_part(variant, context):
    """GFLOP at 1024 pixels that 81 points share instead of computing them 81 times."""
    from torch.utils.flop_counter import FlopCounterMode

    sizes = get_variant(variant)
    with torch.device("meta"):
        built = DesamHead(DesamSettings(variant=sizes, outputs=1, background=True, input_size=1024))
        depths = tuple(torch.zeros(1, sizes.width, 64, 64) for _ in built.blocks)
        neck = torch.zeros(1, 256, 64, 64)
    given = Features(levels=(*depths, neck), output_size=(1024, 1024))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shared = built.context(given)
        own = counter.get_total_flops()
        built.prompted(shared, given, torch.zeros(1, 2, 256, device="meta"))
    assert own / 1e9 == pytest.approx(context, rel=0.01)
    place = HeadInput(variant=sizes, input_size=1024, patch_size=(1024, 1024), num_outputs=2, detail=False)
    cost = desam_head_cost(place, judged=True, fused=True)
    assert 2 * cost.multiply_adds == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert cost.parameters == sum(p.numel() for p in built.parameters())
    regions = dataclasses.replace(place, num_outputs=1, exclusive=False)
    assert desam_head_cost(regions, judged=True, fused=True) == cost


def test_depths_are_sams_global_blocks_but_the_last():
    for name in ("vit_b", "vit_l", "vit_h"):
        variant = get_variant(name)
        assert depth_blocks(variant.depth) == variant.global_blocks[:-1]
    assert depth_blocks(7) == (1, 3, 5)


def test_listed_blocks_must_be_the_encoders():
    assert DesamHead(
        DesamSettings(
            variant=get_variant("vit_tiny"),
            outputs=1,
            background=True,
            input_size=224,
            context_blocks=(0, 2, 6),
        )
    ).blocks == (0, 2, 6)
    for blocks, words in (
        ((2, 5, 12), "vit_b has no block 12"),
        ((5, 2, 8), "ascending"),
        ((2, 5), "context_blocks=2,5: .* leave it out for 2,5,8."),
        ((2, 2, 5), "ascending"),
    ):
        with pytest.raises(SamunetError, match=words):
            chosen_blocks(get_variant("vit_b"), blocks)


def test_prompts_are_sams():
    torch.manual_seed(0)
    package = modeling.PromptEncoder(32, (4, 4), (64, 64), 16)
    ours = FrozenPrompts(32, 64)
    ours.load_state_dict(package.state_dict(), strict=False)
    points = torch.tensor([[3.0, 40.0], [60.5, 1.0]])
    expected, _ = package(points=(points[:, None], torch.ones(2, 1)), boxes=None, masks=None)
    assert torch.allclose(ours.points(points), expected, atol=1e-6)
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    expected, _ = package(points=None, boxes=boxes, masks=None)
    assert torch.allclose(ours.box(boxes), expected, atol=1e-6)


def test_it_starts_from_sams_decoder():
    torch.manual_seed(0)
    prompts, package = sams_parts()
    built = head(outputs=3)
    used = built.load_decoder(prompts.state_dict(), package.state_dict())
    own = built.state_dict()
    for key, value in package.state_dict().items():
        without_masks = key.startswith(("output_upscaling", "output_hypernetworks"))
        assert (f"mask_decoder.{key}" in used) == (not without_masks)
        assert without_masks or torch.equal(own[key], value[:3] if key in IOU_ROWS else value)
    assert torch.equal(own["prompts.no_mask_embed.weight"], prompts.no_mask_embed.weight)
    # SAM judges four masks: of six classes two begin with rows of their own.
    many = head(outputs=6)
    random = {key: many.state_dict()[key].clone() for key in IOU_ROWS}
    assert many.load_decoder(prompts.state_dict(), package.state_dict()) == used
    for key in IOU_ROWS:
        rows = many.state_dict()[key]
        assert torch.equal(rows[:4], package.state_dict()[key])
        assert torch.equal(rows[4:], random[key][4:])


@pytest.mark.parametrize("outputs", [1, 3])
@torch.no_grad()
def test_prompts_are_judged_as_in_sam(outputs):
    """Order of the tokens, no-mask embedding, position of the image, and which token is read: under SAM's
    weights IoU and image stream are those of the package's decoder, whose first masks are the classes."""
    torch.manual_seed(0)
    prompts, decoder = sams_parts()
    built = head(outputs=outputs)
    built.load_decoder(prompts.state_dict(), decoder.state_dict())
    given, points = features(built), torch.tensor([[3.0, 40.0], [60.5, 1.0], [20.0, 30.0]])
    sparse, dense = prompts(points=(points[:, None], torch.ones(3, 1)), boxes=None, masks=None)
    streams: list[torch.Tensor] = []
    decoder.transformer.register_forward_hook(lambda module, inputs, output: streams.append(output[1]))
    iou, keys = built._relevant(given, built.prompts.points(points))
    for image in range(2):
        neck = given.levels[-1][image : image + 1]
        _, expected = decoder.predict_masks(neck, prompts.get_dense_pe(), sparse, dense)
        assert torch.allclose(iou[image], expected[:, :outputs], atol=1e-5)
        assert torch.allclose(keys[image], streams[image], atol=1e-5)


def test_the_box_is_sams_of_the_whole_square():
    torch.manual_seed(0)
    prompts, decoder = sams_parts()
    built = head(mode="whole_box")
    built.load_decoder(prompts.state_dict(), decoder.state_dict())
    square = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    expected, _ = prompts(points=None, boxes=square, masks=None)
    assert torch.allclose(built._box_tokens(), expected, atol=1e-6)
    assert torch.allclose(built.training_tokens(None), expected, atol=1e-6)


@torch.no_grad()
def test_each_branch_of_the_context_sees_its_depth():
    built = head(variant=dataclasses.replace(MICRO, depth=7))
    assert built.blocks == (1, 3, 5)
    given = features(built)
    deep, middle, shallow = built.context(given)
    assert torch.equal(deep, built.masks.deep(given.levels[2]))
    assert torch.equal(middle, built.masks.middle(given.levels[1]))
    assert torch.equal(shallow, built.masks.shallow(given.levels[0]))


@pytest.mark.parametrize(
    ("width", "heads", "mlp", "side"), [(32, 2, 64, 4), (256, 8, 2048, 32)], ids=["small", "as in SAM"]
)
def test_transformer_is_the_packages_for_prompts_of_each_image(width, heads, mlp, side):
    torch.manual_seed(0)
    transformer = modeling.TwoWayTransformer(2, width, heads, mlp).eval()
    image, position = torch.randn(2, side**2, width), torch.randn(side**2, width)
    tokens = torch.randn(2, 3, 5, width)
    with torch.no_grad():
        queries, keys = two_way(transformer, image, position, tokens)
        for prompt in range(3):
            picture = image.transpose(1, 2).unflatten(2, (side, side))
            place = position.T.unflatten(1, (side, side)).expand(2, -1, -1, -1)
            expected_queries, expected_keys = transformer(picture, place, tokens[:, prompt])
            assert torch.allclose(queries[:, prompt], expected_queries, atol=1e-5)
            assert torch.allclose(keys[:, prompt], expected_keys, atol=1e-5)


def test_two_classes_are_the_papers_sigmoid():
    built = head()
    with torch.no_grad():
        logits = built(features(built))
    assert logits.shape == (2, 2, 16, 16)
    assert torch.allclose(logits.softmax(1)[:, 1], logits[:, 1].sigmoid(), atol=1e-6)


def test_each_class_weighs_its_best_prompts_by_iou():
    iou = torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.3, 0.3], [0.0, 0.0]]])
    weights = head(outputs=2, grid_side=2).prompt_weights(iou)
    assert weights[0].T.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    both = head(outputs=2, grid_side=2, top_prompts=2).prompt_weights(iou)
    assert both[0, :, 0].tolist() == pytest.approx([0, 0.8 / 1.1, 0.3 / 1.1, 0])
    strict = head(outputs=2, grid_side=2, top_prompts=2, min_iou=0.8).prompt_weights(iou)
    assert strict[0].T.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": 1},
        {"outputs": 3, "background": False},
        {"outputs": 3, "top_prompts": 2},
        {"outputs": 2, "top_prompts": 9, "chunk": 4},
        {"outputs": 2, "grid_side": 1},
        {"outputs": 3, "top_prompts": 2, "chunk": 2},
    ],
)
def test_only_masks_that_are_used_are_decoded_and_nothing_changes(changes, monkeypatch):
    """Against decoding the mask of every prompt and averaging those of the best."""
    built = head(**{"grid_side": 3, **changes})
    given, settings = features(built), built.settings
    with torch.no_grad():
        tokens = built.prompts.points(built.grid_xy(given))
        logits, iou = built.prompted(built.context(given), given, tokens)
        best, chosen = iou.topk(min(settings.top_prompts, len(tokens)), dim=1)
        shares = best.clamp_min(1e-6) / best.clamp_min(1e-6).sum(1, keepdim=True)
        index = chosen[..., None, None].expand(-1, -1, -1, *logits.shape[-2:])
        expected = built.with_background((logits.gather(1, index) * shares[..., None, None]).sum(1))
        decoded = []
        original = built.prompted
        monkeypatch.setattr(
            built, "prompted", lambda c, f, t: decoded.append(t.shape[1]) or original(c, f, t)
        )
        assert torch.allclose(built(given), expected, atol=1e-5)
    assert sum(decoded) == min(len(tokens), settings.outputs * settings.top_prompts)


@pytest.mark.parametrize("fusion", [True, False])
def test_a_class_that_no_prompt_finds_is_absent(fusion):
    """Without fusion too: the paper's ablation gains by that alone."""
    built = head(grid_side=2, outputs=2, min_iou=0.5, fusion=fusion)
    with torch.no_grad():
        last = built.iou_prediction_head.layers[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.9, 0.2]))
        logits = built(features(built))
    assert (logits[:, 2] == ABSENT).all()
    assert (logits[:, 1] != ABSENT).all()
    # Logits are averaged over flips: one of four that finds nothing does not delete what three are sure of.
    assert (ABSENT + 3 * 5.0) / 4 > 0


def test_context_is_computed_once_and_chunks_do_not_matter(monkeypatch):
    built = head(grid_side=3, chunk=4)
    calls = []
    original = built.masks.context
    monkeypatch.setattr(built.masks, "context", lambda depths: calls.append(1) or original(depths))
    given = features(built)
    whole = head(grid_side=3, chunk=9)
    whole.load_state_dict(built.state_dict())
    with torch.no_grad():
        assert torch.allclose(built(given), whole(given), atol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("changes", "prompted"),
    [
        ({}, True),
        ({"fusion": False, "iou_head": False}, False),
        ({"fusion": False}, True),
        ({"iou_head": False}, True),
        ({"mode": "whole_box"}, True),
    ],
)
def test_ablations_have_no_dead_parameters(changes, prompted):
    built = head(**changes).train()
    assert (built.prompts is not None) == prompted
    given = features(built)
    points = torch.tensor([[5.0, 7.0], [40.0, 30.0]]) if built.pointed else None
    logits, iou = built.prompted(built.context(given), given, built.training_tokens(points))
    assert (iou is not None) == built.judged
    (logits.square().mean() + (0 if iou is None else iou.square().mean())).backward()
    learnt = {name: p for name, p in built.named_parameters() if not name.startswith("prompts.")}
    assert not [name for name, p in learnt.items() if p.grad is None]
    rows = [p for name, p in learnt.items() if name in IOU_ROWS]
    assert len(rows) == 2 * built.judged
    assert all((p.grad.flatten(1) if p.ndim > 1 else p.grad[:, None]).any(1).all() for p in rows)


def test_points_that_nobody_judges_all_count_alike():
    built = head(iou_head=False, grid_side=3, chunk=4)
    given = features(built)
    with torch.no_grad():
        tokens = built.prompts.points(built.grid_xy(given))
        masks, iou = built.prompted(built.context(given), given, tokens)
        assert iou is None
        assert torch.allclose(built(given)[:, 1:], masks.mean(1), atol=1e-5)
        assert not torch.allclose(masks[:, 0], masks[:, -1], atol=1e-3)


@pytest.mark.parametrize(("slice_size", "filled"), [((16, 16), (64, 64)), ((20, 40), (32, 64))])
def test_the_grid_covers_the_slice_and_not_the_padding(slice_size, filled):
    built = head(grid_side=3)
    grid = built.grid_xy(dataclasses.replace(features(built), output_size=slice_size))
    assert grid.shape == (9, 2)
    assert torch.allclose(grid.mean(0), torch.tensor([filled[1] / 2 - 0.5, filled[0] / 2 - 0.5]))
    assert torch.allclose(grid.amax(0), torch.tensor([filled[1] * 5 / 6 - 0.5, filled[0] * 5 / 6 - 0.5]))
    assert grid[1, 0] > grid[0, 0]
    assert grid[1, 1] == grid[0, 1]
