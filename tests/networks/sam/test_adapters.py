"""Adapters in a frozen 2D encoder: they start as nothing, travel with the state dict, alone are trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from samunet.networks.sam.adapters import (
    Adapter,
    adapter_width,
    add_adapters,
    has_adapters,
    is_adapter_key,
)
from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import file_has_adapters
from samunet.networks.sam.weights import build_parts, expected_shapes
from samunet.networks.sam.weights_writer import write_pair, write_weights

MICRO = get_variant("vit_micro")


def moved(encoder: SamImageEncoder) -> SamImageEncoder:
    """With adapters that do something."""
    for name, parameter in encoder.named_parameters():
        if is_adapter_key(name):
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder


@pytest.mark.parametrize("size", [64, 48])
def test_new_adapters_change_nothing(size: int) -> None:
    """Exactly, also where windows are padded (48 pixels are 3 tokens, a window has 2)."""
    torch.manual_seed(0)
    encoder = SamImageEncoder(MICRO, size).eval()
    picture = torch.randn(2, 3, size, size)
    before = encoder(picture)
    add_adapters(encoder)
    assert torch.equal(encoder(picture), before)
    assert not torch.allclose(moved(encoder)(picture), before, atol=1e-3)


def test_the_published_size() -> None:
    """Medical SAM Adapter's code has 295,872 parameters an adapter with ViT-B."""
    assert sum(p.numel() for p in Adapter(768, 192).parameters()) == 295_872


@torch.no_grad()
def test_the_state_dict_brings_them_along() -> None:
    torch.manual_seed(1)
    encoder = SamImageEncoder(MICRO).eval()
    add_adapters(encoder, 5)
    state = moved(encoder).state_dict()
    assert adapter_width(state) == 5
    found = {f"image_encoder.{key}": tuple(value.shape) for key, value in state.items()}
    expected = expected_shapes("vit_micro", 5)
    assert found == {key: shape for key, shape in expected.items() if key.startswith("image_encoder.")}
    assert sum(map(is_adapter_key, found)) == 8 * MICRO.depth
    assert found["image_encoder.blocks.0.mlp_adapter.down.weight"] == (5, MICRO.width)
    assert found["image_encoder.blocks.1.attention_adapter.up.weight"] == (MICRO.width, 5)

    other = SamImageEncoder(MICRO).eval().requires_grad_(False)
    other.load_tables(state)
    picture = torch.randn(1, 3, 64, 64)
    assert torch.equal(other(picture), encoder(picture))
    assert not any(p.requires_grad for p in other.parameters())  # they are frozen where the encoder is

    around = torch.nn.ModuleDict({"encoder": SamImageEncoder(MICRO)})
    around.load_state_dict({f"encoder.{key}": value for key, value in state.items()})
    assert has_adapters(around["encoder"])
    assert torch.equal(around["encoder"].eval()(picture), encoder(picture))


def test_only_they_get_gradients_in_a_frozen_encoder() -> None:
    encoder = SamImageEncoder(MICRO).requires_grad_(False)
    add_adapters(encoder)
    for name, parameter in moved(encoder).named_parameters():
        parameter.requires_grad_(is_adapter_key(name))
    encoder(torch.randn(1, 3, 64, 64)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == is_adapter_key(name), name


@pytest.mark.parametrize("adapted", [False, True])
def test_a_files_names_tell_whether_it_has_adapters(adapted: bool, tmp_path: Path) -> None:
    parts = build_parts(MICRO)
    if adapted:
        add_adapters(parts["image_encoder"])
    state = {f"{part}.{key}": v for part, module in parts.items() for key, v in module.state_dict().items()}
    write_weights(state, tmp_path / "mine.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    files = [tmp_path / "mine.pth", tmp_path / "old.pth", write_pair(state, tmp_path / "pair", "mine")]
    assert [file_has_adapters(file) for file in files] == [adapted] * 3


def test_what_is_no_weights_file_has_none(tmp_path: Path) -> None:
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("blocks")
        assert not file_has_adapters(tmp_path / name)
    assert not file_has_adapters(tmp_path / "absent.pth")
