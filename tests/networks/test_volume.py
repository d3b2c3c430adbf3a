"""The parts of the 3D SAM against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from samunet.errors import SamunetError
from samunet.networks import area
from samunet.networks.area import area_means
from samunet.networks.prompt_generator import PromptGenerator
from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.variants import PATCH, get_variant
from samunet.networks.volume_attention import MASKED, VolumeAttention, WindowLayout
from samunet.networks.volume_decoder import VolumeDecoder, VolumeDecoderSettings
from samunet.networks.volume_encoder import VolumeEncoder, VolumeEncoderSettings
from samunet.networks.volume_front import VolumeFront
from samunet.networks.volume_shape import level_blocks, pooling_plan

TOLERANCE = 1e-5
"""Folding changes the order of float32 sums; inputs and weights are of order one."""


def encoder_settings(**changes):
    given = {
        "variant": "vit_micro",
        "patch_size": (16, 32, 24),
        "token_size": (4, 4, 4),
        "window": 4,
        "adapter_width": 16,
        "neck_width": 16,
    }
    return VolumeEncoderSettings(**{**given, **changes})


def enlarged_front(front: VolumeFront, colours: torch.Tensor) -> torch.Tensor:
    """What the public code computes: enlarge, embed every slice, merge slices."""
    factors = [PATCH / token for token in front.token_size]
    large = functional.interpolate(colours, scale_factor=factors, mode="trilinear", align_corners=False)
    batch, _, depth = large.shape[:3]
    embedded = front.proj(large.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, depth)).transpose(1, 2)
    weight = front.slices[:, None, :, None, None]
    merged = functional.conv3d(embedded, weight, front.slices_bias, stride=(PATCH, 1, 1), groups=len(weight))
    return merged.permute(0, 2, 3, 4, 1)


@pytest.mark.parametrize("token_size", [(4, 4, 4), (1, 4, 4), (2, 4, 2), (1, 2, 2)])
def test_front_end_is_the_enlarging_one(token_size):
    torch.manual_seed(0)
    front = VolumeFront(24, token_size)
    with torch.no_grad():
        front.slices.normal_()
        front.slices_bias.normal_()
    colours = torch.randn(2, 3, 8, 12, 16)
    with torch.no_grad():
        found, expected = front(colours), enlarged_front(front, colours)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("grid", "wished", "window", "padded"),
    [
        ((16, 16, 16), 8, (8, 8, 8), (16, 16, 16)),
        ((10, 28, 7), 8, (5, 7, 7), (10, 28, 7)),
        ((9, 17, 1), 8, (5, 6, 1), (10, 18, 1)),
    ],
)
def test_windows_fit_the_grid(grid, wished, window, padded):
    layout = WindowLayout.of(grid, wished, shifted=True)
    assert layout.window == window
    assert layout.padded == padded
    assert all(shift == 0 for shift, count in zip(layout.shift, layout.counts) if count == 1)
    tokens = torch.randn(2, *grid, 3)
    assert torch.equal(layout.join(layout.cut(tokens)), tokens)


def full_attention(attention: VolumeAttention, tokens, size, allowed):
    """Softmax over all pairs with the bias written out, tokens (N, T, E), allowed (N, T, T)."""
    from segment_anything.modeling.image_encoder import get_rel_pos

    count, number, _ = tokens.shape
    qkv = attention.qkv(tokens).reshape(count, number, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    scores = attention.scale * query @ key.transpose(-1, -2)
    places = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij")).flatten(1)
    for axis, table in enumerate((attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w)):
        relative = get_rel_pos(size[axis], size[axis], table)
        pairs = relative[places[axis]][:, places[axis]]
        scores = scores + torch.einsum("nhqc,qkc->nhqk", query, pairs)
    scores = scores.masked_fill(~allowed[:, None], float("-inf"))
    mixed = scores.softmax(-1) @ value
    return attention.proj(mixed.transpose(1, 2).reshape(count, number, -1))


@pytest.mark.parametrize("grid", [(4, 8, 8), (5, 6, 9)])
@pytest.mark.parametrize("shifted", [False, True])
def test_attention_is_the_masked_softmax(grid, shifted):
    """Neighbours attend to each other; what the roll brought together, and padding, does not."""
    torch.manual_seed(0)
    layout = WindowLayout.of(grid, 4, shifted=shifted)
    attention = VolumeAttention(16, 2, 7)
    for table in (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w):
        torch.nn.init.normal_(table)
    tokens = torch.randn(1, *grid, 16)
    windows = layout.cut(tokens)
    where = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), -1)[None] + 1
    place = layout.cut(where.float())
    near = (place[:, :, None] - place[:, None]).abs()
    size = torch.tensor(layout.window)
    allowed = (near < size).all(-1) & (place[:, :, None] > 0).all(-1) & (place[:, None] > 0).all(-1)
    real = (place > 0).all(-1)
    allowed = allowed | ~real[:, :, None]
    with torch.no_grad():
        found = attention(windows, layout.window, layout.regions())
        expected = full_attention(attention, windows, layout.window, allowed)
    assert torch.allclose(found[real], expected[real], atol=TOLERANCE)
    assert MASKED >= 100


def test_without_adapters_the_encoder_is_the_same_at_the_start():
    torch.manual_seed(0)
    plain = VolumeEncoder(encoder_settings(adapters=False)).eval()
    adapted = VolumeEncoder(encoder_settings()).eval()
    plain.initialise()
    adapted.load_state_dict(plain.state_dict(), strict=False)
    colours = torch.randn(1, 3, 16, 32, 24)
    with torch.no_grad():
        for a, b in zip(plain(colours), adapted(colours)):
            assert torch.allclose(a, b, atol=TOLERANCE)


def test_every_adapter_tensor_moves_within_two_steps():
    torch.manual_seed(0)
    encoder = VolumeEncoder(encoder_settings())
    encoder.initialise()
    before = {name: p.clone() for name, p in encoder.named_parameters() if ".adapter." in name}
    optimizer = torch.optim.SGD(encoder.parameters(), 0.1)
    colours = torch.randn(1, 3, 16, 32, 24)
    targets = [torch.randn_like(level) for level in encoder(colours)]
    for _ in range(2):
        optimizer.zero_grad()
        sum(((level - t) ** 2).mean() for level, t in zip(encoder(colours), targets)).backward()
        optimizer.step()
    after = dict(encoder.named_parameters())
    assert len(before) == 6 * len(encoder.blocks)
    assert all(not torch.equal(after[name], value) for name, value in before.items())


def test_a_relu_at_the_end_would_keep_a_zero_start_at_zero():
    """Why paper_relu goes with the code's random start."""
    encoder = VolumeEncoder(encoder_settings(paper_relu=True))
    assert all(block.adapter.up.weight.abs().sum() > 0 for block in encoder.blocks)


