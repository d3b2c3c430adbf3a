"""Safetensors files: the same as the library's, refused when damaged; those of the package are found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from samunet.errors import SamunetError
from samunet.networks.promptable import PromptableSam
from samunet.networks.sam import weight_files
from samunet.networks.sam.tensor_files import read_tensors, write_sam_pair, write_tensors
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import file_sha256, find_weights, weights_at_hand, weights_kind
from samunet.networks.sam.weights import read_weights
from samunet.trainers.checkpoint import BaseWeights, find_base_weights

TENSORS = {
    "half": torch.randn(3, 5).half(),
    "brain": torch.randn(7).bfloat16(),
    "whole": torch.arange(6).view(2, 3),
    "plain": torch.randn(2, 2, 2),
    "number": torch.tensor(3.5),
    "none": torch.zeros(0, 4),
}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return PromptableSam(get_variant("vit_micro")).state_dict()


@pytest.fixture
def pair(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    return write_sam_pair(tmp_path / "w" / "samunet_vit_micro_encoder.safetensors", state, {"a": "b"})[0]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", TENSORS, {"made": "here"})
    found = read_tensors(tmp_path / "x.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert torch.equal(found[name], value.float() if value.is_floating_point() else value)
        assert found[name].shape == value.shape


def test_the_library_reads_and_writes_the_same(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    write_tensors(tmp_path / "ours.safetensors", TENSORS, {"made": "here"})
    theirs = library.load_file(tmp_path / "ours.safetensors")
    assert all(torch.equal(theirs[name], value) for name, value in TENSORS.items())
    library.save_file(TENSORS, tmp_path / "theirs.safetensors")
    found = read_tensors(tmp_path / "theirs.safetensors")
    assert all(torch.equal(found[name], value.to(found[name].dtype)) for name, value in TENSORS.items())


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "else"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {})
    content = path.read_bytes()
    changed = {
        "cut": content[:-3],
        "header": content.replace(b'"dtype":"F16"', b'"dtype":"Q16"'),
        "empty": b"",
        "else": b"PK\x03\x04" + bytes(200),
    }
    path.write_bytes(changed[damage])
    with pytest.raises(SamunetError, match="cannot be read as safetensors"):
        read_tensors(path)


def test_a_pair_is_a_whole_sam(pair: Path, state: dict[str, torch.Tensor]) -> None:
    weights = read_weights(pair, "vit_micro")
    assert weights.sha256 == file_sha256(pair)
    for part in ("image_encoder", "prompt_encoder", "mask_decoder"):
        for name, value in getattr(weights, part).items():
            assert value.dtype == torch.float32
            assert torch.equal(value, state[f"{part}.{name}"].half().float())


def test_a_pair_without_its_decoder_or_of_another_network_is_refused(pair: Path) -> None:
    with pytest.raises(SamunetError, match="holds the weights of vit_micro"):
        read_weights(pair, "vit_tiny")
    (pair.parent / "samunet_vit_micro_decoder.safetensors").unlink()
    with pytest.raises(SamunetError, match="decoder that belongs to it"):
        read_weights(pair, "vit_micro")


def test_values_too_large_for_fp16_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    large = {**state, "image_encoder.pos_embed": state["image_encoder.pos_embed"] + 1e6}
    with pytest.raises(SamunetError, match="pos_embed"):
        write_sam_pair(tmp_path / "x_encoder.safetensors", large, {})
    assert not list(tmp_path.iterdir())


def test_weights_inside_the_package_come_after_the_users(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    assert find_weights(empty, "vit_micro") is None
    monkeypatch.setattr(weight_files, "SHIPPED", pair.parent)
    assert find_weights(empty, "vit_micro") == pair
    assert weights_kind(pair, "vit_micro") == "shipped"
    assert weights_at_hand(empty) == {"vit_micro": "shipped"}
    empty.mkdir()
    own = empty / "samunet_vit_micro.pth"
    own.touch()
    assert find_weights(empty, "vit_micro") == own


def test_a_pair_in_the_users_folder_is_found_as_one_file(pair: Path) -> None:
    assert find_weights(pair.parent, "vit_micro") == pair
    assert weights_kind(pair, "vit_micro") == "file"


def test_prediction_finds_frozen_weights_inside_the_package(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samunet.trainers import checkpoint

    monkeypatch.setattr(checkpoint, "SHIPPED", pair.parent)
    base = BaseWeights(variant="vit_micro", file=pair.name, sha256=file_sha256(pair), prefix="encoder.")
    assert find_base_weights(base, None) == pair
