"""What every registered method must do; a new method is tested because it exists."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import CHANNELS, CLASSES, REGIONS, SilentReporter, make_configuration, make_plan, make_request
from torch import nn

from samunet.data.labels import LabelSet
from samunet.inference.predictor import Predictor
from samunet.planning.methods import build_config, get_method, list_methods
from samunet.planning.plan import Configuration
from samunet.records import from_data, to_data
from samunet.trainers import get_trainer
from samunet.trainers.base import TrainingModule, build_optimizer, config_of
from samunet.trainers.batches import PatchSource
from samunet.trainers.checkpoint import (
    Checkpoint,
    load_checkpoint,
    network_from_checkpoint,
    network_state,
    save_checkpoint,
)
from samunet.trainers.devices import Precision
from samunet.trainers.entry import train_fold
from samunet.trainers.run import RunRequest, source_settings
from samunet.trainers.sampling import Batching, Position, batch_keys
from samunet.workspace import FINAL

OUTSIDE = "examples.small_fcn"
METHODS = [*(name for name in sorted(list_methods()) if "." not in name), OUTSIDE]
SAM = [name for name in METHODS if get_method(name).uses_encoder]
CACHED = [name for name in SAM if get_trainer(name).cacheable(get_method(name).config())]
SHORT = {"epochs": 2, "iterations": 2, "val_iterations": 1}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def batches_of(folder: Path, method: str, labels: LabelSet, count: int) -> list[dict[str, torch.Tensor]]:
    """The first training batches of a run."""
    request = make_request(folder, method, labels)
    configuration = request.plan.configuration(method)
    config = config_of(configuration)
    source = PatchSource(source_settings(request, request.plan, configuration, config, 0))
    phases = [replace(get_trainer(method).phases(config)[0], iterations=count)]
    batching = Batching(size=configuration.batch_size, oversample=0.33)
    keys = list(batch_keys(phases, batching, Position()))[:count]
    return [
        torch.utils.data.default_collate([source.sample(key) for key in batch])  # type: ignore[misc]
        for batch in keys
    ]


def test_contract(method: str) -> None:
    configuration = make_configuration(method)
    for labels, outputs in ((CLASSES, 3), (REGIONS, 2)):
        plan = make_plan(configuration, labels)
        network = get_trainer(method).build_network(plan, configuration).eval()
        channels = CHANNELS
        logits = network(torch.randn(2, channels, *configuration.patch_size))
        assert logits.shape == (2, outputs, *configuration.patch_size)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
def test_loss_falls_in_ten_steps_of_each_phase(method: str, labels: LabelSet, tmp_path: Path) -> None:
    configuration = make_configuration(method)
    plan = make_plan(configuration, labels)
    torch.manual_seed(0)
    trainer = get_trainer(method)
    module = trainer.build_training(trainer.build_network(plan, configuration), plan, configuration).train()
    (batch,) = batches_of(tmp_path, method, labels, 1)
    for phase in trainer.phases(config_of(configuration)):
        optimizer = build_optimizer(phase, module.network)
        module.enter_phase(phase)
        frozen = {n: p.clone() for n, p in module.network.named_parameters() if not p.requires_grad}
        values = []
        for _ in range(10):
            optimizer.zero_grad()
            losses = module(batch)
            losses["loss"].backward()
            optimizer.step()
            values.append(losses["loss"].item())
        assert all(torch.isfinite(torch.tensor(values))), phase.name
        assert min(values[-3:]) < values[0], phase.name
        parameters = dict(module.network.named_parameters())
        assert all(torch.equal(parameters[name], value) for name, value in frozen.items()), phase.name
    counts = module.eval()(batch)
    assert {"tp", "fp", "fn", "loss"} <= set(counts)
    assert counts["tp"].shape == (len(labels.foreground),)


def test_loss_falls_in_bf16_too(method: str, tmp_path: Path) -> None:
    configuration = make_configuration(method)
    plan = make_plan(configuration)
    torch.manual_seed(0)
    trainer = get_trainer(method)
    module = trainer.build_training(trainer.build_network(plan, configuration), plan, configuration).train()
    optimizer = build_optimizer(trainer.phases(config_of(configuration))[0], module.network)
    (batch,) = batches_of(tmp_path, method, CLASSES, 1)
    cpu, values = torch.device("cpu"), []
    precision = Precision(name="bf16")
    precision.prepare(module, cpu)
    for _ in range(10):
        optimizer.zero_grad()
        with precision.autocast(cpu):
            loss = module(batch)["loss"]
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert loss.dtype == torch.float32  # sums over voxels would lose their small terms in bf16
    assert min(values[-3:]) < values[0]


def test_every_trained_parameter_gets_a_gradient(method: str, tmp_path: Path) -> None:
    configuration = make_configuration(method)
    plan = make_plan(configuration)
    trainer = get_trainer(method)
    module = trainer.build_training(trainer.build_network(plan, configuration), plan, configuration).train()
    (batch,) = batches_of(tmp_path, method, CLASSES, 1)
    for phase in trainer.phases(config_of(configuration)):
        build_optimizer(phase, module.network)
        module.enter_phase(phase)
        module.zero_grad(set_to_none=True)
        module(batch)["loss"].backward()
        without = [n for n, p in module.network.named_parameters() if p.requires_grad and p.grad is None]
        # The coarsest output of deep supervision has the weight 0 (nnU-Net).
        assert not [name for name in without if "seg_layers" not in name], without


@pytest.fixture(scope="module", params=METHODS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunRequest:
    """A short training of each method, done."""
    wanted = make_request(tmp_path_factory.mktemp("run"), request.param, settings=SHORT)
    assert train_fold(wanted, SilentReporter()).status == "finished"
    return wanted


def test_a_checkpoint_gives_the_logits_of_what_was_trained(method: str, tmp_path: Path) -> None:
    """Whatever the phases switched in the network: by itself, and in a predictor."""
    configuration = make_configuration(method)
    module = stepped(configuration, tmp_path)
    write_checkpoint(tmp_path / "model" / "fold_0" / FINAL, configuration, module.network)
    image = torch.randn(1, CHANNELS, *configuration.patch_size)
    rebuilt = network_from_checkpoint(tmp_path / "model" / "fold_0" / FINAL)
    assert not rebuilt.training
    with torch.no_grad():
        expected = module.eval().network(image)
        assert torch.equal(rebuilt(image), expected)
    predictor = Predictor.load(tmp_path / "model", device="cpu", mirroring=False)
    shape = (-1, *(1,) * (3 - len(configuration.patch_size)), *configuration.patch_size)
    logits = predictor.predict_preprocessed(image[0].reshape(shape).numpy())
    torch.testing.assert_close(logits, expected[0].reshape(shape), rtol=1e-4, atol=1e-5)


def stepped(configuration: Configuration, folder: Path) -> TrainingModule:
    """A training that has made a step in each of its phases."""
    method, plan = configuration.method, make_plan(configuration)
    torch.manual_seed(0)
    trainer = get_trainer(method)
    module = trainer.build_training(trainer.build_network(plan, configuration), plan, configuration).train()
    (batch,) = batches_of(folder, method, CLASSES, 1)
    for phase in trainer.phases(config_of(configuration)):
        optimizer = build_optimizer(phase, module.network)
        module.enter_phase(phase)
        module(batch)["loss"].backward()
        optimizer.step()
        module.zero_grad()
    return module


def write_checkpoint(path: Path, configuration: Configuration, network: nn.Module) -> None:
    method = get_method(configuration.method)
    checkpoint = Checkpoint(
        method=method.name,
        trainer=method.trainer,
        configuration=configuration.name,
        plan=make_plan(configuration),
        fold=0,
        epoch=1,
        network=network_state(network, None),
        base_weights=None,
        seed=0,
        mirror_axes=configuration.mirror_axes,
        overrides={},
        training={},
    )
    save_checkpoint(path, checkpoint)


def test_resume_equals_uninterrupted(finished: RunRequest, tmp_path: Path) -> None:
    """Bit-identical: the same weights, optimizer and averages as a run that was never interrupted."""
    parts = replace(finished, folder=tmp_path / "fold_0")
    with pytest.raises(KeyboardInterrupt):
        train_fold(parts, _StopAfter(1))
    train_fold(replace(parts, resume=True, settings={}), SilentReporter())
    expected, found = load_checkpoint(finished.folder / FINAL), load_checkpoint(parts.folder / FINAL)
    assert expected.epoch == found.epoch == 2
    assert_same(expected.network, found.network)
    assert_same(expected.training["optimizer"], found.training["optimizer"])
    assert expected.training["ema"] == found.training["ema"]


class _StopAfter(SilentReporter):
    """Ends a run hard after some epochs, as a crash would."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def epoch(self, record: object, epochs: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def assert_same(first: object, second: object, where: str = "") -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, (a, b) in enumerate(zip(first, second)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert first == second, where