def test_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    plain = VolumeEncoder(encoder_settings())
    saving = VolumeEncoder(encoder_settings(checkpointing=True))
    saving.load_state_dict(plain.state_dict())
    colours = torch.randn(1, 3, 16, 32, 24)
    for encoder in (plain, saving):
        sum(level.square().mean() for level in encoder(colours)).backward()
    for a, b in zip(plain.parameters(), saving.parameters()):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=TOLERANCE)


def test_sam_weights_fill_the_encoder():
    torch.manual_seed(0)
    flat = SamImageEncoder(get_variant("vit_micro"))
    for parameter in flat.parameters():
        torch.nn.init.normal_(parameter)
    state = flat.state_dict()
    encoder = VolumeEncoder(encoder_settings())
    encoder.initialise()  # as where it is trained too
    used = encoder.load_sam(state)
    assert used == encoder.sam_keys() == {key for key in state if not key.startswith("neck.")}
    own = encoder.state_dict()
    assert all(torch.equal(own[key], state[key]) for key in used)
    attention = encoder.blocks[1].attn
    assert torch.allclose(attention.rel_pos_d, (attention.rel_pos_h + attention.rel_pos_w) / 2)
    assert not encoder.depth_embed.any()


def test_parameters_of_the_paper():
    """AutoProSAM's counts for ViT-B, 128^3 (its 12 frozen gains on the bias are not ours)."""
    with torch.device("meta"):
        encoder = VolumeEncoder(
            encoder_settings(
                variant="vit_b", patch_size=(128, 128, 128), window=8, adapter_width=384, neck_width=256
            )
        )
        generator = PromptGenerator(256, encoder.settings.grid, 16)
        decoder = VolumeDecoder(
            VolumeDecoderSettings(
                inputs=256, levels=4, width=128, image_channels=1, outputs=14, token_size=(4, 4, 4)
            )
        )
    encoder.freeze()
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in encoder.parameters() if not p.requires_grad)
    assert trained == 15_209_984
    assert frozen == 88_846_604 - 12
    assert sum(p.numel() for p in generator.parameters()) == 4_255_232
    assert sum(p.numel() for p in decoder.parameters()) == 7_129_728


