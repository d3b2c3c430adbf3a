"""The two stages of `3d_adapter`, what each trains, and what its checkpoints leave out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import (
    CHANNELS,
    PATCH_3D,
    SilentReporter,
    make_configuration,
    make_plan,
    make_request,
    publish_weights,
    write_weights,
)

from samunet.errors import SamunetError
from samunet.inference.predictor import Predictor
from samunet.networks.sam.weights import read_weights
from samunet.trainers import get_trainer
from samunet.trainers.base import build_optimizer, config_of
from samunet.trainers.checkpoint import load_checkpoint, network_from_checkpoint
from samunet.trainers.entry import train_fold
from samunet.workspace import FINAL

METHOD = "3d_adapter"
FROZEN_PARTS = (
    ".attn.qkv.",
    ".attn.proj.",
    ".mlp.",
    "pos_embed",
    "patch_embed.proj",
    "rel_pos_h",
    "rel_pos_w",
)


def built(**settings):
    """Module and phases of a tiny configuration."""
    configuration = make_configuration(METHOD, settings=settings)
    plan, trainer = make_plan(configuration), get_trainer(METHOD)
    torch.manual_seed(0)
    module = trainer.build_training(trainer.build_network(plan, configuration), plan, configuration)
    return module, trainer.phases(config_of(configuration))


def trained_in(module, phase):
    build_optimizer(phase, module.network)
    return {name for name, p in module.network.named_parameters() if p.requires_grad}


def batch():
    torch.manual_seed(1)
    return {
        "image": torch.randn(2, CHANNELS, *PATCH_3D),
        "target": torch.randint(0, 3, (2, 1, *PATCH_3D), dtype=torch.int16),
    }


def test_the_generator_belongs_to_the_second_stage():
    module, (first, second) = built(epochs=10, first_stage=0.7)
    assert (first.epochs, second.epochs) == (7, 3)
    assert not any(name.startswith("generators") for name in trained_in(module, first))
    assert any(name.startswith("generators") for name in trained_in(module, second))
    module.enter_phase(first)
    assert not module.network.prompting
    module.enter_phase(second)
    assert module.network.prompting


def test_stages_train_what_autoprosam_trains():
    module, phases = built()
    for phase in phases:
        encoder = {name for name in trained_in(module, phase) if name.startswith("encoder.")}
        assert not [name for name in encoder if any(part in name for part in FROZEN_PARTS)]
        for part in ("adapter", "norm1", "norm2", "necks", "depth_embed", "patch_embed.slices", "rel_pos_d"):
            assert any(part in name for name in encoder), part


def test_a_bypassed_generator_has_no_say_in_the_logits():
    module, phases = built()
    network = module.network.eval()
    image = batch()["image"]
    with torch.no_grad():
        before = network(image)
        for parameter in network.generators.parameters():
            parameter.add_(1.0)
        assert torch.equal(network(image), before)
        module.enter_phase(phases[1])
        assert not torch.equal(network(image), before)


@pytest.mark.parametrize("settings", [{"stages": "one"}, {"generator": False}, {"epochs": 1}])
def test_a_single_stage(settings):
    module, phases = built(**settings)
    assert len(phases) == 1
    trained = trained_in(module, phases[0])
    if settings == {"stages": "one"}:
        assert module.network.prompting
        assert any(name.startswith("generators") for name in trained)
    else:
        assert not module.network.prompting


@pytest.mark.parametrize(
    ("settings", "levels"),
    [
        ({"apg_level": "first"}, {"0"}),
        ({"apg_level": "all"}, {"0", "1"}),
        ({"apg_level": "first", "aggregation": False}, {"1"}),
        ({"generator": False}, set()),
    ],
)
def test_every_trained_parameter_gets_a_gradient_in_every_variant(settings, levels):
    module, phases = built(encoder="full", encoder_weights="none", refine=True, **settings)
    assert set(module.network.generators) == levels
    for phase in phases:
        module.zero_grad(set_to_none=True)
        trained = trained_in(module, phase)
        module.enter_phase(phase)
        module(batch())["loss"].backward()
        without = {n for n, p in module.network.named_parameters() if n in trained and p.grad is None}
        unseen = set() if module.network.settings.aggregation else {n for n in trained if "necks.0" in n}
        assert without == unseen


def pretrained_request(root: Path, kind: str = "file", **settings):
    write_weights(root / "weights")
    short = {"epochs": 2, "iterations": 1, "val_iterations": 1, "encoder_weights": None, **settings}
    changes = {"encoder_weights": kind, "settings": short}
    return make_request(root, METHOD, configuration_changes=changes, weights_folder=root / "weights")


def test_checkpoints_leave_out_sams_tensors_and_nothing_else(tmp_path, monkeypatch):
    request = pretrained_request(tmp_path, "official")
    publish_weights(monkeypatch, tmp_path / "weights")
    outcome = train_fold(request, SilentReporter())
    stored = load_checkpoint(outcome.folder / FINAL)
    network = network_from_checkpoint(stored, tmp_path / "weights")
    left_out = set(network.state_dict()) - set(stored.network)
    assert left_out == {f"encoder.{key}" for key in network.encoder.sam_keys() if ".norm" not in key}
    weights = read_weights(next((tmp_path / "weights").iterdir()), "vit_micro").image_encoder
    state = network.state_dict()
    assert all(torch.equal(state[key], weights[key.removeprefix("encoder.")]) for key in left_out)
    with pytest.raises(SamunetError, match="not in it and not in"):
        network_from_checkpoint(stored, tmp_path / "nowhere")


def test_folds_keep_encoders_of_their_own(tmp_path):
    """Their adapters differ, so that one fold's encoder must not serve another's decoder."""
    request = pretrained_request(tmp_path)
    for fold in (0, 1):
        folder = request.folder.parent / f"fold_{fold}"
        changed = pretrained_request(tmp_path)
        train_fold(_with_fold(changed, fold, folder), SilentReporter())
    together = Predictor.load(request.folder.parent, device="cpu", weights_folder=tmp_path / "weights")
    alone = [
        Predictor.load(request.folder.parent, folds=(f,), device="cpu", weights_folder=tmp_path / "weights")
        for f in (0, 1)
    ]
    image = torch.randn(CHANNELS, *PATCH_3D).numpy()
    mean = sum(p.predict_preprocessed(image) for p in alone) / 2
    assert not together.shared_encoder
    assert torch.allclose(together.predict_preprocessed(image), mean, atol=1e-5)


def _with_fold(request, fold, folder):
    from dataclasses import replace

    return replace(request, fold=fold, folder=folder, seed=fold)
