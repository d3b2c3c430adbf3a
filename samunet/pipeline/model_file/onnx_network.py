"""One trained network as an ONNX file: tiles of one size, any number of them at once.

torch's TorchScript exporter is used: it needs no further package, takes seconds where the other takes
minutes, and keeps the number of tiles free in every network of ours.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from samunet.errors import SamunetError
from samunet.networks.picture import SamPicture

OPSET = 17
INPUT, OUTPUT = "image", "logits"
LARGEST_BYTES = 1.9e9
"""An ONNX file is one protobuf message of at most 2 GB."""


def write_onnx(network: nn.Module, tile_shape: tuple[int, ...], path: Path) -> None:
    """Write a network on the CPU.

    Args:
        network: (B, C, *patch) -> (B, K, *patch).
        tile_shape: (C, *patch); the file takes float32 (B, *tile_shape) for any B and gives float32 logits.
        path: the file.

    Raises:
        SamunetError: the network is too large for one file, or this torch cannot export it.
    """
    size = 4 * sum(value.numel() for value in network.state_dict().values())
    if size > LARGEST_BYTES:
        raise SamunetError(
            f"The network has {size / 1e9:.1f} GB of weights; an ONNX file holds 2 GB at most. Export a "
            "model on a smaller encoder, or share the model as a .zip."
        )
    # Two tiles, so that nothing takes the number for a constant 1 that may be dropped.
    tiles = torch.zeros(2, *tile_shape)
    free = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    older: dict[str, Any] = {}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        older["dynamo"] = False
    try:
        # Warnings are of sizes taken for constants, which they are; a failed export prints its whole graph.
        with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.no_grad(), _resizing(network):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network.eval(),
                (tiles,),
                str(path),
                opset_version=OPSET,
                dynamic_axes=free,
                input_names=[INPUT],
                output_names=[OUTPUT],
                **older,
            )
    except (RuntimeError, TypeError) as fault:  # torch's own errors derive from RuntimeError
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise SamunetError(
            f"torch {torch.__version__} cannot write this network as ONNX: {reason}"
        ) from fault


@contextmanager
def _resizing(network: nn.Module) -> Iterator[None]:
    """Resize pictures and logits by products with constant matrices meanwhile.

    The exporter does not know anti-aliased resizing and rounds factors to float32, which may cost a row; ONNX
    itself weights the rim otherwise.
    """
    pictures = [module for module in network.modules() if isinstance(module, SamPicture)]
    for picture in pictures:
        picture.__dict__ |= {"resized": _resized, "scaled": _scaled}
    try:
        yield
    finally:
        for picture in pictures:
            del picture.__dict__["resized"], picture.__dict__["scaled"]


def _resized(colours: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W): rows (H, h) @ colours @ columns (w, W)."""
    rows, columns = (
        resize_matrix(int(old), size=new, antialias=antialias) for old, new in zip(colours.shape[-2:], size)
    )
    return rows @ colours @ columns.T


def _scaled(logits: Tensor, factors: list[float]) -> Tensor:
    rows, columns = (resize_matrix(int(old), factor=f) for old, f in zip(logits.shape[-2:], factors))
    return rows @ logits @ columns.T


def resize_matrix(
    old: int, *, size: int | None = None, factor: float | None = None, antialias: bool = False
) -> Tensor:
    """(new, old): what torch's bilinear resizing does along one axis, to a size or by a factor."""
    return interpolate(
        torch.eye(old)[None, None],
        size=None if size is None else (size, old),
        scale_factor=None if factor is None else (factor, 1.0),
        mode="bilinear",
        align_corners=False,
        antialias=antialias,
    )[0, 0]
