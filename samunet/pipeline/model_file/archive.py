"""The .zip of a shared model: written with hashes, and opened as something that may be hostile.

Nothing of a foreign file is trusted before it is checked: names, kinds and sizes of the entries first, then
model.json, then every file's hash while it is unpacked into a folder of its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.pipeline.model_file.contents import (
    LARGEST_MODEL,
    LARGEST_RATIO,
    LARGEST_TEXT,
    MOST_FILES,
    REQUIRED,
    fold_files,
    is_allowed,
    is_tensors,
)
from samunet.pipeline.model_file.foreign_text import check_foreign_file, read_foreign_json
from samunet.records import to_data
from samunet.trainers.portable import MODEL_FILE, FileEntry, ModelRecord, parse_model

PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib", ".npy", ".npz")
"""Endings of files that may run code when they are read."""
_BLOCK = 1 << 20
_DATE = (1980, 1, 1, 0, 0, 0)
_ENCRYPTED = 0x1
_SHOWN = 5
_DAMAGED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    UnicodeDecodeError,
)
"""What zipfile raises for names that are no text, and for places that no file has, besides its own errors."""


class ModelWriter:
    """Adds files to a zip and keeps their hashes."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.files: dict[str, FileEntry] = {}

    def add(self, name: str, content: bytes) -> None:
        """Add a file; weights are not packed, they hardly shrink."""
        assert is_allowed(name), name
        info = zipfile.ZipInfo(name, _DATE)
        info.external_attr = (stat.S_IFREG | 0o644) << 16
        info.compress_type = zipfile.ZIP_STORED if is_tensors(name) else zipfile.ZIP_DEFLATED
        self._archive.writestr(info, content)
        self.files[name] = FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))

    def add_json(self, name: str, value: Any) -> None:
        """Add a record or plain data."""
        self.add(name, (json.dumps(to_data(value), indent=1) + "\n").encode())


@contextmanager
def open_model(file: Path) -> Iterator[tuple[zipfile.ZipFile, ModelRecord]]:
    """Open a shared model whose entries and model.json are sound; the files are not read yet.

    Raises:
        SamunetError: no such file, no zip, or something in it that no model of ours has; names all such
            entries.
    """
    if not file.is_file():
        raise SamunetError(f"There is no file {file}.")
    try:
        with zipfile.ZipFile(file) as archive:
            _check_entries(archive, file)
            yield archive, _read_record(archive, file)
    except _DAMAGED as fault:
        raise _damaged(file, fault) from fault
    except OSError as fault:
        if fault.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        raise _damaged(file, fault) from fault


def _damaged(file: Path, fault: Exception) -> SamunetError:
    return SamunetError(
        f"{file} cannot be read as a zip ({fault}): it is cut off, damaged or something else. Copy it again."
    )


def unpack(archive: zipfile.ZipFile, record: ModelRecord, folder: Path, file: Path) -> None:
    """Write all files into an empty folder, each checked against its hash and size on the way, then as text.

    Raises:
        SamunetError: a file is not the one that model.json lists, or its text should reach no screen.
    """
    for info in archive.infolist():
        target = folder / info.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        expected = None if info.filename == MODEL_FILE else record.files[info.filename]
        digest, size = hashlib.sha256(), 0
        with archive.open(info) as source, target.open("xb") as out:
            while block := source.read(_BLOCK):
                size += len(block)
                digest.update(block)
                out.write(block)
        if expected is not None and (digest.hexdigest(), size) != (expected.sha256, expected.bytes):
            raise SamunetError(
                f"{file}: {info.filename} is not the file that {MODEL_FILE} lists (SHA-256 "
                f"{digest.hexdigest()[:12]}..., listed {expected.sha256[:12]}...): damaged, or changed "
                "afterwards. Nothing was installed; get the file again from who shared it."
            )
        if not is_tensors(info.filename):
            _check_text(target, info.filename, file)


