"""Tensor files in the safetensors format: no code in them, half the size in fp16.

The format is read and written without a library: 8 bytes with the header's length, little endian; the header
in JSON, which gives each tensor's type, shape and place; the values. A SAM may be two files,
NAME_encoder.safetensors and NAME_decoder.safetensors (prompt encoder and mask decoder); the encoder's stands
for both.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samunet.errors import SamunetError
from samunet.networks.sam.weight_files import ENCODER_ENDING, decoder_file
from samunet.records import atomic_path

_TYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}
_LONGEST_HEADER = 100_000_000
_ALIGNMENT = 8


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, floating ones as float32.

    Raises:
        SamunetError: cut off, damaged, or something else than this format.
    """
    content = path.read_bytes()
    try:
        (length,) = struct.unpack("<Q", content[:8])
        if length > min(_LONGEST_HEADER, len(content) - 8):
            raise ValueError("the header is longer than the file")
        header = json.loads(content[8 : 8 + length])
        values = memoryview(content)[8 + length :]
        return {name: _tensor(entry, values) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise SamunetError(
            f"{path} cannot be read as safetensors: it is damaged, cut off ({len(content):,} bytes), or "
            f"something else ({error}). Fetch or make it again."
        ) from error


def _tensor(entry: Mapping[str, Any], values: memoryview) -> Tensor:
    kind, shape, (begin, end) = _TYPES[entry["dtype"]], list(entry["shape"]), entry["data_offsets"]
    size = math.prod(shape) * torch.empty(0, dtype=kind).element_size()
    if not 0 <= begin <= end <= len(values) or end - begin != size:
        raise ValueError("a tensor does not lie within the file")
    if size == 0:
        return torch.zeros(shape, dtype=torch.float32 if kind.is_floating_point else kind)
    tensor = torch.frombuffer(bytearray(values[begin:end]), dtype=kind).reshape(shape)
    return tensor.float() if kind.is_floating_point else tensor


def read_sam_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a whole SAM: of one file, or of an encoder's file and the decoder's beside it.

    Raises:
        SamunetError: one of them is missing or cannot be read.
    """
    state = read_tensors(path)
    if not path.name.endswith(ENCODER_ENDING):
        return state
    second = decoder_file(path)
    if not second.is_file():
        raise SamunetError(
            f"{path} holds an encoder; the decoder that belongs to it, {second.name}, is not beside it."
        )
    return {**state, **read_tensors(second)}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file, complete or not at all.

    Args:
        path: its name.
        tensors: of the types that the format knows; on any device.
        metadata: words that go into the header.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    blocks, place = [], 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        block = tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + len(block)],
        }
        blocks.append(block)
        place += len(block)
    words = json.dumps(header, separators=(",", ":")).encode()
    words += b" " * (-len(words) % _ALIGNMENT)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(words)) + words)
        file.writelines(blocks)


def write_sam_pair(
    encoder: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[Path, Path]:
    """Write a SAM's state dict in fp16 as two files.

    Args:
        encoder: NAME_encoder.safetensors.
        state: keys of a whole SAM, floating.
        metadata: words that go into both headers.

    Returns:
        the encoder's file and the decoder's.

    Raises:
        SamunetError: values that fp16 cannot hold.
    """
    assert encoder.name.endswith(ENCODER_ENDING), encoder.name
    half = {name: value.half() for name, value in state.items()}
    overflowing = [name for name, value in half.items() if not value.isfinite().all()]
    if overflowing:
        raise SamunetError(f"{encoder}: fp16 cannot hold the values of {', '.join(overflowing[:3])}.")
    of_encoder = {name: value for name, value in half.items() if name.startswith("image_encoder.")}
    second = decoder_file(encoder)
    write_tensors(second, {n: v for n, v in half.items() if n not in of_encoder}, metadata)
    write_tensors(encoder, of_encoder, metadata)
    return encoder, second
