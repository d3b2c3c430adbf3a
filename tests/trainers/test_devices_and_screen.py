from __future__ import annotations

import io
import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import SilentReporter, make_request

from samunet.errors import SamunetError
from samunet.trainers.checkpoint import load_checkpoint
from samunet.trainers.devices import (
    Precision,
    choose_device,
    cpu_has_bf16,
    hardware,
    peak_memory_gb,
    processor_name,
    restart_peak_memory,
    sample_workers,
)
from samunet.trainers.entry import train_fold
from samunet.trainers.history import EpochRecord, moving_average, patch_dice, read_history
from samunet.trainers.identity import read_run
from samunet.trainers.reporter import (
    LiveReporter,
    PlainReporter,
    StepReport,
    duration,
    epoch_line,
    step_line,
)
from samunet.workspace import FINAL

RECORD = EpochRecord(
    epoch=2,
    phase="training",
    learning_rate=1e-3,
    train={"loss": -0.5},
    val={"loss": -0.25},
    patch_dice={"organ": 0.5, "lesion": None},
    mean_patch_dice=0.5,
    ema_patch_dice=None,
    seconds=75.0,
    waiting_seconds=1.0,
    samples_per_second=12.0,
    memory_gb=0.5,
)
STEP = StepReport(
    epoch=0, epochs=2, iteration=3, iterations=10, loss=0.25, samples_per_second=2.0, seconds_left=3700.0
)


