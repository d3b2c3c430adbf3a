"""The encoder against the package's own at random weights, sizes, attention paths."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from samunet.errors import SamunetError
from samunet.networks.sam import attention
from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.package import modeling
from samunet.networks.sam.variants import VARIANTS, SamVariant, get_variant

SMALL = SamVariant(
    name="small",
    width=64,
    depth=4,
    heads=2,
    global_blocks=(1, 3),
    window=4,
    native_size=128,
    input_size=128,
    prompt_dim=24,
)


def package_encoder(variant: SamVariant, size: int) -> nn.Module:
    return modeling.ImageEncoderViT(
        img_size=size,
        embed_dim=variant.width,
        depth=variant.depth,
        num_heads=variant.heads,
        out_chans=variant.prompt_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=variant.window,
        global_attn_indexes=variant.global_blocks,
    ).eval()


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter weight, the zero-initialised position tables too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def picture(size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pair() -> tuple[nn.Module, SamImageEncoder]:
    theirs = package_encoder(SMALL, 128)
    randomise(theirs)
    ours = SamImageEncoder(SMALL).eval()
    ours.load_tables(theirs.state_dict())
    return theirs, ours


def test_same_names_and_same_output_as_the_package(pair: tuple[nn.Module, SamImageEncoder]) -> None:
    theirs, ours = pair
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(picture(128)), theirs(picture(128)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [64, 80, 176])
def test_another_input_size_equals_the_package_with_resized_positions(
    pair: tuple[nn.Module, SamImageEncoder], size: int
) -> None:
    theirs, original = pair
    ours = SamImageEncoder(SMALL, size).eval()
    ours.load_tables(original.state_dict())
    table = functional.interpolate(theirs.pos_embed.detach().permute(0, 3, 1, 2), size // 16, mode="bicubic")
    theirs.pos_embed = nn.Parameter(table.permute(0, 2, 3, 1))
    with torch.no_grad():  # the package resizes the relative tables of the global blocks in every step
        torch.testing.assert_close(ours(picture(size)), theirs(picture(size)), atol=1e-4, rtol=0)


def test_gradients_equal_the_packages(pair: tuple[nn.Module, SamImageEncoder]) -> None:
    theirs, ours = pair
    for encoder in (theirs, ours):
        encoder(picture(128)).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-3, msg=name)


def test_both_attention_paths_agree() -> None:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    query, key, value = (draw(2, 3, 4 * 6, 8) for _ in range(3))
    rows, columns = draw(2, 3, 24, 4), draw(2, 3, 24, 6)
    masked = attention._masked(query, key, value, rows, columns)
    widened = attention._widened(query, key, value, rows, columns)
    torch.testing.assert_close(masked, widened, atol=1e-6, rtol=1e-5)


def test_checkpointing_changes_nothing_but_memory(pair: tuple[nn.Module, SamImageEncoder]) -> None:
    _, ours = pair
    ours(picture(128)).square().mean().backward()
    plain = {name: parameter.grad.clone() for name, parameter in ours.named_parameters()}
    ours.zero_grad()
    ours.checkpointing = True
    ours(picture(128)).square().mean().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name])


def test_levels_hand_out_block_outputs_and_the_neck(pair: tuple[nn.Module, SamImageEncoder]) -> None:
    _, ours = pair
    first, third, neck = ours.levels(picture(128), blocks=(0, 2))
    assert first.shape == third.shape == (2, 64, 8, 8)
    assert neck.shape == (2, 24, 8, 8)


@pytest.mark.parametrize("size", [100, 0, -16])
def test_a_size_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(SamunetError, match="multiple of 16"):
        SamImageEncoder(SMALL, size)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vit_b", 89_670_912), ("vit_l", 308_278_272), ("vit_h", 637_026_048)],
)
def test_official_variants_have_sams_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        encoder = SamImageEncoder(get_variant(name))
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_vit_tiny_has_about_six_million_parameters_and_no_padding_tokens() -> None:
    variant = get_variant("vit_tiny")
    encoder = SamImageEncoder(variant)
    assert 5.5e6 < sum(p.numel() for p in encoder.parameters()) < 6.5e6
    assert encoder.grid == variant.window == 14


@pytest.mark.parametrize("name", ["vit_t", "mobile_sam"])
def test_mobile_sam_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(SamunetError, match="MobileSAM"):
        get_variant(name)


def test_an_unknown_encoder_lists_the_known_ones() -> None:
    with pytest.raises(SamunetError, match="Did you mean") as caught:
        get_variant("vit_big")
    assert "vit_b" in str(caught.value)
    assert "micro" not in str(caught.value)


def test_global_blocks_exist() -> None:
    for variant in VARIANTS.values():
        assert set(variant.global_blocks) <= set(range(variant.depth))
