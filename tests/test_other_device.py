"""Every method trains and predicts on a GPU, as far as can be told without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from absent_gpu import CUDA, absent_gpu, check_steps, facts, knows_cuda, move
from test_conformance import CACHED, METHODS, batches_of
from tiny_runs import CHANNELS, CLASSES, REGIONS, make_configuration, make_module, make_plan
from torch import Tensor, nn

from samunet.data.labels import LabelSet
from samunet.inference import pass_statistics, sliding_window
from samunet.inference.pass_statistics import PassStatistics
from samunet.inference.sliding_window import WindowSettings, predict_logits
from samunet.pipeline import calibrate
from samunet.planning.methods import get_method, known_settings
from samunet.trainers import get_trainer
from samunet.trainers.base import build_optimizer, config_of
from samunet.trainers.devices import Precision

pytestmark = knows_cuda
IMAGE = (CHANNELS, 1, 16, 24)
"""Of two tiles, which are padded along the first axis in 3D."""


@pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_phase(method: str, labels: LabelSet, tmp_path: Path) -> None:
    (batch,) = batches_of(tmp_path, method, labels, 1)
    for phase in get_trainer(method).phases(config_of(make_configuration(method))):
        module = make_module(method, labels)
        build_optimizer(phase, module.network)
        module.enter_phase(phase)
        check_steps(module, batch, "bf16" if labels is CLASSES else "fp16")


@pytest.mark.parametrize("method", CACHED)
def test_a_step_from_the_cache(method: str, tmp_path: Path) -> None:
    (batch,) = batches_of(tmp_path, method, CLASSES, 1)
    module = make_module(method).eval()
    with torch.no_grad():
        features = module.network.encode(batch["image"])  # type: ignore[operator]
    stored = {"target": batch["target"], "draw": batch["draw"]}
    stored |= {f"level_{number}": level.half() for number, level in enumerate(features.levels)}
    check_steps(module, stored, "bf16")


@pytest.mark.parametrize("method", METHODS)
def test_a_prediction(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folds and one of another group, mirrored and observed, logits gathered on the GPU or not."""
    few_prompts = known_settings(get_method(method).config, {"grid_side": 2})
    configuration = make_configuration(method, settings=few_prompts)
    plan = make_plan(configuration)
    networks = [get_trainer(method).build_network(plan, configuration).eval() for _ in range(3)]
    window = WindowSettings(
        patch_size=configuration.patch_size,
        mirror_axes=(1,),
        batch_size=2,
        shared_encoder=method in CACHED,
        group_sizes=(2, 1),
    )
    # Weights are made once for all tests, so they must not be fake; asking whether logits are finite waits.
    for module in (sliding_window, pass_statistics):
        monkeypatch.setattr(module, "gaussian_weights", torch.ones)
    monkeypatch.setattr(sliding_window, "isfinite", lambda value: True)

    def predict(settings: WindowSettings) -> Tensor:
        observer = PassStatistics(CLASSES, settings, IMAGE)
        with settings.precision.autocast(settings.device):
            return predict_logits(networks, torch.zeros(IMAGE), settings, observer=observer)

    expected = predict(window)
    with absent_gpu():
        for network in networks:
            move(network)
        there = replace(window, device=CUDA, precision=Precision(name="fp16"))
        found = predict(replace(there, band_device=None if method in CACHED else sliding_window.CPU))
        assert found.device.type == "cpu"
        assert facts({"": found}) == facts({"": expected})


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)], ids=["Turing", "Ampere"]
)
def test_it_is_measured_in_the_format_it_trains_in(
    capability: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU before Ampere emulates bf16: measured so, it seemed many times slower than it is."""
    formats: list[torch.dtype] = []

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            product = x @ x
            formats.append(product.dtype)
            return product

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(Tensor, "backward", lambda loss: None)
    with absent_gpu():
        calibrate._rate(lambda: (Square(), torch.zeros(3, 3)), 1.0, device="cuda", seconds=0.0)
    assert set(formats) == {expected}
