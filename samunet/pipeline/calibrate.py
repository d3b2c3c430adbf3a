"""What this machine can do: throughput of training steps, memory, free disk. It becomes the plan's budget.

The planner is a pure function of a `Budget`; this module is where the budget's figures come from. Throughput
is measured on small stand-ins of what is trained (U-Net levels in 2D and 3D, transformer blocks), forward and
backward, and kept with a date beside the preprocessed data so that it is measured once a machine.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from samunet.data.limits import memory_limit
from samunet.errors import SamunetError
from samunet.pipeline.other_work import OtherWork, are_too_few
from samunet.planning.plan import Budget
from samunet.records import content_hash, read_record, write_json
from samunet.whole_files import room_bytes

if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)

CPU_MEMORY_SHARE = 0.8
"""Share of the main memory that a training on the CPU may plan with; the rest is the system's."""
OLDEST_DAYS = 90
"""A calibration older than this is measured again."""
SECONDS_A_KIND = 0.3
ASSUMED_GFLOPS = (
    (0.0, {"conv2d": 4e3, "conv3d": 4e3, "vit": 8e3}),
    (10.0, {"conv2d": 6e3, "conv3d": 6e3, "vit": 15e3}),
    (20.0, {"conv2d": 12e3, "conv3d": 12e3, "vit": 40e3}),
    (40.0, {"conv2d": 25e3, "conv3d": 25e3, "vit": 100e3}),
)
"""Throughput assumed for a GPU that is only named by its memory: (from this many GB, GFLOP/s by kind)."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Measured throughput of one machine and device; GFLOP/s of 2 x multiply-adds, forward and backward."""

    machine: str
    device: str
    measured_on: str
    gflops: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class BudgetRequest:
    """What the user fixed about the budget.

    Attributes:
        device: `auto`, `cuda`, `mps` or `cpu`.
        gpu_memory_gb: -gpu_memory_target; plans for a GPU of that memory whether one is here or not.
        hours: longest training of one fold.
        disk: folder whose disk holds the caches.
        cache_file: where the calibration is kept.
        write_cache: whether a new calibration is written there.
    """

    device: str = "auto"
    gpu_memory_gb: float | None = None
    hours: float = 24.0
    disk: Path
    cache_file: Path | None = None
    write_cache: bool = True


def make_budget(request: BudgetRequest) -> Budget:
    """Measure (or read) what this machine offers, with what the user fixed taken over."""
    disk_gb = room_bytes(request.disk.resolve()) / 1e9
    if request.gpu_memory_gb is not None and request.device in ("auto", "cuda"):
        import torch

        gflops = (
            _gflops("cuda", request) if torch.cuda.is_available() else assumed_gflops(request.gpu_memory_gb)
        )
        return Budget(
            device="cuda",
            memory_gb=request.gpu_memory_gb,
            hours=request.hours,
            disk_gb=round(disk_gb, 1),
            gflops=gflops,
        )
    from samunet.trainers.devices import choose_device

    device = choose_device(request.device).type
    return Budget(
        device=device,  # type: ignore[arg-type]
        memory_gb=round(request.gpu_memory_gb or memory_gb(device), 1),
        hours=request.hours,
        disk_gb=round(disk_gb, 1),
        gflops=_gflops(device, request),
    )


def assumed_gflops(gpu_memory_gb: float) -> dict[str, float]:
    """Throughput assumed for a GPU of that memory which is not here to be measured."""
    return dict(next(rates for least, rates in reversed(ASSUMED_GFLOPS) if gpu_memory_gb >= least))


