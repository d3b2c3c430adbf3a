"""The three heads: the paper's parameter counts, shapes, what is trained, what differs in paper_compat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from samunet.errors import SamunetError
from samunet.networks.autosam import AutoSamHead, AutoSamHeadSettings, build_autosam
from samunet.networks.cnn import CnnHead, CnnHeadSettings, build_cnn
from samunet.networks.features import Features
from samunet.networks.linear import LinearHead, build_linear
from samunet.networks.picture import SliceSettings
from samunet.networks.position import grid_position, point_position
from samunet.networks.sam.variants import finest_stride, get_variant
from samunet.networks.sam_slices import SamSliceNetwork

Builder = Callable[[SliceSettings], SamSliceNetwork]
BUILDERS = {"linear": build_linear, "cnn": build_cnn, "autosam": build_autosam}
each_head = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())


def settings(**changes: object) -> SliceSettings:
    values: dict[str, object] = {
        "variant": "vit_micro",
        "input_size": 64,
        "patch_size": (30, 40),
        "num_channels": 2,
        "num_outputs": 3,
        "display_window": ((0.0, 1.0), (-1.0, 1.0)),
    }
    return SliceSettings(**{**values, **changes})  # type: ignore[arg-type]


def slices(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def count(module: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def autosam_head(classes: int = 4, **changes: object) -> AutoSamHead:
    variant = get_variant("vit_b")
    return AutoSamHead(AutoSamHeadSettings(variant=variant, outputs=classes, width=256, **changes))  # type: ignore[arg-type]


def test_parameters_of_the_public_code() -> None:
    assert count(LinearHead(256, 4, relu_on_logits=True)) == 75_140
    compatible = autosam_head(paper_compat=True)
    assert count(compatible) == 3_780_002
    assert count(compatible, trained=True) == 3_780_002 - 133_122


@pytest.mark.parametrize(
    ("depth", "parameters", "enlargement"),
    [
        (2, 1_808_132, 4),
        (3, 5_184_260, 2),
        (4, 20_686_340, 4),
        (5, 82_426_884, 8),
        (6, 328_853_508, 16),
    ],
)
def test_cnn_head_of_the_public_code(depth: int, parameters: int, enlargement: int) -> None:
    with torch.device("meta"):
        head = CnnHead(CnnHeadSettings(inputs=256, outputs=4, depth=depth, normalised=False))
        logits = head(Features(levels=(torch.zeros(1, 256, 8, 8),), output_size=(8, 8)))
    assert count(head) == parameters
    assert logits.shape == (1, 4, 8 * enlargement, 8 * enlargement)


def test_the_sound_autosam_head_has_no_dead_parameters() -> None:
    head = autosam_head()
    assert count(head) == 3_507_328
    head(Features(levels=(slices(1, 256, 4, 4),), output_size=(8, 8))).square().mean().backward()
    # A projection's key bias shifts all scores of a query alike, so that softmax takes its gradient away.
    idle = [
        name
        for name, p in head.named_parameters()
        if not name.endswith("k_proj.bias") and (p.grad is None or not p.grad.any())
    ]
    assert idle == []


def test_the_bottom_of_the_cnn_head_is_as_wide_as_the_encoder() -> None:
    with torch.device("meta"):
        for name, width in (("vit_b", 768), ("vit_l", 1024), ("vit_h", 1024), ("vit_tiny", 256)):
            assert build_cnn(settings(variant=name, input_size=224)).head.widen[0][0].out_channels == width
        compatible = build_cnn(settings(variant="vit_b", input_size=224, paper_compat=True))
    assert compatible.head.widen[0][0].out_channels == 1024


@pytest.mark.parametrize("depth", [1, 7])
def test_a_depth_out_of_range_is_refused(depth: int) -> None:
    with pytest.raises(SamunetError, match="num_depth"):
        build_cnn(settings(), num_depth=depth)


@each_head
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_network_contract(build: Builder, frozen: bool, compat: bool) -> None:
    network = build(settings(frozen=frozen, paper_compat=compat))
    x = slices(2, 2, 30, 40)
    logits = network(x)
    assert logits.shape == (2, 3, 30, 40)
    assert logits.dtype == torch.float32
    features = network.encode(x)
    assert features.output_size == (30, 40)
    torch.testing.assert_close(network.decode(features), logits)
    logits.square().mean().backward()
    encoder_trained = any(p.grad is not None for p in network.encoder.parameters())
    assert encoder_trained is not frozen


@each_head
def test_training_changes_what_it_should_and_nothing_else(build: Builder) -> None:
    network = build(settings()).train()
    assert not network.encoder.training
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trained = dict(network.trained_parameters())
    assert trained
    assert all(name.startswith("head.") for name in trained)
    optimizer = torch.optim.AdamW(trained.values(), 1e-2)
    network(slices(2, 2, 30, 40)).square().mean().backward()
    optimizer.step()
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= set(trained)
    assert len(changed) > len(trained) / 2
    network.requires_grad_(False)
    assert dict(network.trained_parameters()).keys() == trained.keys()


def test_a_stem_before_a_frozen_encoder_is_trained() -> None:
    network = build_cnn(settings(channel_map="stem"))
    network(slices(1, 2, 30, 40)).square().mean().backward()
    assert network.picture.stem is not None
    assert network.picture.stem.weight.grad.any()
    assert "picture.stem.weight" in dict(network.trained_parameters())
    assert all(p.grad is None for p in network.encoder.parameters())


@each_head
def test_features_in_half_precision_are_decoded(build: Builder) -> None:
    network = build(settings()).eval()
    with torch.no_grad():
        features = network.encode(slices(1, 2, 30, 40))
        half = Features(levels=tuple(level.half() for level in features.levels), output_size=(30, 40))
        torch.testing.assert_close(network.decode(half), network.decode(features), atol=0.02, rtol=0.02)


def test_class_chunks_change_nothing_but_memory() -> None:
    head = autosam_head(5)
    features = Features(levels=(slices(2, 256, 4, 4),), output_size=(8, 8))
    with torch.no_grad():
        together = head(features)
        head.settings = AutoSamHeadSettings(
            variant=head.settings.variant, outputs=5, width=256, class_chunk=2
        )
        torch.testing.assert_close(head(features), together, atol=1e-5, rtol=1e-4)


def test_class_chunks_keep_less_for_the_backward_pass() -> None:
    """And the same gradients: each chunk is computed again when its turn comes."""
    features = Features(levels=(slices(2, 256, 4, 4),), output_size=(8, 8))
    kept, gradients = [], []
    for chunk in (None, 1):
        torch.manual_seed(0)
        head = autosam_head(5)
        head.settings = replace(head.settings, class_chunk=chunk)
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = head(features).square().mean()
        loss.backward()
        kept.append(sum(sizes))
        gradients.append(head.mask_tokens.weight.grad)
    assert kept[1] < kept[0] / 5
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("grid", [(14, 14), (64, 64)])
def test_the_position_is_exact_under_autocast(grid: tuple[int, int]) -> None:
    """In bf16 a token's code is off by as much as its neighbour's differs."""
    code = autosam_head(1).pe_layer
    exact = grid_position(code, grid)
    points = torch.rand(3, 2, 2) * 224
    placed = point_position(code, points, (224, 224))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(grid_position(code, grid), exact)
        assert torch.equal(point_position(code, points, (224, 224)), placed)
    torch.testing.assert_close(exact, code(grid).flatten(1).T)


@pytest.mark.parametrize("build", [build_cnn, build_autosam])
def test_activations_of_a_trained_encoder_may_be_computed_again(build: Builder) -> None:
    torch.manual_seed(0)
    usual = build(settings(frozen=False))
    lean = build(settings(frozen=False, checkpointing=True))
    lean.load_state_dict(usual.state_dict())
    picture = slices(1, 2, 30, 40)
    for network in (usual, lean):
        network(picture).square().mean().backward()
    assert lean.encoder.checkpointing
    for (name, first), second in zip(usual.named_parameters(), lean.parameters()):
        assert (first.grad is None) == (second.grad is None), name
        if first.grad is not None:
            torch.testing.assert_close(second.grad, first.grad, atol=1e-6, rtol=1e-3)


def test_logits_of_a_class_are_those_of_sams_decoder() -> None:
    """With SAM's tokens and no prompt, the package's decoder gives the same mask."""
    from samunet.networks.sam.package import modeling

    decoder = modeling.MaskDecoder(
        transformer_dim=256, transformer=modeling.TwoWayTransformer(2, 256, 8, 2048)
    )
    prompts = modeling.PromptEncoder(256, (4, 4), (64, 64), 16)
    head = autosam_head(1)
    used = head.load_decoder(prompts.state_dict(), decoder.state_dict())
    assert "prompt_encoder.no_mask_embed.weight" in used
    embedding = slices(1, 256, 4, 4)
    with torch.no_grad():
        tokens = torch.cat([head.iou_tokens.weight, head.mask_tokens.weight])
        decoder.iou_token.weight.copy_(tokens[:1])
        # Four mask tokens stand in the package's sequence; with all the same, attention sees one.
        decoder.mask_tokens.weight.copy_(tokens[1:].expand(4, -1))
        decoder.num_mask_tokens = 1
        decoder.mask_tokens = nn.Embedding.from_pretrained(tokens[1:])
        sparse, dense = prompts(None, None, None)
        masks, _ = decoder.predict_masks(embedding, prompts.get_dense_pe(), sparse, dense)
        logits = head(Features(levels=(embedding,), output_size=(16, 16)))
    torch.testing.assert_close(logits, masks, atol=1e-4, rtol=1e-4)


@each_head
def test_the_image_skip_is_the_default_only_where_a_small_encoder_is_trained(build: Builder) -> None:
    skips = build is not build_linear
    assert build(settings(frozen=False)).head.uses_image is skips
    assert not build(settings(frozen=True)).head.uses_image
    assert not build(settings(frozen=False, paper_compat=True)).head.uses_image
    network = build(settings(frozen=False))
    image = network.encode(slices(1, 2, 30, 40)).image
    assert (image is not None) is skips
    if image is not None:
        assert image.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(("patch", "stride"), [((16, 16), 4), ((20, 32), 2), ((64, 50), 2), ((200, 64), 2)])
def test_the_finest_detail_is_two_pixels_or_four(patch: tuple[int, int], stride: int) -> None:
    assert finest_stride(64, patch) == stride
    network = build_cnn(settings(patch_size=patch, frozen=False))
    logits = network.head(network.encode(slices(1, 2, *patch)))
    assert logits.shape[-1] == 64 // stride


def test_linear_logits_are_rectified_only_in_paper_compat() -> None:
    features = Features(levels=(slices(1, 32, 4, 4),), output_size=(8, 8))
    with torch.no_grad():
        assert LinearHead(32, 8, relu_on_logits=True)(features).min() == 0
        assert LinearHead(32, 8)(features).min() < 0


@each_head
def test_vit_tiny_runs_at_other_sizes(build: Builder) -> None:
    network = build(settings(variant="vit_tiny", input_size=112, frozen=False)).eval()
    with torch.no_grad():
        assert network(slices(1, 2, 61, 44)).shape == (1, 3, 61, 44)


@pytest.mark.parametrize("build", [build_cnn, build_autosam], ids=["cnn", "autosam"])
def test_a_head_of_another_width(build: Callable[..., SamSliceNetwork]) -> None:
    network = build(settings(), head_width=16)
    assert network(slices(1, 2, 30, 40)).shape == (1, 3, 30, 40)


@each_head
def test_a_state_dict_restores_the_network(build: Builder) -> None:
    first, second = build(settings()).eval(), build(settings()).eval()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(second(slices(1, 2, 30, 40)), first(slices(1, 2, 30, 40)))
