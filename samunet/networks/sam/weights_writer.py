"""Writing a SAM's state dict with the keys of the official files: one `.pth`, or a pair of fp16 files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import DECODER_ENDING, ENCODER_ENDING
from samunet.networks.sam.weights import PARTS, expected_shapes
from samunet.whole_files import atomic_path


def whole_state(parts: Mapping[str, nn.Module], variant: str) -> dict[str, Tensor]:
    """State dict of the three parts of `build_parts`, detached on the CPU, with the official files' keys.

    Every tensor owns its memory: a view would drag its whole storage into the file.
    """
    state = {
        f"{part}.{key}": tensor.detach().to("cpu", copy=True).contiguous()
        for part in PARTS
        for key, tensor in parts[part].state_dict().items()
    }
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert shapes == expected_shapes(get_variant(variant).name)
    return state


def write_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a whole SAM as one `.pth`, complete or not at all."""
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)


def write_pair(state: Mapping[str, Tensor], folder: Path, stem: str) -> Path:
    """Write a whole SAM as two fp16 safetensors files, encoder and decoder (with the prompt encoder).

    Args:
        state: as `whole_state` gives it.
        folder: where the files go.
        stem: their name before `_encoder.safetensors` and `_decoder.safetensors`.

    Returns:
        the encoder's file, which stands for both.

    Raises:
        SamunetError: a value is too large for half precision or is not finite; nothing is written then.
    """
    from safetensors.torch import save

    halves = {key: tensor.half() for key, tensor in state.items()}
    bad = [key for key, tensor in halves.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise SamunetError(
            f"{len(bad)} tensors cannot be kept in half precision ({listed(bad, most=3)}): values are not "
            "finite or beyond 65504. Keep the .pth, or train again."
        )
    encoder = folder / f"{stem}{ENCODER_ENDING}"
    of_encoder = {key: value for key, value in halves.items() if key.startswith(PARTS[0] + ".")}
    of_decoder = {key: value for key, value in halves.items() if key not in of_encoder}
    with atomic_path(folder / f"{stem}{DECODER_ENDING}") as first, atomic_path(encoder) as second:
        # As bytes through Python's own file, so that a full disk is an OSError.
        first.write_bytes(save(of_decoder))
        second.write_bytes(save(of_encoder))
    return encoder
