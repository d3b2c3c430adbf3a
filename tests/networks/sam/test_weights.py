"""Reading weights files: complete loading with counted keys, and every way a file can be wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from samunet.errors import SamunetError
from samunet.networks.autosam import build_autosam
from samunet.networks.cnn import build_cnn
from samunet.networks.picture import SliceSettings
from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import file_sha256, find_weights, weights_at_hand, weights_kind
from samunet.networks.sam.weights import (
    build_parts,
    expected_shapes,
    read_weights,
    tensors_sha256,
)
from samunet.networks.sam_slices import load_pretrained

MANIFESTS = Path(__file__).resolve().parents[4] / "shared" / "weights_manifest"


def settings(**changes: object) -> SliceSettings:
    values: dict[str, object] = {
        "variant": "vit_micro",
        "input_size": 64,
        "patch_size": (32, 32),
        "num_channels": 1,
        "num_outputs": 3,
        "display_window": ((0.0, 1.0),),
    }
    return SliceSettings(**{**values, **changes})  # type: ignore[arg-type]


def micro_state() -> dict[str, torch.Tensor]:
    parts = build_parts(get_variant("vit_micro"))
    generator = torch.Generator().manual_seed(0)
    return {
        f"{part}.{key}": torch.randn(value.shape, generator=generator)
        for part, module in parts.items()
        for key, value in module.state_dict().items()
    }


@pytest.fixture
def micro_file(tmp_path: Path) -> Path:
    path = tmp_path / "samunet_vit_micro.pth"
    torch.save(micro_state(), path)
    return path


def test_every_tensor_arrives_where_it_belongs(micro_file: Path) -> None:
    state = micro_state()
    network = build_autosam(settings())
    report = load_pretrained(network, micro_file)
    for key, value in network.encoder.state_dict().items():
        torch.testing.assert_close(value, state[f"image_encoder.{key}"])
    head = network.head.state_dict()
    matrix = "pe_layer.positional_encoding_gaussian_matrix"
    torch.testing.assert_close(head[matrix], state[f"prompt_encoder.{matrix}"])
    torch.testing.assert_close(head["no_mask_embed.weight"], state["prompt_encoder.no_mask_embed.weight"])
    for key, value in head.items():
        if key.startswith(("transformer.", "output_upscaling.", "output_hypernetworks_mlps.")):
            torch.testing.assert_close(value, state[f"mask_decoder.{key}"])
    noise = head["mask_tokens.weight"] - state["mask_decoder.mask_tokens.weight"][:1]
    assert 0 < noise.abs().max() < 0.15
    assert report.encoder + report.decoder + len(report.unused) == len(state)
    assert report.sha256 == file_sha256(micro_file)


def test_what_the_head_does_not_use_is_named(micro_file: Path) -> None:
    report = load_pretrained(build_autosam(settings()), micro_file)
    parts = (
        "point_embeddings",
        "not_a_point",
        "mask_downscaling",
        "hypernetworks_mlps",
        "iou_prediction_head",
    )
    assert all(any(part in key for part in parts) for key in report.unused)
    report = load_pretrained(build_cnn(settings()), micro_file)
    assert report.decoder == 0


def test_paper_compat_misses_what_the_public_code_misses(micro_file: Path) -> None:
    state = micro_state()
    network = build_autosam(settings(paper_compat=True))
    load_pretrained(network, micro_file)
    head = network.head.state_dict()
    matrix = "pe_layer.positional_encoding_gaussian_matrix"
    assert not torch.equal(head[matrix], state[f"prompt_encoder.{matrix}"])
    torch.testing.assert_close(
        head["output_hypernetworks_mlps.1.layers.0.weight"],
        state["mask_decoder.output_hypernetworks_mlps.1.layers.0.weight"],
    )


def test_another_input_size_is_loaded_with_resized_tables(micro_file: Path) -> None:
    network = build_cnn(settings(input_size=96))
    load_pretrained(network, micro_file)
    assert network.encoder.pos_embed.shape == (1, 6, 6, 32)
    assert network.encoder.blocks[1].attn.rel_pos_h.shape == (11, 16)


def test_another_head_width_keeps_its_own_start(micro_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report = load_pretrained(build_autosam(settings(), head_width=16), micro_file)
    assert report.decoder == 0
    assert "head_width 16" in caplog.text


def broken(state: dict[str, torch.Tensor], kind: str) -> object:
    if kind == "missing":
        return {key: value for key, value in state.items() if "blocks.1.attn" not in key}
    if kind == "unexpected":
        return {**state, "mask_decoder.hf_token.weight": torch.zeros(1)}
    if kind == "shape":
        return {**state, "image_encoder.pos_embed": torch.zeros(1, 8, 8, 32)}
    if kind == "wrapped":
        return {"model": state, "epoch": 3}
    if kind == "mobile":
        return {"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(1)}
    return [torch.zeros(1)]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", r"6 missing \(image_encoder.blocks.1.attn.* and 3 more\). Nothing was loaded"),
        ("unexpected", r"1 unexpected \(mask_decoder.hf_token.weight\)"),
        ("shape", r"1 of another shape \(image_encoder.pos_embed \[1, 8, 8, 32\] instead of \[1, 4, 4, 32\]"),
        ("wrapped", "a dictionary with the entries 'model', 'epoch'"),
        ("mobile", "MobileSAM"),
        ("list", "a list"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(tmp_path: Path, kind: str, said: str) -> None:
    path = tmp_path / "w.pth"
    torch.save(broken(micro_state(), kind), path)
    with pytest.raises(SamunetError, match=said) as caught:
        read_weights(path, "vit_micro")
    assert str(path) in str(caught.value)


def test_a_damaged_file_is_refused(micro_file: Path, tmp_path: Path) -> None:
    whole = micro_file.read_bytes()
    contents = {
        "cut": whole[: len(whole) // 2],
        "page": b"<html>",
        "empty": b"",
        "noise": bytes(range(256)) * 9,
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content)
        with pytest.raises(SamunetError, match="cut off"):
            read_weights(path, "vit_micro")


def test_a_cut_official_file_is_told_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "sam_vit_b_01ec64.pth"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(SamunetError, match=r"375,042,383.*samunet_download_weights vit_b"):
        read_weights(path, "vit_b")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"key": Path("x")}, path)
    with pytest.raises(SamunetError, match="something else than a file of tensors"):
        read_weights(path, "vit_micro")


def test_the_weights_of_another_variant_are_told(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(zero_state(expected_shapes("vit_tiny")), path)
    with pytest.raises(SamunetError, match="weights of vit_tiny, not of vit_b"):
        read_weights(path, "vit_b")


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(SamunetError, match="samunet_download_weights vit_b"):
        read_weights(tmp_path / "none.pth", "vit_b")


def zero_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A state dict without memory: every tensor is one zero, expanded."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore:.*to a meta parameter")
@pytest.mark.parametrize("variant", ["vit_b", "vit_l"])
def test_official_files_are_consumed_completely(
    variant: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = json.loads((MANIFESTS / f"sam_{variant}.json").read_text())
    state = zero_state({key: tuple(shape) for key, (shape, _) in listed.items()})
    path = tmp_path / "finetuned.pth"
    torch.save(state, path)
    with torch.device("meta"):
        network = build_autosam(settings(variant=variant, input_size=224))
    with caplog.at_level(logging.WARNING):
        report = load_pretrained(network, path)
    assert "is not the official file" in caplog.text
    assert report.encoder == sum(key.startswith("image_encoder.") for key in listed)
    assert report.encoder + report.decoder + len(report.unused) == len(listed)
    assert not any("gaussian_matrix" in key or "no_mask_embed" in key for key in report.unused)


@pytest.mark.real_data
def test_mobile_sams_file_is_refused_by_name(tmp_path: Path) -> None:
    listed = json.loads((MANIFESTS / "mobile_sam_vit_t.json").read_text())
    path = tmp_path / "mobile_sam.pt"
    torch.save(zero_state({key: tuple(shape) for key, (shape, _) in listed.items()}), path)
    with pytest.raises(SamunetError, match="MobileSAM"):
        read_weights(path, "vit_b")


def test_weights_are_found_by_name(tmp_path: Path) -> None:
    assert find_weights(tmp_path / "absent", "vit_b") is None
    (tmp_path / "notes_vit_b.txt").touch()
    assert weights_at_hand(tmp_path) == {}
    fine_tuned = tmp_path / "medsam_vit_b.pth"
    fine_tuned.touch()
    assert find_weights(tmp_path, "vit_b") == fine_tuned
    assert weights_kind(fine_tuned, "vit_b") == "file"
    (tmp_path / "other_vit_b.pth").touch()
    with pytest.raises(SamunetError, match=r"medsam_vit_b.pth, other_vit_b.pth"):
        find_weights(tmp_path, "vit_b")
    official = tmp_path / "sam_vit_b_01ec64.pth"
    official.touch()
    (tmp_path / "samunet_vit_tiny.pth").touch()
    assert find_weights(tmp_path, "vit_b") == official
    assert {name: weights_kind(path, name) for name, path in weights_at_hand(tmp_path).items()} == {
        "vit_b": "official",
        "vit_tiny": "file",  # by content, not by name
    }


def test_the_hash_of_tensors_tells_every_change() -> None:
    encoder = SamImageEncoder(get_variant("vit_micro"))
    state = dict(encoder.state_dict())
    original = tensors_sha256(state)
    assert tensors_sha256(dict(reversed(state.items()))) == original
    assert tensors_sha256({**state, "pos_embed": state["pos_embed"] + 1e-7}) != original
    assert tensors_sha256({**state, "pos_embed": state["pos_embed"].reshape(4, 4, 32)}) != original
    assert tensors_sha256({"a": torch.zeros(2, dtype=torch.bfloat16)}) != tensors_sha256(
        {"a": torch.zeros(1)}
    )
