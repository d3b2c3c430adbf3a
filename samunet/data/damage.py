"""Damage that SimpleITK and tifffile pass over in silence: files that end too early, NaN in NIfTI files."""

from __future__ import annotations

import errno
import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samunet.errors import SamunetError

NIFTI1_HEADER, NIFTI2_HEADER = 348, 540
NIFTI_FLOATS = {16: "f4", 64: "f8"}
GZIP_MAGIC = b"\x1f\x8b"
BLOCK_BYTES = 1 << 22
GIPL_HEADER = 256


def truncated(path: Path, reason: str) -> SamunetError:
    """The error for a file that cannot be read because it is damaged or ends early."""
    return SamunetError(
        f"{path} is truncated or damaged ({reason}). Copy or write it again, or take it out of the dataset."
    )


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed; one that only has the name is read as it is, as SimpleITK does."""
    with path.open("rb") as file:
        return path.name.lower().endswith(".gz") and file.read(2) == GZIP_MAGIC


def is_refusal(error: Exception) -> bool:
    """Whether the system did not let a file be read, whatever it holds; a senseless offset is damage."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def nonfinite(path: Path, count: int) -> SamunetError:
    """The error for NaN and infinity."""
    return SamunetError(
        f"{path} holds {count} voxels that are NaN or infinite. Replace them by finite values."
    )


def check_complete(path: Path) -> None:
    """Compare the size of a file with what its header promises (NIfTI, GIPL, TIFF; others fail on reading).

    Raises:
        SamunetError: the file is empty or ends early.
    """
    if path.stat().st_size == 0:
        raise truncated(path, "it is empty")
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            _check_nifti(path)
        elif name.endswith(".gipl"):
            _check_gipl(path)
        elif name.endswith((".tif", ".tiff")):
            _check_tiff(path)
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error) as error:
        raise truncated(path, str(error)) from error


def _check_nifti(path: Path) -> None:
    packed = is_gzip(path)
    with gzip.open(path) if packed else path.open("rb") as file:
        expected = _nifti_layout(path, file.read(NIFTI2_HEADER)).end
    present = _gzip_bytes(path, expected) if packed else path.stat().st_size
    if present < expected:
        raise truncated(path, f"{present} bytes of {expected}")


@dataclass(frozen=True)
class _NiftiLayout:
    """Where the voxels of an uncompressed file lie, bytes, and their type if they are real floats."""

    start: int
    end: int
    float_type: str | None


def _nifti_layout(path: Path, header: bytes) -> _NiftiLayout:
    """Read the layout from the header of a NIfTI-1 or NIfTI-2 file."""
    if len(header) < NIFTI1_HEADER:
        raise truncated(path, "not even the header is complete")
    for order in "<>":
        (size,) = struct.unpack_from(f"{order}i", header)
        if size == NIFTI1_HEADER:
            dims = struct.unpack_from(f"{order}8h", header, 40)
            code, bits = struct.unpack_from(f"{order}2h", header, 70)
            (start,) = struct.unpack_from(f"{order}f", header, 108)
        elif size == NIFTI2_HEADER:
            dims = struct.unpack_from(f"{order}8q", header, 16)
            code, bits = struct.unpack_from(f"{order}2h", header, 12)
            (start,) = struct.unpack_from(f"{order}q", header, 168)
        else:
            continue
        voxels = math.prod(max(n, 1) for n in dims[1 : 1 + max(0, min(dims[0], 7))])
        kind = NIFTI_FLOATS.get(code)
        # SimpleITK takes a start inside the header, and one that is no number, for the header's end.
        first = int(start) if size <= start < math.inf else size
        return _NiftiLayout(first, first + voxels * bits // 8, kind and order + kind)
    raise SamunetError(f"{path} is not a NIfTI file (its header starts with {header[:4]!r}).")


def count_nonfinite_nifti(path: Path) -> int:
    """NaN and infinite voxels of a NIfTI file. SimpleITK would read them as 0 without a word."""
    with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
        layout = _nifti_layout(path, file.read(NIFTI2_HEADER))
        if layout.float_type is None:
            return 0
        item = np.dtype(layout.float_type).itemsize
        file.seek(layout.start)
        left, bad = layout.end - layout.start, 0
        while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
            left -= len(block)
            whole = len(block) // item * item
            values = np.frombuffer(block[:whole], layout.float_type)
            bad += int(np.count_nonzero(~np.isfinite(values)))
        return bad


def _gzip_bytes(path: Path, expected: int) -> int:
    """Uncompressed size of a gzip file; unpacked only when its last four bytes do not confirm `expected`."""
    with path.open("rb") as file:
        file.seek(-4, 2)
        (stated,) = struct.unpack("<I", file.read(4))
    if stated == expected % 2**32:
        return expected
    size = 0
    with gzip.open(path) as file:  # several gzip members, trailing bytes, or a truncated file
        while block := file.read(BLOCK_BYTES):
            size += len(block)
    return size


def _check_gipl(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(GIPL_HEADER)
    sizes = struct.unpack_from(">4H", header, 0)
    (kind,) = struct.unpack_from(">H", header, 8)
    bits = {1: 1, 7: 8, 8: 8, 15: 16, 16: 16, 31: 32, 32: 32, 64: 32, 65: 64}.get(kind, 0)
    voxels = math.prod(max(size, 1) for size in sizes)
    expected, present = GIPL_HEADER + voxels * bits // 8, path.stat().st_size
    if present < expected:
        raise truncated(path, f"{present} bytes of {expected}")


def _check_tiff(path: Path) -> None:
    """Follow the chain of image directories: each must lie inside the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(start[:2])
        if order is None:
            raise SamunetError(f"{path} is not a TIFF file (it starts with {start[:4]!r}).")
        is_big = struct.unpack_from(f"{order}H", start, 2)[0] == 43
        count_format, entry_bytes, offset_format = ("Q", 20, "Q") if is_big else ("H", 12, "I")
        (offset,) = struct.unpack_from(order + offset_format, start, 8 if is_big else 4)
        seen: set[int] = set()
        while offset and offset not in seen:
            seen.add(offset)
            if offset >= size:
                raise truncated(path, f"its directory of images points beyond its end at {size} bytes")
            file.seek(offset)
            (entries,) = struct.unpack(order + count_format, file.read(struct.calcsize(count_format)))
            file.seek(entries * entry_bytes, 1)
            (offset,) = struct.unpack(order + offset_format, file.read(struct.calcsize(offset_format)))
