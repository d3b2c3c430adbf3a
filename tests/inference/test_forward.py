"""Networks over an image when the device has too little memory, or when nothing comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import CLASSES
from torch import Tensor, nn

from samunet.errors import SamunetError
from samunet.inference import sliding_window
from samunet.inference.forward import Forward
from samunet.inference.logit_storage import LogitStorage
from samunet.inference.pass_statistics import PassStatistics
from samunet.inference.sliding_window import CPU, WindowSettings
from samunet.trainers.devices import Precision

OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)  # before torch 2.5
SHAPE = (2, 6, 18, 14)
WINDOW = WindowSettings(patch_size=(12, 10), mirror_axes=(1,), batch_size=4)


class Network(nn.Module):
    """Three classes from two channels; runs out of memory above some tiles."""

    most = 4
    error: Exception = OUT_OF_MEMORY(
        "CUDA out of memory. Tried to allocate 13.00 GiB.\nSee the documentation."
    )

    def forward(self, tiles: Tensor) -> Tensor:
        if len(tiles) > self.most:
            raise self.error
        return torch.cat([tiles, tiles[:, :1] * tiles[:, 1:]], dim=1)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


@pytest.mark.parametrize(
    ("most", "error"),
    [
        (2, Network.error),
        (1, Network.error),
        (2, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
        (2, RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`")),
    ],
)
def test_fewer_tiles_at_once_give_the_same(
    most: int, error: Exception, image: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, seen = Network(), [PassStatistics(CLASSES, WINDOW, SHAPE) for _ in range(2)]
    expected = Forward([network], WINDOW, [tmp_path])(image, None, seen[0])
    network.most, network.error = most, error
    forward, storage = Forward([network], WINDOW, [tmp_path]), LogitStorage(tmp_path)
    left = storage.left
    torch.testing.assert_close(forward(image, storage, seen[1]), expected)
    assert left - storage.left == expected.nbytes  # one room for all attempts
    assert forward.window.batch_size == most
    for name, figures in seen[0].figures().items():
        assert seen[1].figures()[name].soft_dice == pytest.approx(figures.soft_dice)
    assert "from here on 2 instead of 4 tiles" in caplog.text
    caplog.clear()
    forward(image)
    assert not caplog.records


def test_logits_are_gathered_in_main_memory(
    image: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = Forward([Network()], WINDOW, [])(image)
    create = sliding_window._Band.__init__

    def no_room(self: Any, depth: int, plane: Any, settings: WindowSettings) -> None:
        if settings.band_device is None:
            raise OUT_OF_MEMORY("full")
        create(self, depth, plane, settings)

    monkeypatch.setattr(sliding_window._Band, "__init__", no_room)
    forward = Forward([Network()], WINDOW, [])
    torch.testing.assert_close(forward(image), expected)
    assert (forward.window.batch_size, forward.window.band_device) == (1, CPU)
    assert "gathered in main memory" in caplog.text


def test_too_little_for_one_tile_is_a_fault_with_advice(image: np.ndarray) -> None:
    network = Network()
    network.most = 0
    with pytest.raises(SamunetError, match=r"13.00 GiB\.\).*fewer folds \(-f\).*-device cpu") as fault:
        Forward([network], WINDOW, [])(image)
    assert "documentation" not in str(fault.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
            "tried to allocate 14 bytes. Error code 12 (Cannot allocate memory)\nframe #0"
        ),
        RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 14"),
        MemoryError("Unable to allocate 14 bytes"),
    ],
)
def test_main_memory_that_does_not_suffice(
    error: Exception, image: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    expected, network = Forward([Network()], WINDOW, [])(image), Network()
    network.error, network.most = error, 1
    forward = Forward([network], WINDOW, [])
    torch.testing.assert_close(forward(image), expected)
    assert (forward.window.batch_size, forward.window.band_device) == (1, None)
    assert "Not enough memory on cpu (" in caplog.text
    network.most = 0
    with pytest.raises(SamunetError, match=r"cpu \(.*allocate 14.*even for one tile.*fewer folds") as fault:
        forward(image)
    assert "-device cpu" not in str(fault.value)
    assert "frame" not in str(fault.value)
    network.error = RuntimeError("sizes differ")
    with pytest.raises(RuntimeError, match="sizes differ"):
        forward(image)


class Hot(nn.Module):
    """Three classes; a value that half precision does not hold on the way."""

    def forward(self, tiles: Tensor) -> Tensor:
        large = (tiles * 1e5).to(torch.float16 if torch.is_autocast_enabled("cpu") else torch.float32)
        return torch.cat([tiles, large.float()[:, :1] / 1e5], dim=1)


def test_an_image_that_overflows_half_precision_is_computed_in_single(
    image: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    half, seen = replace(WINDOW, precision=Precision(name="bf16")), []
    for window in (WINDOW, half):
        seen.append(PassStatistics(CLASSES, window, SHAPE))
        forward = Forward([Hot()], window, [])
        found = forward(image, None, seen[-1])
        if window is WINDOW:
            expected = found
            assert not caplog.records
    torch.testing.assert_close(found, expected)
    assert "This image overflows bf16 and is computed in fp32" in caplog.text
    assert forward.window.precision.name == "bf16"  # the next image may not
    for name, figures in seen[0].figures().items():
        assert seen[1].figures()[name].soft_dice == pytest.approx(figures.soft_dice)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_is_not_finite_in_single_precision_either_is_refused(precision: Any, image: np.ndarray) -> None:
    window = WindowSettings(patch_size=(12, 10), precision=Precision(name=precision))
    with pytest.raises(SamunetError, match=r"model gives NaN .* other folds"):
        Forward([Network()], window, [Path("model")])(image * np.float32(np.nan))
