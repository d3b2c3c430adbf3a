"""The budget: measured once a machine, memory within limits, or as the user fixed it."""

from __future__ import annotations

import json
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from samunet.errors import SamunetError
from samunet.pipeline import calibrate
from samunet.pipeline.calibrate import (
    BudgetRequest,
    assumed_gflops,
    main_memory_bytes,
    make_budget,
    measure_gflops,
)
from samunet.whole_files import room_bytes

RATES = {"conv2d": 11.0, "conv3d": 12.0, "vit": 13.0}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Devices that were measured, without measuring."""
    devices: list[str] = []
    monkeypatch.setattr(calibrate, "measure_gflops", lambda device: devices.append(device) or dict(RATES))
    return devices


def test_measuring_is_quick_and_positive() -> None:
    rates = measure_gflops("cpu", seconds=0.01)
    assert set(rates) == {"conv2d", "conv3d", "vit"}
    assert min(rates.values()) > 0.1


def test_a_machine_is_measured_once(tmp_path: Path, measured: list[str]) -> None:
    request = BudgetRequest(device="cpu", disk=tmp_path / "not" / "there", cache_file=tmp_path / "c.json")
    first = make_budget(request)
    assert make_budget(request) == first
    assert measured == ["cpu"]
    assert first.gflops == RATES
    assert first.device == "cpu"
    assert first.disk_gb == pytest.approx(room_bytes(tmp_path) / 1e9, rel=0.05)
    assert first.memory_gb < main_memory_bytes() / 1e9


@pytest.mark.parametrize("change", ["machine", "old", "broken"])
def test_it_is_measured_again_when_it_no_longer_holds(
    tmp_path: Path, measured: list[str], change: str
) -> None:
    file = tmp_path / "c.json"
    request = BudgetRequest(device="cpu", disk=tmp_path, cache_file=file)
    make_budget(request)
    stored = json.loads(file.read_text())
    if change == "machine":
        stored["machine"] = "another"
    elif change == "old":
        stored["measured_on"] = (date.today() - timedelta(days=400)).isoformat()
    file.write_text("{" if change == "broken" else json.dumps(stored))
    make_budget(request)
    assert len(measured) == 2


def test_what_is_measured_beside_other_work_is_said_and_not_kept(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A plan made during a training had fixed a speed several times too low for a quarter of a year."""
    monkeypatch.setattr(calibrate.OtherWork, "cores", lambda _: 1e6)
    request = BudgetRequest(device="cpu", disk=tmp_path, cache_file=tmp_path / "c.json")
    assert make_budget(request).gflops == RATES
    assert "1000000.0 of" in caplog.text
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_on_request(tmp_path: Path, measured: list[str]) -> None:
    make_budget(BudgetRequest(disk=tmp_path, cache_file=tmp_path / "c.json", write_cache=False))
    assert not list(tmp_path.iterdir())


def test_a_named_gpu_needs_none_here(tmp_path: Path, measured: list[str]) -> None:
    budget = make_budget(BudgetRequest(disk=tmp_path, gpu_memory_gb=24, hours=8))
    assert (budget.device, budget.memory_gb, budget.hours) == ("cuda", 24, 8)
    on_cpu = make_budget(BudgetRequest(disk=tmp_path, gpu_memory_gb=6, device="cpu"))
    assert (on_cpu.device, on_cpu.memory_gb) == ("cpu", 6)


def test_assumed_rates_grow_with_memory() -> None:
    rates = [assumed_gflops(memory) for memory in (4, 8, 12, 24, 48, 80)]
    for smaller, larger in pairwise(rates):
        assert all(larger[kind] >= smaller[kind] for kind in smaller)


def test_an_absent_device_is_refused(tmp_path: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(SamunetError, match="cuda"):
            make_budget(BudgetRequest(device="cuda", disk=tmp_path))
