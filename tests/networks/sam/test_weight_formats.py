"""Files of our own weights: safetensors whole or in pairs, cards, names, and what the package ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import make_configuration, make_plan
from torch import Tensor

from samunet.errors import SamunetError
from samunet.networks.sam import weight_files
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import (
    file_sha256,
    find_weights,
    named_weights,
    weights_at_hand,
    weights_kind,
    weights_sha256,
)
from samunet.networks.sam.weights import build_parts, read_weights
from samunet.networks.sam.weights_card import CardSource, WeightsCard, card_file, read_card, write_card
from samunet.networks.sam.weights_writer import whole_state, write_pair, write_weights
from samunet.planning.plan import Configuration, Forecast, Plan, WeightsUsed
from samunet.records import from_data, to_data
from samunet.trainers import encoder_weights
from samunet.trainers.base import PretrainedFile
from samunet.trainers.checkpoint import BaseWeights, find_base_weights
from samunet.trainers.encoder_weights import _describe, check_planned, find_pretrained, starting_words

VARIANT = "vit_micro"
STEM = f"samunet_{VARIANT}"


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return whole_state(build_parts(get_variant(VARIANT)), VARIANT)


@pytest.fixture
def shipped(tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "package"
    monkeypatch.setattr(weight_files, "SHIPPED", folder)
    return write_pair(state, folder, STEM)


def read(path: Path) -> dict[str, Tensor]:
    weights = read_weights(path, VARIANT)
    return {
        f"{part}.{key}": tensor
        for part in ("image_encoder", "prompt_encoder", "mask_decoder")
        for key, tensor in getattr(weights, part).items()
    }


def test_one_pth_gives_every_tensor_back(tmp_path: Path, state: dict[str, Tensor]) -> None:
    write_weights(state, tmp_path / "w.pth")
    again = read(tmp_path / "w.pth")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_the_network_loaded_from_a_file_gives_the_same_output(tmp_path: Path) -> None:
    torch.manual_seed(1)
    parts = build_parts(get_variant(VARIANT))
    write_weights(whole_state(parts, VARIANT), tmp_path / "w.pth")
    other = build_parts(get_variant(VARIANT))
    other["image_encoder"].load_state_dict(read_weights(tmp_path / "w.pth", VARIANT).image_encoder)
    size = get_variant(VARIANT).native_size
    picture = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = parts["image_encoder"].eval()(picture)
        assert torch.equal(other["image_encoder"].eval()(picture), expected)


def test_a_pair_is_half_precision_on_disk_and_float32_when_read(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    encoder = write_pair(state, tmp_path, STEM)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{STEM}_decoder.safetensors",
        f"{STEM}_encoder.safetensors",
    ]
    again = read(encoder)
    assert again.keys() == state.keys()
    for key, tensor in again.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[key].half().float())


def test_the_hash_of_a_pair_covers_both_files(tmp_path: Path, state: dict[str, Tensor]) -> None:
    encoder = write_pair(state, tmp_path, STEM)
    before, of_encoder = weights_sha256(encoder), file_sha256(encoder)
    key = next(key for key in state if key.startswith("mask_decoder."))
    write_pair({**state, key: state[key] + 1}, tmp_path, STEM)
    assert file_sha256(encoder) == of_encoder
    assert weights_sha256(encoder) != before
    assert read_weights(encoder, VARIANT).sha256 == weights_sha256(encoder)


def test_faults_of_a_pair_are_told(tmp_path: Path, state: dict[str, Tensor]) -> None:
    encoder = write_pair(state, tmp_path, STEM)
    decoder = encoder.with_name(f"{STEM}_decoder.safetensors")
    with pytest.raises(SamunetError, match="name the encoder's file"):
        read_weights(decoder, VARIANT)
    whole = decoder.read_bytes()
    decoder.write_bytes(whole[:-8])
    with pytest.raises(SamunetError, match=r"decoder.safetensors cannot be read as safetensors"):
        read_weights(encoder, VARIANT)
    decoder.write_bytes(encoder.read_bytes())
    with pytest.raises(SamunetError, match="both hold"):
        read_weights(encoder, VARIANT)
    decoder.unlink()
    with pytest.raises(SamunetError, match=r"decoder.safetensors is not beside it"):
        read_weights(encoder, VARIANT)


def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    key = next(iter(state))
    with pytest.raises(SamunetError, match="half precision"):
        write_pair({**state, key: torch.full_like(state[key], 1e6)}, tmp_path, STEM)
    assert not list(tmp_path.iterdir())


def test_shipped_weights_are_found_last(tmp_path: Path, shipped: Path, state: dict[str, Tensor]) -> None:
    folder = tmp_path / "weights"
    assert find_weights(folder, VARIANT) == find_weights(None, VARIANT) == shipped
    assert weights_kind(shipped, VARIANT) == "shipped"
    assert weights_at_hand(folder) == {VARIANT: shipped}
    own = folder / f"mine_{VARIANT}.pth"
    write_weights(state, own)
    assert find_weights(folder, VARIANT) == own
    assert weights_at_hand(folder) == {VARIANT: own}
    own.unlink()
    assert find_weights(folder, VARIANT, shipped=False) is None  # a folder that was named is taken alone


def test_without_shipped_files_nothing_is_at_hand(tmp_path: Path) -> None:
    assert find_weights(tmp_path / "weights", VARIANT) is None
    assert weights_at_hand(None) == {}


def test_weights_of_the_package_are_kept_in_checkpoints_and_found_again(
    tmp_path: Path, shipped: Path, state: dict[str, Tensor]
) -> None:
    described = _describe(shipped, VARIANT, tmp_path / "weights")
    assert (described.kind, described.retrievable) == ("shipped", False)  # the next release may have others
    base = BaseWeights(variant=VARIANT, file=shipped.name, sha256=described.sha256, prefix="encoder.")
    other = {key: tensor + 1 for key, tensor in state.items()}
    write_pair(other, tmp_path / "weights", STEM)
    assert find_base_weights(base, tmp_path / "weights") == shipped
    assert find_base_weights(base, None) == shipped
    with pytest.raises(SamunetError, match="is not the file"):
        find_base_weights(replace(base, sha256="0" * 64), None)
    assert find_base_weights(replace(base, file="renamed.pth"), None) == shipped  # by its content
    with pytest.raises(SamunetError, match="not in it and not"):
        find_base_weights(replace(base, file="none.pth", sha256="0" * 64), None)


def test_a_name_means_weights_of_the_folder(tmp_path: Path, state: dict[str, Tensor]) -> None:
    write_weights(state, tmp_path / "first.pth")
    encoder = write_pair(state, tmp_path, "second")
    assert named_weights(tmp_path, Path("first")) == tmp_path / "first.pth"
    assert named_weights(tmp_path, Path("first.pth")) == tmp_path / "first.pth"
    assert named_weights(tmp_path, Path("second")) == encoder
    assert named_weights(tmp_path, Path("set")) == Path("set")
    (tmp_path / "set_fp16").mkdir()
    assert named_weights(tmp_path, Path("set")) == tmp_path / "set_fp16"
    (tmp_path / "set").mkdir()
    assert named_weights(tmp_path, Path("set")) == tmp_path / "set"
    for unknown in (Path("third"), Path("elsewhere/first")):
        assert named_weights(tmp_path, unknown) == unknown


def test_shipped_weights_have_names_too(tmp_path: Path, shipped: Path, state: dict[str, Tensor]) -> None:
    for name in (VARIANT, STEM):
        assert named_weights(tmp_path, Path(name)) == shipped
    write_weights(state, tmp_path / f"mine_{VARIANT}.pth")
    assert named_weights(tmp_path, Path(VARIANT)) == tmp_path / f"mine_{VARIANT}.pth"  # as a plan would take
    assert named_weights(tmp_path, Path(STEM)) == shipped


def test_weights_other_than_planned_are_refused(
    tmp_path: Path, shipped: Path, state: dict[str, Tensor]
) -> None:
    planned = Configuration(
        name="2d_cnn",
        method="2d_cnn",
        data="2d",
        patch_size=(32, 32),
        batch_size=2,
        mirror_axes=(0, 1),
        encoder=VARIANT,
        encoder_weights="file",
        forecast=Forecast(memory_gb=1, step_seconds=1, train_hours=1, cache_gb=0, parameters=1, trainable=1),
    )

    def found(weights: Path | None = None) -> PretrainedFile:
        used = find_pretrained(planned, "frozen", None, weights, tmp_path)
        assert used is not None
        return used

    with pytest.raises(
        SamunetError, match=r"starts from a user's weights .* holds the shipped. .* -w, or plan"
    ):
        found()
    assert found(shipped).kind == "shipped"
    named = tmp_path / "named"
    named.mkdir()
    with pytest.raises(SamunetError, match=f"there are none in {named}"):
        found(named)
    own = tmp_path / f"mine_{VARIANT}.pth"
    write_weights({key: tensor + 1 for key, tensor in state.items()}, own)
    used = found()
    assert used.path == own
    assert f"{VARIANT}: a user's weights, {own} (SHA-256 {used.sha256[:12]}" in starting_words(planned, used)
    assert "nothing pretrained" in starting_words(planned, None)


def test_weights_of_other_content_than_planned_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    file = tmp_path / f"mine_{VARIANT}.pth"
    write_weights(state, file)
    used = WeightsUsed(kind="file", file=file.name, sha256=weights_sha256(file))
    plan = replace(make_plan(make_configuration("2d_cnn", encoder=VARIANT)), weights={VARIANT: used})
    again = from_data(Plan, to_data(plan))
    assert again == plan
    assert from_data(Plan, {k: v for k, v in to_data(plan).items() if k != "weights"}).weights == {}
    check_planned(plan, "2d_cnn", _describe(file, VARIANT, tmp_path), None)
    write_weights({key: tensor + 1 for key, tensor in state.items()}, file)
    other = _describe(file, VARIANT, tmp_path)
    with pytest.raises(SamunetError, match=rf"{file.name} \(SHA-256 {used.sha256[:12]}.* other content"):
        check_planned(plan, "2d_cnn", other, None)
    check_planned(plan, "2d_cnn", other, file)  # the user means it
    named = replace(plan, overrides={"weights": str(file)})
    with pytest.raises(SamunetError, match=other.sha256[:12]):
        check_planned(named, "2d_cnn", other, file)


def test_the_card_goes_with_its_weights(tmp_path: Path, state: dict[str, Tensor]) -> None:
    encoder = write_pair(state, tmp_path, STEM)
    assert read_card(encoder) is None
    card = WeightsCard(
        variant=VARIANT,
        sha256=weights_sha256(encoder),
        sources=(CardSource(name="procedural", licence="CC0-1.0", images=None, share=1.0),),
        excluded={"Dataset004_HaN_CT": 24},
        objectives={"mae": 1.0},
        steps=10,
        batch=8,
        seed=0,
        seconds=1.5,
        settings={"learning_rate": 1e-3},
        validation={"loss": 0.5},
        hardware={"device": "cpu"},
        versions={"torch": "2"},
    )
    assert write_card(encoder, card) == card_file(encoder) == tmp_path / f"{STEM}_card.json"
    assert read_card(encoder) == card
    write_pair({key: tensor + 1 for key, tensor in state.items()}, tmp_path, STEM)
    with pytest.raises(SamunetError, match="describes other weights"):
        read_card(encoder)


def test_an_official_file_that_the_folder_links_to_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that users of a machine share; what is elsewhere may be gone when a model is used."""
    official = get_variant("vit_b").official
    assert official is not None
    elsewhere, folder = tmp_path / "shared" / "sam.pth", tmp_path / "weights"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    folder.mkdir()
    (folder / "sam.pth").symlink_to(elsewhere)
    monkeypatch.setattr(encoder_weights, "weights_sha256", lambda path: official.sha256)
    monkeypatch.setattr(encoder_weights, "weights_kind", lambda path, variant: "official")
    assert _describe(folder / "sam.pth", "vit_b", folder).retrievable
    assert not _describe(elsewhere, "vit_b", folder).retrievable
