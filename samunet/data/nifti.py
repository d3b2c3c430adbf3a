"""Voxels of compressed NIfTI files, unpacked by zlib: several times faster than SimpleITK's own unpacking.

Only plain real types without scaling are read here; SimpleITK reads everything else, and every geometry.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samunet.data.damage import NIFTI1_HEADER, NIFTI2_HEADER, truncated

TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
"""NIfTI datatype code -> numpy type."""
EXTENSION_FLAG = 4
"""Bytes between the header and the first voxel that a file without extensions has."""


def read_compressed_voxels(path: Path, size: Sequence[int]) -> np.ndarray | None:
    """Voxels in the file's own type, axes reversed against `size`; None when SimpleITK must read the file.

    Args:
        path: a .nii.gz file.
        size: (x, y, z[, t]) as SimpleITK's header reader gives it.

    Raises:
        SamunetError: the file is damaged or ends early.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error) as error:
        raise truncated(path, str(error)) from error
    plain = _plain_layout(content, size)
    if plain is None:
        return None
    kind, start = plain
    count = int(np.prod(size))
    if len(content) < start + count * kind.itemsize:
        raise truncated(path, f"{len(content)} bytes of {start + count * kind.itemsize}")
    voxels = np.frombuffer(content, kind, count, start).reshape(tuple(size)[::-1])
    return voxels.astype(kind.newbyteorder("="))


def _plain_layout(content: bytes, size: Sequence[int]) -> tuple[np.dtype, int] | None:
    """Type and first byte of the voxels; None for scaled values, other types and shapes, and odd starts."""
    if len(content) < NIFTI1_HEADER:
        return None
    for order in "<>":
        (header,) = struct.unpack_from(f"{order}i", content)
        if header == NIFTI1_HEADER:
            dims = struct.unpack_from(f"{order}8h", content, 40)
            (code,) = struct.unpack_from(f"{order}h", content, 70)
            start, slope, intercept = struct.unpack_from(f"{order}3f", content, 108)
        elif header == NIFTI2_HEADER and len(content) >= NIFTI2_HEADER:
            dims = struct.unpack_from(f"{order}8q", content, 16)
            (code,) = struct.unpack_from(f"{order}h", content, 12)
            (start,) = struct.unpack_from(f"{order}q", content, 168)
            slope, intercept = struct.unpack_from(f"{order}2d", content, 176)
        else:
            continue
        is_plain = slope in (0, 1) and intercept == 0 and header + EXTENSION_FLAG <= start < math.inf
        if not is_plain or code not in TYPES or tuple(dims[1 : 1 + dims[0]]) != tuple(size):
            return None
        return np.dtype(order + TYPES[code]), int(start)
    return None
