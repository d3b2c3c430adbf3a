"""Reading SAM weights files: strictly, with counted keys, and with a reason when a file is refused."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.networks.sam.adapters import adapter_width, add_adapters, is_adapter_key
from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.package import modeling
from samunet.networks.sam.variants import PATCH, REFUSED, VARIANTS, SamVariant, get_variant
from samunet.networks.sam.weight_files import DECODER_ENDING, decoder_file, weights_sha256

logger = logging.getLogger(__name__)

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
_MOBILE_SAM_KEY = "image_encoder.patch_embed.seq.0.c.weight"
_MOST_COMMON = "vit_b"
"""What a file of an unknown variant is compared with."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class SamWeights:
    """A complete SAM: state dicts of its three parts, without prefixes, and where they came from.

    The encoder's may have adapters besides (`networks/sam/adapters.py`).
    """

    variant: SamVariant
    path: Path
    sha256: str
    image_encoder: dict[str, Tensor]
    prompt_encoder: dict[str, Tensor]
    mask_decoder: dict[str, Tensor]

    @property
    def adapted(self) -> bool:
        """Whether the encoder's blocks have adapters."""
        return any(map(is_adapter_key, self.image_encoder))

    @property
    def count(self) -> int:
        """Tensors in all three parts."""
        return sum(len(getattr(self, part)) for part in PARTS)


def build_parts(variant: SamVariant, input_size: int | None = None) -> dict[str, Any]:
    """The three parts of a SAM at its native or another input size, as the package builds them."""
    size = input_size or variant.native_size
    grid = (size // PATCH, size // PATCH)
    return {
        "image_encoder": SamImageEncoder(variant, size),
        "prompt_encoder": modeling.PromptEncoder(
            embed_dim=variant.prompt_dim,
            image_embedding_size=grid,
            input_image_size=(size, size),
            mask_in_chans=16,
        ),
        "mask_decoder": modeling.MaskDecoder(
            transformer_dim=variant.prompt_dim,
            transformer=modeling.TwoWayTransformer(
                depth=2,
                embedding_dim=variant.prompt_dim,
                num_heads=variant.decoder_heads,
                mlp_dim=variant.decoder_mlp,
            ),
        ),
    }


@lru_cache
def expected_shapes(name: str, adapters: int | None = None) -> dict[str, tuple[int, ...]]:
    """Shape of every key that a weights file of this variant holds; nothing is allocated.

    Args:
        name: of the variant.
        adapters: width of the adapters in the encoder's blocks; None for a file without.
    """
    with torch.device("meta"):
        parts = build_parts(get_variant(name))
        if adapters is not None:
            add_adapters(parts["image_encoder"], adapters)
    return {
        f"{part}.{key}": tuple(tensor.shape)
        for part, module in parts.items()
        for key, tensor in module.state_dict().items()
    }


def read_weights(path: Path, variant: str) -> SamWeights:
    """Read a SAM weights file.

    Args:
        path: an official file, or one with the same keys (fine-tuned, such as MedSAM's), `.pth` or
            `.safetensors`; of a pair of files the encoder's. Half precision is widened to float32. The
            encoder's blocks may have adapters besides.
        variant: the encoder it must be of.

    Raises:
        SamunetError: no such file, cut off, not a plain state dict, another network or another variant, with
            missing, unexpected and misshapen keys counted.
    """
    path, chosen = Path(path), get_variant(variant)
    state = _read_state(path, chosen)
    _check_keys(state, chosen, path)
    sha256 = weights_sha256(path)
    if chosen.official and sha256 != chosen.official.sha256:
        logger.warning("%s is not the official file of %s (SHA-256 %s); using it.", path, variant, sha256)
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, tensor in state.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    return SamWeights(variant=chosen, path=path, sha256=sha256, **parts)


def read_any_weights(path: Path) -> SamWeights:
    """Read a SAM weights file of whichever variant its keys and shapes are.

    Raises:
        SamunetError: as `read_weights`, or no variant fits.
    """
    state = _read_state(Path(path), get_variant(_MOST_COMMON))
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items() if not is_adapter_key(key)}
    fitting = [name for name in VARIANTS if shapes == expected_shapes(name)]
    return read_weights(path, fitting[0] if fitting else _MOST_COMMON)