def test_cuda_predicts_in_the_format_that_it_trains_in(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for capability, expected in (((8, 0), "bf16"), ((7, 5), "fp16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert Precision.for_prediction(cuda, "bf16", "auto").name == expected
        assert Precision.for_prediction(cuda, "fp16", "auto").name == "fp16"
        assert Precision.for_prediction(cuda, "bf16", "fp32").name == "fp32"


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(SamunetError, match="2 CUDA device"):
        choose_device("cuda:7")


def test_an_apple_gpu_is_left_alone_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with caplog.at_level("INFO"):
        assert choose_device() == torch.device("cpu")
    assert "-device mps" in caplog.text
    assert choose_device("mps") == torch.device("mps")


def test_device_and_precision() -> None:
    cpu = choose_device("cpu")
    assert choose_device("auto") == choose_device(None)
    assert Precision.choose(cpu, "fp16").name == "fp32"
    assert not Precision.choose(cpu, "bf16").scaler(cpu).is_enabled()
    assert Precision.choose(cpu, "fp16", "bf16").name == "bf16"
    with pytest.raises(SamunetError, match="give fp32 or bf16"):
        Precision.choose(cpu, "bf16", "fp16")
    assert Precision.for_prediction(cpu, "bf16", "auto").name == "fp32"
    assert Precision.for_prediction(cpu, "bf16", "fp16").name == "fp32"  # trained so on a GPU
    assert Precision.for_prediction(cpu, "fp16", "bf16").name == ("bf16" if cpu_has_bf16() else "fp32")
    assert 0 < peak_memory_gb(cpu) < 1000
    assert hardware(cpu)["cores"] >= 1
    if Path("/proc/cpuinfo").exists() and platform.machine() == "x86_64":
        assert processor_name() != platform.machine()  # a model, such as those makers print on it
    assert 0 <= sample_workers() <= 12


def test_peak_memory_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ran before in the same process is not counted again, where the system can tell."""
    reset: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    restart_peak_memory(torch.device("cuda", 1))
    assert reset == [torch.device("cuda", 1)]
    cpu = torch.device("cpu")
    ballast = torch.ones(100_000_000)
    before = peak_memory_gb(cpu)
    del ballast
    restart_peak_memory(cpu)
    after = peak_memory_gb(cpu)
    assert 0 < after <= before
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert after < before - 0.2


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak only grows here")
def test_each_fold_has_a_peak_of_its_own(tmp_path: Path) -> None:
    ballast = torch.ones(150_000_000)
    del ballast
    before = peak_memory_gb(torch.device("cpu"))
    settings = {"epochs": 1, "iterations": 1, "val_iterations": 1}
    folder = train_fold(make_request(tmp_path, "2d_unet", settings=settings), SilentReporter()).folder
    assert read_history(folder)[0].memory_gb < before - 0.2


def test_bf16_on_the_cpu_is_a_setting_of_the_run(tmp_path: Path) -> None:
    settings = {"epochs": 1, "iterations": 2, "val_iterations": 1, "precision": "bf16"}
    folder = train_fold(make_request(tmp_path, "2d_unet", settings=settings), SilentReporter()).folder
    record = read_run(folder)
    assert record is not None
    assert record.precision == "bf16"
    assert record.configuration["settings"]["precision"] == "bf16"
    weights = load_checkpoint(folder / FINAL).network.values()
    assert all(value.dtype != torch.bfloat16 for value in weights)  # the weights themselves stay fp32


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_lower_precision_with_scaled_loss(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA path on a CPU: autocast, loss scaler, its state in the checkpoint."""
    monkeypatch.setattr(Precision, "choose", classmethod(lambda cls, *a: cls(name=name)))
    settings = {"epochs": 1, "iterations": 3, "val_iterations": 1}
    folder = train_fold(make_request(tmp_path, "2d_linear", settings=settings), SilentReporter()).folder
    stored = load_checkpoint(folder / FINAL)
    assert all(torch.isfinite(value).all() for value in stored.network.values())
    assert all(v.dtype == torch.float32 for v in stored.network.values() if v.is_floating_point())
    assert bool(stored.training["scaler"]) == (name == "fp16")


def test_lines() -> None:
    assert epoch_line(RECORD, 5) == (
        "epoch 3/5  loss -0.5000  val -0.2500  patch Dice 0.500 (average n/a)  12.0 samples/s  1:15  "
        "0.5 GB  lr 1.00e-03"
    )
    assert step_line(STEP) == "epoch 1/2  step 3/10  loss 0.2500  2.0 samples/s  1:01:40 left"
    assert duration(None) == "?"


def test_without_classes_the_parts_of_the_loss_are_shown() -> None:
    val = {"loss": 0.75, "mae": 0.5, "shed": None}
    record = replace(RECORD, val=val, patch_dice={}, mean_patch_dice=None)
    assert "val 0.7500  (mae 0.5000, shed n/a)  12.0 samples/s" in epoch_line(record, 5)
    assert "Dice" not in epoch_line(record, 5)


def test_plain_reporter_flushes_lines_and_spares_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    reporter.step(STEP)
    assert stream.getvalue() == ""
    monkeypatch.setattr("samunet.trainers.reporter.PLAIN_SECONDS", 0.0)
    reporter.step(STEP)
    reporter.epoch(RECORD, 5)
    reporter.close()
    assert stream.getvalue().splitlines() == [step_line(STEP), epoch_line(RECORD, 5)]


def test_live_reporter(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = LiveReporter()
    reporter.step(STEP)
    reporter.epoch(RECORD, 5)
    reporter.close()
    assert "patch Dice 0.500" in capsys.readouterr().out


def test_patch_dice_skips_what_is_absent() -> None:
    values, mean = patch_dice(("a", "b", "c"), (2, 0, 0), (1, 0, 3), (1, 0, 0))
    assert values == {"a": pytest.approx(4 / 6), "b": None, "c": 0.0}
    assert mean == pytest.approx(2 / 6)
    assert patch_dice(("a",), (0,), (0,), (0,)) == ({"a": None}, None)


def test_moving_average() -> None:
    assert moving_average(None, 0.5) == 0.5
    assert moving_average(0.5, 1.0) == pytest.approx(0.55)
    assert moving_average(0.5, None) == 0.5


@pytest.mark.parametrize("shape", [(2, 8, 8), (8, 2, 8), (3, 8, 8), (1, 8, 8)])
def test_gradients_of_thin_volumes_in_bf16(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    cpu, precision = torch.device("cpu"), Precision(name="bf16")
    convolution, volume = torch.nn.Conv3d(16, 8, 3, padding=1), torch.randn(2, 16, *shape)
    convolution(volume).square().mean().backward()
    assert convolution.weight.grad is not None
    exact = convolution.weight.grad.clone()
    precision.prepare(convolution, cpu)
    for _ in range(4):
        convolution.zero_grad()
        left_behind = [torch.full((number,), torch.nan) for number in (1000, 10_000, 100_000)]
        del left_behind  # what a kernel finds in memory that it forgets to fill
        with precision.autocast(cpu):
            result = convolution(volume)
        result.float().square().mean().backward()
        # bf16 keeps eight bits of each factor.
        assert (convolution.weight.grad - exact).abs().max() < 0.02 * exact.abs().max()