def memory_gb(device: str) -> float:
    """Memory that training may plan with on that device, GB (1e9 bytes)."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return CPU_MEMORY_SHARE * main_memory_bytes() / 1e9


def main_memory_bytes() -> int:
    """Main memory of the machine or, when smaller, of the container or job that this process runs in."""
    import psutil

    total, limit = int(psutil.virtual_memory().total), memory_limit()
    return total if limit is None else min(total, limit)


def _gflops(device: str, request: BudgetRequest) -> dict[str, float]:
    import torch

    machine = machine_identity(device)
    known = _read_calibration(request.cache_file)
    if known is not None and known.machine == machine and _age_days(known) <= OLDEST_DAYS:
        return known.gflops
    logger.info("Measuring how fast this machine trains (%s, a few seconds)", device)
    others = OtherWork()
    gflops = measure_gflops(device)
    if device == "cpu" and are_too_few(taken := others.cores(), torch.get_num_threads()):
        logger.warning(
            "Other programs kept %.1f of %d cores busy meanwhile, so this machine seems slower than it is: "
            "methods and input sizes may be refused that would fit. Plan again when it has less to do; this "
            "measurement is not kept.",
            taken,
            os.cpu_count(),
        )
        return gflops
    if request.cache_file is not None and request.write_cache:
        calibration = Calibration(
            machine=machine, device=device, measured_on=date.today().isoformat(), gflops=gflops
        )
        write_json(request.cache_file, calibration)
    return gflops


def _read_calibration(cache_file: Path | None) -> Calibration | None:
    if cache_file is None or not cache_file.exists():
        return None
    try:
        return read_record(Calibration, cache_file)
    except SamunetError as fault:  # only a cache: measured again, and said
        logger.warning("%s It is measured again.", fault)
        return None


def _age_days(calibration: Calibration) -> int:
    return (date.today() - date.fromisoformat(calibration.measured_on)).days


def machine_identity(device: str) -> str:
    """Changes when the throughput may have changed: host, cores, threads, PyTorch, GPU."""
    import torch

    gpu = torch.cuda.get_device_name(0) if device == "cuda" else ""
    parts = [
        platform.node(),
        platform.machine(),
        os.cpu_count(),
        torch.get_num_threads(),
        torch.__version__,
        device,
        gpu,
    ]
    return content_hash(parts)


def measure_gflops(device: str, seconds: float = SECONDS_A_KIND) -> dict[str, float]:
    """Effective GFLOP/s of a training step by kind of work, each measured for about `seconds`."""
    large = device == "cuda"  # small samples would leave a GPU idle
    workloads = {
        "conv2d": _convolution_step(2, *((256, 16) if large else (96, 2))),
        "conv3d": _convolution_step(3, *((96, 2) if large else (32, 1))),
        "vit": _transformer_step(64 if large else 2),
    }
    return {kind: _rate(*workload, device=device, seconds=seconds) for kind, workload in workloads.items()}


def _rate(
    build: Callable[[], tuple[torch.nn.Module, torch.Tensor]], gflop: float, *, device: str, seconds: float
) -> float:
    """GFLOP/s of the fastest of the steps that fit into `seconds`, after one step to warm up.

    The fastest, because what slows single steps down is mostly other work on the machine, not this one.
    """
    import torch

    from samunet.trainers.devices import Precision, synchronize

    place = torch.device(device)
    network, sample = build()
    network, sample = network.to(place), sample.to(place)
    precision = Precision.choose(place, "bf16")  # a GPU before Ampere has fp16 only, and emulates bf16

    def step() -> None:
        with precision.autocast(place):
            loss = network(sample).float().square().mean()
        loss.backward()
        synchronize(place)

    step()
    durations: list[float] = []
    while len(durations) < 3 or sum(durations) < seconds:
        start = time.perf_counter()
        step()
        durations.append(time.perf_counter() - start)
    return round(gflop / min(durations), 1)


Workload = tuple["Callable[[], tuple[torch.nn.Module, torch.Tensor]]", float]


def _convolution_step(dimension: int, side: int, batch: int) -> Workload:
    """Convolutions with norm and activation as in a U-Net's upper levels (32, 64, 128 channels)."""
    import torch
    from torch import nn

    convolution = nn.Conv2d if dimension == 2 else nn.Conv3d
    norm = nn.InstanceNorm2d if dimension == 2 else nn.InstanceNorm3d
    widths = ((32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))

    def build() -> tuple[nn.Module, torch.Tensor]:
        layers: list[nn.Module] = []
        for inputs, outputs, stride in widths:
            layers += [convolution(inputs, outputs, 3, stride, 1), norm(outputs, affine=True), nn.LeakyReLU()]
        return nn.Sequential(*layers), torch.randn(batch, 32, *(side,) * dimension)

    flop, size = 0.0, side
    for inputs, outputs, stride in widths:
        size //= stride
        flop += 2 * 3 * batch * inputs * outputs * 3**dimension * size**dimension
    return build, flop / 1e9


def _transformer_step(batch: int) -> Workload:
    """Two transformer blocks of width 384 on 196 tokens a picture, SAM's windows."""
    import torch
    from torch import nn

    width, tokens, depth = 384, 196, 2

    def build() -> tuple[nn.Module, torch.Tensor]:
        layer = nn.TransformerEncoderLayer(
            width, 6, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        network = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        return network, torch.randn(batch, tokens, width)

    multiply_adds = depth * batch * (12 * tokens * width**2 + 2 * tokens**2 * width)
    return build, 2 * 3 * multiply_adds / 1e9
