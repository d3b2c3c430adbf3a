"""Device, number format and memory of a training, and the facts about the machine that a run records."""

from __future__ import annotations

import logging
import os
import platform
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch

from samunet import __version__
from samunet.data.workers import available_cores
from samunet.errors import SamunetError
from samunet.trainers.shallow_convolutions import guard_shallow_convolutions

logger = logging.getLogger(__name__)

HalfFormat = Literal["fp16", "bf16"]


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name; without a name CUDA, else the CPU.

    An Apple GPU is taken where it is asked for: nobody has tried samunet on one yet, and some releases of
    torch lack 3D layers there.

    Raises:
        SamunetError: the device does not exist here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name in (None, "auto"):
        if available["mps"] and not available["cuda"]:
            _say_untried()
        return torch.device("cuda" if available["cuda"] else "cpu")
    kind = str(name).split(":")[0]
    if not available.get(kind, False):
        present = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise SamunetError(
            f"There is no device {name!r} on this machine. Use -device with one of: {present}."
        )
    device = torch.device(str(name))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SamunetError(
            f"There is no {name}: this machine has {torch.cuda.device_count()} CUDA device(s)."
        )
    return device


@cache
def _say_untried() -> None:
    logger.info("On the CPU: samunet has not been tried on an Apple GPU yet. -device mps uses the one here.")


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 numbers itself (AVX512-BF16 or AMX); elsewhere they are emulated."""
    # Not public in torch; where a version lacks them the answer is no, which only costs speed.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(probe()) for name in probes if (probe := getattr(torch.cpu, name, None)) is not None)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Number format of the forward pass: `fp32`, `bf16`, or `fp16` with a scaled loss."""

    name: Literal["fp32", "fp16", "bf16"]

    @classmethod
    def choose(cls, device: torch.device, own: HalfFormat, setting: str = "auto") -> Precision:
        """The number format of a training.

        Args:
            device: where it runs.
            own: the method's on CUDA; bf16 becomes fp16 on GPUs without it (before Ampere).
            setting: of the run; `auto` is `own` on CUDA and fp32 elsewhere.

        Raises:
            SamunetError: the device cannot do what is set.
        """
        has_bf16 = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
        if setting == "auto":
            if device.type != "cuda":
                return cls(name="fp32")
            return cls(name=own if has_bf16 else "fp16")
        able = {"cuda": ("fp32", "fp16", *(["bf16"] if has_bf16 else [])), "cpu": ("fp32", "bf16")}
        if setting not in able.get(device.type, ("fp32",)):
            raise SamunetError(
                f"precision={setting} does not go with this {device.type} device: give "
                f"{' or '.join(able.get(device.type, ('fp32',)))}, or leave it to auto."
            )
        if setting == "bf16" and device.type == "cpu" and not cpu_has_bf16():
            logger.warning(
                "This CPU seems to have no bf16 instructions: it emulates them, many times slower than fp32. "
                "Leave precision to auto, or --set precision=fp32."
            )
        return cls(name=cast(Any, setting))

    @classmethod
    def for_prediction(cls, device: torch.device, own: HalfFormat, setting: str) -> Precision:
        """The format to predict in: that of a training on this device, as far as the device can.

        Args:
            device / own / setting: as for `choose`; values that overflowed fp16 in training would do so here.
        """
        able = {"cuda": ("fp32", "bf16", "fp16"), "cpu": ("bf16",) if cpu_has_bf16() else ()}
        return cls.choose(device, own, setting if setting in able.get(device.type, ()) else "auto")

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.float16 if self.name == "fp16" else torch.bfloat16)

    def prepare(self, network: torch.nn.Module, device: torch.device) -> None:
        """Make a network fit to be trained in this format on the device."""
        if self.name == "bf16" and device.type == "cpu":
            guard_shallow_convolutions(network)

    @property
    def skips_overflows(self) -> bool:
        """Whether a step of which loss or gradients are not finite changes no weights: the scaler passes it
        over, and lowers the scale."""
        return self.name == "fp16"

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Loss scaler; does nothing unless fp16."""
        return torch.amp.GradScaler(device.type, enabled=self.skips_overflows)


FP32 = Precision(name="fp32")


_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def restart_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_gb` tell of what comes from now on: on CUDA, and for main memory on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and _CLEAR_REFS.exists():
        with suppress(OSError):  # read-only in some containers
            _CLEAR_REFS.write_text("5")


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory since `restart_peak_memory`; 1e9 bytes.

    On CUDA of tensors; on a CPU what is resident of this process, with what it held before and without its
    workers. Where the system cannot begin anew (macOS, Windows, some containers) it is the peak of the whole
    process so far. On an Apple GPU, which keeps no peak, it is what is held now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e9
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e9
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    told = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    if told:
        return told[0] * 1024 / 1e9
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given (for timing)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Batch on the device; from pinned memory without waiting."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def sample_workers() -> int:
    """Worker processes that prepare samples: all cores but one, at most 12 (nnU-Net's number)."""
    return min(12, available_cores() - 1)


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine in plain data."""
    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_gb"] = round(properties.total_memory / 1e9, 1)
    return facts


def processor_name() -> str:
    """Name of the processor's model where the system tells it, else its architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"samunet": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("numpy", "batchgeneratorsv2", "dynamic-network-architectures", "segment-anything"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
