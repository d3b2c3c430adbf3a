"""Networks over an image when the device has too little memory, or when nothing comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import CLASSES
from torch import Tensor, nn

from samunet.errors import SamunetError
from samunet.inference import sliding_window
from samunet.inference.forward import OUT_OF_MEMORY, Forward
from samunet.inference.logit_storage import LogitStorage
from samunet.inference.pass_statistics import PassStatistics
from samunet.inference.sliding_window import CPU, WindowSettings
from samunet.trainers.devices import Precision

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


@pytest.mark.parametrize("most", [2, 1])
def test_fewer_tiles_at_once_give_the_same(
    most: int, image: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, seen = Network(), [PassStatistics(CLASSES, WINDOW, SHAPE) for _ in range(2)]
    expected = Forward([network], WINDOW, [tmp_path])(image, None, seen[0])
    network.most = most
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


def test_advice_for_half_precision_is_full_precision(image: np.ndarray) -> None:
    half = WindowSettings(patch_size=(12, 10), precision=Precision(name="bf16"))
    broken = image * np.float32(np.nan)
    with pytest.raises(SamunetError, match=r"model gives NaN .* bf16: train it again with --set pre"):
        Forward([Network()], half, [Path("model")])(broken)
