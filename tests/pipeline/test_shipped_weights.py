"""Weights of the package from plan to checkpoint, and weights that are named on the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import CHANNELS, PATCH_2D, SilentReporter, make_request

from samunet.cli import plan_and_preprocess, plan_experiment
from samunet.networks.sam import weight_files
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import weights_sha256
from samunet.networks.sam.weights import build_parts
from samunet.networks.sam.weights_card import WeightsCard, write_card
from samunet.networks.sam.weights_writer import whole_state, write_pair, write_weights
from samunet.trainers.checkpoint import load_checkpoint, network_from_checkpoint
from samunet.trainers.entry import train_fold
from samunet.trainers.identity import read_run
from samunet.workspace import FINAL


def ship(folder: Path, variant: str, patch: pytest.MonkeyPatch) -> Path:
    """Put random weights where those of the package would lie."""
    patch.setattr(weight_files, "SHIPPED", folder)
    torch.manual_seed(0)
    state = whole_state(build_parts(get_variant(variant)), variant)
    return write_pair(state, folder, f"samunet_{variant}")


def test_a_run_on_shipped_weights_records_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ship(tmp_path / "package", "vit_micro", monkeypatch)
    short = {"epochs": 1, "iterations": 2, "val_iterations": 1, "encoder_weights": None}
    changes = {"encoder_weights": "shipped", "settings": short}
    request = make_request(tmp_path, "2d_cnn", configuration_changes=changes)
    request = replace(request, weights_folder=tmp_path / "none")
    folder = train_fold(request, SilentReporter()).folder
    record, stored = read_run(folder), load_checkpoint(folder / FINAL)
    assert record is not None
    assert record.weights is not None
    assert (record.weights.kind, record.weights.file) == ("shipped", file.name)
    assert record.weights.sha256 == weights_sha256(file)
    assert any(name.startswith("encoder.") for name in stored.network)  # another release may bring others
    used = stored.plan.weights["vit_micro"]
    assert (used.kind, used.file, used.sha256) == ("shipped", file.name, record.weights.sha256)
    network = network_from_checkpoint(stored, tmp_path / "none")
    with torch.no_grad():
        assert torch.isfinite(network(torch.randn(1, CHANNELS, *PATCH_2D))).all()


def test_plans_name_shipped_and_given_weights(
    tiny_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["-d", "901", "--workspace", str(tiny_copy)]
    assert plan_and_preprocess.main([*where, "--no_pp", "-np", "1"]) == 0
    assert "vit_tiny, shipped" not in capsys.readouterr().out
    file = ship(tmp_path / "package", "vit_tiny", monkeypatch)
    assert plan_experiment.main([*where, "--explain"]) == 0
    assert "vit_tiny, shipped" in capsys.readouterr().out
    given = tiny_copy / "weights" / "mine.pth"
    write_weights(whole_state(build_parts(get_variant("vit_tiny")), "vit_tiny"), given)
    monkeypatch.delenv("SAMUNET_WEIGHTS", raising=False)
    assert plan_experiment.main([*where, "--explain", "-w", "mine"]) == 2
    assert "-encoder" in capsys.readouterr().err
    write_card(given, card(weights_sha256(given)))
    assert plan_experiment.main([*where, "--explain", "-w", "mine"]) == 0
    assert "vit_tiny, file" in capsys.readouterr().out
    write_card(file, card(weights_sha256(file)))
    given.write_bytes(file.read_bytes())
    assert plan_experiment.main([*where, "--explain", "-w", "mine"]) == 2
    assert "describes other weights" in capsys.readouterr().err
    assert plan_experiment.main([*where, "--explain", "-w", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


def test_a_folder_of_weights_is_taken_alone(
    tiny_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SAMUNET_WEIGHTS", raising=False)
    ship(tmp_path / "package", "vit_tiny", monkeypatch)
    folder = tiny_copy / "weights" / "pair_fp16"
    torch.manual_seed(1)
    state = whole_state(build_parts(get_variant("vit_tiny")), "vit_tiny")
    pair = write_pair(state, folder, "pair")
    write_card(pair, card(weights_sha256(pair)))

    def explained(given: str | Path) -> tuple[int, str]:
        words = ["-d", "901", "--workspace", str(tiny_copy), "--explain", "-w", str(given)]
        code = plan_experiment.main(words)
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    for given in (folder, "pair_fp16", "pair"):
        code, told = explained(given)
        assert code == 0, told
        assert f"You set weights: {pair}" in told
        assert "vit_tiny, file" in told
        assert "shipped" not in told
        assert f"Weights of vit_tiny: {pair.name} (SHA-256 {weights_sha256(pair)[:12]}...)" in told
    write_pair(state, folder, "other")
    for given in (folder, "pair"):
        code, told = explained(given)
        assert code == 2
        assert "several weights files" in told
        assert "other_encoder.safetensors, pair_encoder.safetensors" in told
    (tmp_path / "empty").mkdir()
    code, told = explained(tmp_path / "empty")
    assert code == 2
    assert "holds no weights file" in told
    write_pair(state, folder, "samunet_vit_b")  # a folder of named files has what they are named after
    code, told = explained(folder)
    assert code == 0, told
    assert "Weights of vit_b:" in told
    assert "Weights of vit_tiny" not in told
    assert not [word for word in ("file", "shipped", "none") if f"vit_tiny, {word}" in told]


def card(sha256: str) -> WeightsCard:
    return WeightsCard(
        variant="vit_tiny",
        sha256=sha256,
        sources=(),
        excluded={},
        objectives={"mae": 1.0},
        steps=1,
        batch=1,
        seed=0,
        seconds=0.0,
        settings={},
        validation={},
        hardware={},
        versions={},
    )