def _read_state(path: Path, variant: SamVariant) -> dict[str, Tensor]:
    if not path.is_file():
        raise SamunetError(
            f"There is no weights file {path}. Fetch it with `samunet_download_weights {variant.name}`, "
            "or name the folder that holds it with -w."
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path, variant)
    try:
        # Mapped into memory: of a 2.5 GB file only what is used is read, and only once.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise SamunetError(
            f"{path} cannot be read as PyTorch weights: {_diagnosis(path, variant)}"
        ) from error
    if not isinstance(content, Mapping) or not content or not all(map(torch.is_tensor, content.values())):
        raise SamunetError(
            f"{path} is not a plain SAM state dict but {_describe(content)}. Save the bare state dict of the "
            f"whole SAM ({', '.join(PARTS)}) and name that file."
        )
    return _widened(content)


def _read_safetensors(path: Path, variant: SamVariant) -> dict[str, Tensor]:
    """Tensors of a file, and of the decoder's file that belongs to it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.name.endswith(DECODER_ENDING):
        raise SamunetError(f"{path} holds the decoder of a pair of files; name the encoder's file.")
    decoder = decoder_file(path)
    if decoder is not None and not decoder.is_file():
        raise SamunetError(f"{path} is one of a pair of files, and {decoder.name} is not beside it.")
    state: dict[str, Tensor] = {}
    for file in (path, *(() if decoder is None else (decoder,))):
        try:
            content = load_file(file, device="cpu")
        except SafetensorError as error:
            raise SamunetError(
                f"{file} cannot be read as safetensors: {_diagnosis(file, variant)}"
            ) from error
        twice = sorted(state.keys() & content.keys())
        if twice:
            raise SamunetError(f"{path} and {file.name} both hold {_fault('keys', twice)}.")
        state.update(content)
    return _widened(state)


def _widened(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    half = (torch.float16, torch.bfloat16)
    return {key: tensor.float() if tensor.dtype in half else tensor for key, tensor in state.items()}


def _diagnosis(path: Path, variant: SamVariant) -> str:
    size = path.stat().st_size
    official = variant.official
    if official and path.name == official.name and size != official.size:
        return (
            f"it has {size:,} bytes, the official file about {official.size:,}, so it is cut off. "
            f"Delete it and run `samunet_download_weights {variant.name}`."
        )
    return (
        f"it is damaged, cut off ({size:,} bytes), or something else than a file of tensors. "
        f"Fetch it again; official weights: `samunet_download_weights {variant.name}`."
    )


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        names = listed(list(map(repr, content)), most=_SHOWN)
        return f"a dictionary with the entries {names or 'none'}"
    return f"a {type(content).__name__}"


def _check_keys(state: Mapping[str, Tensor], variant: SamVariant, path: Path) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    expected = expected_shapes(variant.name, adapter_width(state))
    if shapes == expected:
        return
    if _MOBILE_SAM_KEY in shapes:
        raise SamunetError(
            f"{path} is refused: it {REFUSED['vit_t']}. samunet needs the file of {variant.name}."
        )
    for name in VARIANTS:
        if name != variant.name and shapes == expected_shapes(name):
            raise SamunetError(
                f"{path} holds the weights of {name}, not of {variant.name}. "
                f"Use -encoder {name}, or the file {variant.file_name}."
            )
    faults = [
        _fault("missing", [key for key in expected if key not in shapes]),
        _fault("unexpected", [key for key in shapes if key not in expected]),
        _fault(
            "of another shape",
            [
                f"{key} {list(shape)} instead of {list(expected[key])}"
                for key, shape in shapes.items()
                if key in expected and shape != expected[key]
            ],
        ),
    ]
    raise SamunetError(
        f"{path} does not fit {variant.name}: of {len(expected)} keys "
        f"{'; '.join(fault for fault in faults if fault)}. Nothing was loaded."
    )


def _fault(kind: str, keys: list[str]) -> str:
    if not keys:
        return ""
    return f"{len(keys)} {kind} ({listed(keys, most=_SHOWN)})"


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of tensors, whatever file or device they are on.

    It names frozen weights that no file holds, such as a randomly initialised encoder's.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