def _check_text(unpacked: Path, name: str, file: Path) -> None:
    try:
        check_foreign_file(unpacked, name)
    except SamunetError as fault:
        told = str(fault).replace(str(unpacked), name)
        raise SamunetError(f"{file} is refused: {told} Nothing was installed.") from fault


def _check_entries(archive: zipfile.ZipFile, file: Path) -> None:
    """Names, kinds and sizes of all entries, without reading one."""
    infos = archive.infolist()
    if len(infos) > MOST_FILES:
        raise SamunetError(
            f"{file} is refused: its {len(infos)} files are more than any model has. Nothing was installed."
        )
    names = [info.orig_filename for info in infos]
    _refuse(file, "lead out of the folder that it is unpacked into", [n for n in names if _escapes(n)])
    pickles = [n for n in names if n.lower().endswith(PICKLES)]
    _refuse(file, "may be pickles, which run any code when they are read", pickles)
    _refuse(file, "are no files of a shared model", [n for n in names if not is_allowed(n)])
    counts = Counter(n.lower() for n in names)
    _refuse(file, "are there twice", sorted({n for n in names if counts[n.lower()] > 1}))
    _refuse(file, "are links or special files", [i.filename for i in infos if not _is_plain(i)])
    _refuse(file, "are encrypted", [i.filename for i in infos if i.flag_bits & _ENCRYPTED])
    packed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    _refuse(file, "are packed in another way", [i.filename for i in infos if i.compress_type not in packed])
    large = [i.filename for i in infos if not is_tensors(i.filename) and i.file_size > LARGEST_TEXT]
    _refuse(file, f"are text of more than {LARGEST_TEXT / 1e6:g} MB", large)
    total = sum(info.file_size for info in infos)
    if total > LARGEST_MODEL or total > LARGEST_RATIO * max(1, file.stat().st_size):
        raise SamunetError(
            f"{file} ({file.stat().st_size:,} bytes) is refused: it would unpack to {total:,} bytes. That "
            "is no model of samunet."
        )
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise SamunetError(
            f"{file} is not a model that samunet_export_model wrote: it lacks {', '.join(missing)}."
        )


def _refuse(file: Path, reason: str, names: list[str]) -> None:
    if names:
        shown = listed([repr(name) for name in names], _SHOWN)
        raise SamunetError(
            f"{file} is refused: {len(names)} of its entries {reason}: {shown}. Nothing was installed."
        )


def _escapes(name: str) -> bool:
    """Whether a name is absolute, has a drive letter, a backslash, a NUL, or a step upwards."""
    parts = name.split("/")
    return (
        name.startswith("/")
        or re.match(r"[A-Za-z]:", name) is not None
        or "\\" in name
        or "\0" in name
        or ".." in parts
    )


def _is_plain(info: zipfile.ZipInfo) -> bool:
    """Whether the entry is an ordinary file; archives without Unix modes say nothing, which is fine."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    return not info.is_dir() and kind in (0, stat.S_IFREG)


def _read_record(archive: zipfile.ZipFile, file: Path) -> ModelRecord:
    """model.json, and whether it lists the entries that are there."""
    where = f"{file}: {MODEL_FILE}"
    record = parse_model(read_foreign_json(archive.read(MODEL_FILE), where), where)
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    there = set(sizes) - {MODEL_FILE}
    listed = set(record.files)
    faults = [f"{name} is listed but not there" for name in sorted(listed - there)]
    faults += [f"{name} is there but not listed" for name in sorted(there - listed)]
    for name in sorted(there & listed):
        if record.files[name].bytes != sizes[name]:
            told = f"{sizes[name]} bytes, not the {record.files[name].bytes} that are listed"
            faults.append(f"{name} has {told}")
    of_folds = {name for name in listed if "/" in name}
    if of_folds != fold_files(record.folds) or not record.folds:
        faults.append(f"folds {list(record.folds)} do not go with its files")
    if faults:
        raise SamunetError(f"{where}: {'; '.join(faults[:_SHOWN])}. Nothing was installed.")
    return record
