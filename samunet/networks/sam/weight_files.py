"""Where weights files lie and what they are, by name and hash. No torch."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Literal

from samunet.errors import SamunetError
from samunet.networks.sam.variants import VARIANTS, get_variant

WeightsKind = Literal["official", "shipped", "file"]
ENCODER_ENDING, DECODER_ENDING = "_encoder.safetensors", "_decoder.safetensors"
SHIPPED = Path(__file__).with_name("shipped")
"""Folder of the weights that come with the package; empty or absent where none do."""
_BLOCK = 1 << 22


def decoder_file(encoder: Path) -> Path:
    """The file beside an encoder's that holds its prompt encoder and mask decoder."""
    return encoder.with_name(encoder.name.removesuffix(ENCODER_ENDING) + DECODER_ENDING)


def shipped_weights(variant: str) -> Path | None:
    """The encoder's file of weights inside the package, or None."""
    path = SHIPPED / f"samunet_{get_variant(variant).name}{ENCODER_ENDING}"
    return path if path.is_file() else None


def is_shipped(path: Path) -> bool:
    """Whether a file is one of the package's own."""
    return Path(path).resolve().parent == SHIPPED.resolve()


def find_weights(folder: Path, variant: str) -> Path | None:
    """The weights file of an encoder in a folder, else the one that comes with the package, or None.

    It is the official name (`sam_vit_b_01ec64.pth`; `samunet_vit_tiny.pth` for our own), else one file whose
    name contains the variant's, such as `medsam_vit_b.pth`. Of a pair of files it is the encoder's.

    Raises:
        SamunetError: several other files could be meant, or the variant is unknown.
    """
    folder = Path(folder)
    official = folder / get_variant(variant).file_name
    if official.is_file():
        return official
    others = sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_file() and _may_be_weights(path) and variant in path.stem
    )
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise SamunetError(
            f"{folder} holds several files that could be the weights of {variant}: {names}. "
            f"Keep one, or name it {official.name}."
        )
    return others[0] if others else shipped_weights(variant)


def _may_be_weights(path: Path) -> bool:
    return path.suffix in (".pth", ".pt", ".safetensors") and not path.name.endswith(DECODER_ENDING)


def weights_kind(path: Path, variant: str) -> WeightsKind:
    """What a found file is by its name: the official one, ours, or somebody else's (fine-tuned)."""
    chosen = get_variant(variant)
    if is_shipped(path):
        return "shipped"
    if Path(path).name != chosen.file_name:
        return "file"
    return "official" if chosen.official else "shipped"


def weights_at_hand(folder: Path) -> dict[str, WeightsKind]:
    """Kind of weights for every encoder that has some in the folder."""
    found = ((name, find_weights(folder, name)) for name in VARIANTS)
    return {name: weights_kind(path, name) for name, path in found if path is not None}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; remembered until the file changes."""
    status = Path(path).stat()
    return _file_sha256(Path(path).resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _file_sha256(path: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