def test_config_round_trips(method: str) -> None:
    entry = get_method(method)
    config = entry.config()
    assert from_data(entry.config, to_data(config)) == config
    changed = {"epochs": 7, "learning_rate": 0.5}
    assert dataclasses.asdict(build_config(entry, changed)) == {**dataclasses.asdict(config), **changed}
    assert all(f.default is not dataclasses.MISSING for f in dataclasses.fields(entry.config))


def test_prediction_settings_touch_no_tensor(method: str) -> None:
    """Whatever values they have, the state dict has the same keys and shapes."""
    entry = get_method(method)
    defaults = {field.name: field.default for field in dataclasses.fields(entry.config)}
    changed = {name: 0.5 if isinstance(defaults[name], float) else 3 for name in entry.prediction_settings}

    def shapes(settings: dict[str, float]) -> dict[str, torch.Size]:
        configuration = make_configuration(method, settings=settings)
        network = get_trainer(method).build_network(make_plan(configuration), configuration)
        return {name: value.shape for name, value in network.state_dict().items()}

    assert shapes(changed) == shapes({})


@pytest.mark.parametrize("method", CACHED)
def test_encode_and_decode_are_the_network(method: str) -> None:
    configuration = make_configuration(method)
    network = get_trainer(method).build_network(make_plan(configuration), configuration).eval()
    image = torch.randn(2, CHANNELS, *configuration.patch_size)
    with torch.no_grad():
        assert torch.allclose(network(image), network.decode(network.encode(image)), atol=1e-6)


@pytest.mark.parametrize("method", SAM)
def test_an_encoder_that_is_trained_too_moves(method: str, tmp_path: Path) -> None:
    request = make_request(
        tmp_path, method, settings={**SHORT, "encoder": "full", "encoder_weights": "none", "warmup_steps": 0}
    )
    configuration = request.plan.configuration(method)
    outcome = train_fold(request, SilentReporter())
    trained = network_from_checkpoint(outcome.folder / FINAL)
    assert isinstance(trained, nn.Module)
    torch.default_generator.manual_seed(0)
    fresh = get_trainer(method).build_network(request.plan, configuration)
    name, moved = next(iter(trained.encoder.named_parameters()))
    assert not torch.equal(moved, dict(fresh.encoder.named_parameters())[name])
    assert not (tmp_path / "embeddings").exists()
