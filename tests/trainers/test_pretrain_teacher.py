"""A teacher's embedding: what counts as learnt, and that a frozen encoder of any file can be one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from samunet.errors import SamunetError
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import weights_sha256
from samunet.networks.sam.weights import build_parts, read_any_weights
from samunet.networks.sam.weights_writer import whole_state, write_pair, write_weights
from samunet.networks.teacher import EmbeddingMatch
from samunet.trainers.pretrain_teacher import load_teacher


@pytest.fixture
def teacher_file(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    path = tmp_path / "somebodys.pth"
    write_weights(whole_state(build_parts(get_variant("vit_micro")), "vit_micro"), path)
    return path


def test_the_loss_is_one_for_the_mean_and_zero_for_the_teachers_own_embedding() -> None:
    torch.manual_seed(0)
    match, wanted = EmbeddingMatch(6, 6), 3 + 2 * torch.randn(2, 6, 4, 4)
    all_real = torch.ones(2, 4, 4, dtype=torch.bool)
    with torch.no_grad():
        match.to_teacher.weight.copy_(torch.eye(6)[..., None, None])
        match.to_teacher.bias.zero_()
    assert match(wanted, wanted, all_real).item() == pytest.approx(0, abs=1e-6)
    mean = wanted.mean((0, 2, 3), keepdim=True).expand_as(wanted)
    assert match(mean, wanted, all_real).item() == pytest.approx(1, abs=1e-4)


def test_grids_and_widths_may_differ() -> None:
    real = torch.ones(2, 4, 4, dtype=torch.bool)
    loss = EmbeddingMatch(8, 32)(torch.randn(2, 8, 4, 4), torch.randn(2, 32, 12, 12), real)
    assert torch.isfinite(loss)
    assert loss.ndim == 0


def test_pictures_are_brought_to_the_teachers_size_without_a_gradient(teacher_file: Path) -> None:
    teacher = load_teacher(teacher_file, 96, torch.device("cpu"))
    picture = torch.randn(2, 3, 64, 64, requires_grad=True)
    embedding = teacher.embed(picture)
    assert embedding.shape == (2, 32, 6, 6)
    assert not embedding.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.encoder.parameters())
    own = load_teacher(teacher_file, None, torch.device("cpu"))
    assert torch.allclose(own.embed(picture), own.encoder(picture), atol=1e-5)


def test_the_card_says_which_file_it_was(teacher_file: Path) -> None:
    card = load_teacher(teacher_file, None, torch.device("cpu")).card
    assert (card.name, card.variant, card.input_size) == ("somebodys.pth", "vit_micro", 64)
    assert card.sha256 == weights_sha256(teacher_file)
    assert card.licence == "unknown"


def test_files_of_any_variant_are_recognised(teacher_file: Path, tmp_path: Path) -> None:
    assert read_any_weights(teacher_file).variant.name == "vit_micro"
    state = torch.load(teacher_file, weights_only=True)
    assert read_any_weights(write_pair(state, tmp_path, "half")).variant.name == "vit_micro"
    write_weights({"image_encoder.pos_embed": torch.zeros(1, 2, 2, 5)}, tmp_path / "other.pth")
    with pytest.raises(SamunetError, match="Nothing was loaded"):
        read_any_weights(tmp_path / "other.pth")
