"""Where weights files lie and what they are, by name and hash. No torch."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Literal

from samunet.errors import SamunetError
from samunet.networks.sam.variants import VARIANTS, get_variant

WeightsKind = Literal["official", "shipped", "file"]
SUFFIXES = (".pth", ".pt", ".safetensors")
"""Of files that hold weights."""
ENCODER_ENDING = "_encoder.safetensors"
DECODER_ENDING = "_decoder.safetensors"
"""Endings of the two files of a pair: image encoder, and prompt encoder with mask decoder."""
HALF_ENDING = "_fp16"
"""Of the folder of a pair that a pretraining writes beside its result."""
SHIPPED = Path(__file__).with_name("shipped")
"""Folder of the package for weights that come with it; empty or absent in releases without."""
_BLOCK = 1 << 22
_NAMES_BYTES = 1 << 22
"""In which the names of all tensors stand, at the start of a file that is no archive."""
_ADAPTER_KEY = re.compile(rb"blocks\.\d+\.(attention|mlp)_adapter\.down\.weight")


def find_weights(folder: Path | None, variant: str, *, shipped: bool = True) -> Path | None:
    """The weights file of an encoder: one of the folder, else the one shipped with the package, or None.

    Of a folder that the user named (`shipped` false) nothing else is taken: those of the package stay out.

    In the folder it is the official name (`sam_vit_b_01ec64.pth`; `samunet_vit_tiny.pth` or the pair
    `samunet_vit_tiny_encoder.safetensors`, `..._decoder.safetensors` for our own), else one file whose name
    contains the variant's, such as `medsam_vit_b.pth`. Of a pair the encoder's file
    is returned; it stands for both.

    Raises:
        SamunetError: several other files could be meant, or the variant is unknown.
    """
    official = get_variant(variant).file_name
    for name in (official, *_pair_names(variant)[:1]):
        if folder is not None and (Path(folder) / name).is_file():
            return Path(folder) / name
    others = [path for path in _weights_in(folder) if variant in path.stem]
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise SamunetError(
            f"{folder} holds several files that could be the weights of {variant}: {names}. "
            f"Keep one, or name it {official}."
        )
    if others:
        return others[0]
    return shipped_weights(variant) if shipped else None


def shipped_weights(variant: str) -> Path | None:
    """The encoder's file of the pair that lies in the package, or None when this release has none."""
    path = SHIPPED / _pair_names(variant)[0]
    return path if path.is_file() else None


def named_weights(folder: Path, given: Path) -> Path:
    """What `-w GIVEN` means: an existing file or folder, else weights of that name, else an encoder's.

    Args:
        folder: where weights lie; NAME.pth, NAME.pt, NAME.safetensors and NAME_encoder.safetensors are tried
            there and in the package, then the folders NAME and NAME_fp16 there. The name of an encoder means
            what a plan would take for it.
        given: as the user wrote it.

    Returns:
        an absolute path; `given` itself where nothing of that name is found, so that the message shows the
        user's words.
    """
    if given.exists():
        return Path(os.path.abspath(given))
    if given.name != str(given):
        return given
    endings = ("", *SUFFIXES, ENCODER_ENDING)
    candidates = [place / f"{given}{ending}" for place in (folder, SHIPPED) for ending in endings]
    places = [folder / f"{given}{ending}" for ending in ("", HALF_ENDING)]
    named = [path for path in candidates if path.is_file()] + [path for path in places if path.is_dir()]
    if named:
        return Path(os.path.abspath(named[0]))
    return (find_weights(folder, given.name) if given.name in VARIANTS else None) or given


