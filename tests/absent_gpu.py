"""A GPU that is not there: torch's fake tensors know devices, types and shapes, no values.

What is made on the wrong device, of a type that CUDA's autocast does not give, or read in the middle of a
step (which would wait for the GPU) fails there as on a real one. Backward passes, memory and numbers are not
seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from samunet.trainers.base import TrainingModule
from samunet.trainers.devices import Precision, to_device

CUDA = torch.device("cuda")
Facts = dict[str, tuple[torch.Size, torch.dtype]]


@contextmanager
def absent_gpu() -> Iterator[None]:
    """Within it tensors can be on the GPU, and autocast believes in it."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
        yield


def _obstacle() -> str:
    """Why this torch cannot do it: CPU builds do not know CUDA, and old versions ask for a driver."""
    try:
        with absent_gpu():
            torch.zeros(2, 3).to(CUDA).t().contiguous()
    except RuntimeError as error:
        return f"no GPU in thought on torch {torch.__version__}: {str(error).splitlines()[0]}"
    return ""


_REASON = _obstacle()
knows_cuda = pytest.mark.skipif(bool(_REASON), reason=_REASON)


def move(module: nn.Module) -> None:
    """Registered parameters and buffers to the GPU, as `.to` does (which fake tensors do not know)."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                moved = torch.empty(value.shape, dtype=value.dtype, device=CUDA)
                part._parameters[name] = nn.Parameter(moved, requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=CUDA)


def facts(values: dict[str, Tensor]) -> Facts:
    """Shapes and types."""
    return {name: (value.shape, value.dtype) for name, value in values.items()}


def check_steps(
    module: TrainingModule, batch: dict[str, Tensor], precision: Literal["bf16", "fp16"], *more: nn.Module
) -> None:
    """A training and a validation step give on the GPU what they give on the CPU, in shapes and types.

    Args:
        more: parts that the module does not register, which its run brings to the device.
    """
    expected = [facts(parts) for parts in _steps(module, batch, "bf16")]
    with absent_gpu():
        for part in (module, *more):
            move(part)
        found = _steps(module, to_device(batch, CUDA), precision)
        assert all(value.device.type == "cuda" for parts in found for value in parts.values())
        assert [facts(parts) for parts in found] == expected
    assert expected[0]["loss"] == (torch.Size([]), torch.float32)


def _steps(
    module: TrainingModule, batch: dict[str, Tensor], precision: Literal["bf16", "fp16"]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with Precision(name=precision).autocast(next(iter(batch.values())).device):
        trained = module.train()(batch)
        with torch.no_grad():
            return trained, module.eval()(batch)