def test_levels_are_evenly_spaced():
    assert level_blocks(12) == (2, 5, 8, 11)
    assert level_blocks(32) == (7, 15, 23, 31)
    assert level_blocks(7)[-1] == 6
    assert level_blocks(2) == (0, 1)


@pytest.mark.parametrize("grid", [(32, 32, 32), (1, 4, 4), (10, 28, 7), (3, 3, 3)])
def test_generator_keeps_the_shape_and_never_pools_to_one_voxel(grid):
    assert len(pooling_plan((32, 32, 32))) == 4
    size = list(grid)
    for factors in pooling_plan(grid):
        size = [n // factor for n, factor in zip(size, factors)]
    assert all(n >= 2 for n, first in zip(size, grid) if first >= 2)
    features = torch.randn(1, 8, *grid)
    assert PromptGenerator(8, grid, 8)(features).shape == features.shape
    assert torch.equal(PromptGenerator(8, grid, 8, residual=True)(features), features)


@pytest.mark.parametrize("token_size", [(4, 4, 4), (1, 4, 4), (1, 2, 2)])
@pytest.mark.parametrize("refine", [False, True])
def test_decoder_gives_logits_of_every_voxel(token_size, refine):
    grid = (4, 6, 5)
    decoder = VolumeDecoder(
        VolumeDecoderSettings(
            inputs=8, levels=2, width=8, image_channels=2, outputs=3, token_size=token_size, refine=refine
        )
    )
    shape = tuple(n * t for n, t in zip(grid, token_size))
    logits = decoder([torch.randn(1, 8, *grid) for _ in range(2)], torch.randn(1, 2, *shape))
    assert logits.shape == (1, 3, *shape)


class Operations(TorchDispatchMode):
    """Notes what torch is asked for."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((8, 12, 6), (4, 3, 6)), ((5, 4, 4), (5, 4, 4)), ((14, 14), (7, 2)), ((14, 14), (6, 5))],
)
def test_means_of_areas_are_those_of_adaptive_pooling(size, wanted):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, requires_grad=True)
    found, expected = area_means(x, wanted), functional.interpolate(x, wanted, mode="area")
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-6)


def test_an_apple_gpu_is_asked_for_no_adaptive_pooling():
    """It has none in 3D, and in 2D only where the sizes divide."""
    decoder = VolumeDecoder(
        VolumeDecoderSettings(
            inputs=8, levels=1, width=8, image_channels=2, outputs=3, token_size=(4, 4, 2), refine=True
        )
    )
    encoder = VolumeEncoder(encoder_settings(patch_size=(16, 8, 16)))
    with Operations() as operations:
        decoder([torch.randn(1, 8, 2, 3, 4)], torch.randn(1, 2, 8, 12, 8)).sum().backward()
        encoder.position().sum().backward()
    assert "aten.mean.dim" in operations.names
    assert not [name for name in operations.names if "adaptive" in name]


def test_a_device_without_it_leaves_uneven_pooling_to_the_cpu(monkeypatch):
    """The CPU itself stands for an Apple GPU."""
    brought = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: brought.append(tuple(x.shape)) or x)
    table = torch.randn(1, 8, 14, 14)
    expected = area_means(table, (6, 5))
    assert brought == []
    monkeypatch.setattr(area, "WITHOUT_UNEVEN", ("cpu",))
    assert torch.equal(area_means(table, (6, 5)), expected)
    assert brought == [(1, 8, 14, 14)]


@pytest.mark.parametrize(("token_size", "word"), [((3, 4, 4), "token_size"), ((4, 4, 4), "divided")])
def test_tokens_that_do_not_fit_are_refused(token_size, word):
    with pytest.raises(SamunetError, match=word):
        VolumeEncoder(encoder_settings(patch_size=(18, 32, 24), token_size=token_size))