def only_weights(path: Path) -> Path:
    """The file that a folder named with -w stands for where it holds a single one, whatever its name.

    Returns:
        That file; the folder itself where files are named after their encoders; `path` itself where it is no
        folder.

    Raises:
        SamunetError: the folder holds no weights, or several of which no name says whose they are.
    """
    if not path.is_dir():
        return path
    found = _weights_in(path)
    if not found:
        raise SamunetError(
            f"-w {path}: this folder holds no weights file ({', '.join(SUFFIXES)}). Name another one."
        )
    if len(found) == 1:
        return found[0]
    if not any(variant in file.stem for file in found for variant in VARIANTS):
        names = ", ".join(file.name for file in found)
        raise SamunetError(
            f"-w {path}: this folder holds several weights files, none named after an encoder: {names}. "
            "Name one of them."
        )
    return path


def decoder_file(path: Path) -> Path | None:
    """The decoder's file that goes with the encoder's of a pair; None for a file that holds a whole SAM."""
    if not path.name.endswith(ENCODER_ENDING):
        return None
    return path.with_name(path.name.removesuffix(ENCODER_ENDING) + DECODER_ENDING)


def _weights_in(folder: Path | None) -> list[Path]:
    """Files of the folder that may be weights, sorted; decoders of pairs left out."""
    if folder is None or not Path(folder).is_dir():
        return []
    return sorted(
        path
        for path in Path(folder).iterdir()
        if path.is_file()
        and path.suffix in SUFFIXES
        and not path.name.startswith(".")
        and not path.name.endswith(DECODER_ENDING)
    )


def weights_with_hash(folder: Path | None, sha256: str) -> Path | None:
    """The weights of that content in a folder, whatever their name; every file there is read."""
    return next((path for path in _weights_in(folder) if weights_sha256(path) == sha256), None)


def _pair_names(variant: str) -> tuple[str, str]:
    stem = f"samunet_{variant}"
    return stem + ENCODER_ENDING, stem + DECODER_ENDING


def weights_kind(path: Path, variant: str) -> WeightsKind:
    """What a found file is: the official one by its name, ours by its content, else somebody's own."""
    chosen = get_variant(variant)
    if chosen.official:
        return "official" if Path(path).name == chosen.file_name else "file"
    shipped = shipped_weights(variant)
    if shipped is None:
        return "file"
    return "shipped" if weights_sha256(path) == weights_sha256(shipped) else "file"


def file_has_adapters(path: Path) -> bool:
    """Whether the encoder in a weights file has adapters (`samunet_pretrain --adapters`).

    Only the names of the tensors are read. A file that is no weights file has none: whoever loads it says
    what is wrong with it.
    """
    try:
        return _ADAPTER_KEY.search(_names(Path(path))) is not None
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return False


def _names(path: Path) -> bytes:
    """The part of a weights file that holds the names of its tensors."""
    if path.suffix != ".safetensors" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            listing = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return archive.read(listing[0]) if listing else b""
    with open(path, "rb") as file:
        if path.suffix != ".safetensors":
            return file.read(_NAMES_BYTES)
        return file.read(min(int.from_bytes(file.read(8), "little"), _NAMES_BYTES))


def adapters_refused(what: str) -> str:
    """Why `3d_adapter` does not take an encoder with adapters; `what` begins the sentence."""
    return (
        f"{what} is an encoder with adapters for 2D slices; 3d_adapter brings its own for volumes. Take the "
        "weights that the adapters were trained on, or a 2D method."
    )


def weights_at_hand(folder: Path | None, *, shipped: bool = True) -> dict[str, Path]:
    """Weights file of every encoder that has some in the folder or (`shipped`) in the package."""
    found = ((name, find_weights(folder, name, shipped=shipped)) for name in VARIANTS)
    return {name: path for name, path in found if path is not None}


def weights_sha256(path: Path) -> str:
    """SHA-256 of weights, hexadecimal: of the file; for a pair, of the text of both files' hashes in turn."""
    decoder = decoder_file(Path(path))
    if decoder is None or not decoder.is_file():
        return file_sha256(path)
    return hashlib.sha256((file_sha256(path) + file_sha256(decoder)).encode()).hexdigest()


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
