"""TIFF through tifffile: pictures, and 3D stacks whose spacing lies in a JSON file beside them."""

from __future__ import annotations

import json
import logging
import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from samunet.data.damage import check_complete, is_refusal, truncated
from samunet.data.geometry import Geometry, Header
from samunet.data.pictures import flat_geometry, read_by_itk
from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.records import read_json
from samunet.whole_files import atomic_path, write_text

logger = logging.getLogger(__name__)

ENDINGS = (".tif", ".tiff")
CHANNEL_AXES, STACK_AXES = "SC", "ZQIT"
STUMBLES = (
    *(tifffile.TiffFileError, OSError, EOFError, struct.error, zlib.error, ValueError, TypeError),
    *(ArithmeticError, LookupError, AttributeError, AssertionError, RuntimeError),
)
"""What tifffile raises at damaged directories, tags and strips."""
SHOWN = 120
"""Characters of its words in a message; they may quote the file."""
LARGEST_RATIO = 1100
"""Bytes that one byte of a file can stand for, packed by zlib."""


def sidecar(path: Path) -> Path | None:
    """The JSON file with the spacing of a stack: that of its own name, else CASE.json for CASE_0000.tif."""
    stem = path.name[: -len(path.suffix)]
    for name in (stem, re.sub(r"_\d{4}$", "", stem)):
        if (path.parent / f"{name}.json").is_file():
            return path.parent / f"{name}.json"
    return None


def read_header(path: Path, is_label: bool = False) -> Header:
    """Shape and channels from the image directories, spacing from the sidecar."""
    with _opened(path) as file:
        shape, axes = _series(file, path)
    channel, spatial = _split_axes(path, axes, is_label)
    geometry, known = _geometry(path, [shape[axes.index(a)] for a in spatial])
    num_channels = shape[axes.index(channel)] if channel else 1
    return Header(geometry=geometry, num_channels=num_channels, spacing_known=known)


def read(path: Path, is_label: bool = False) -> tuple[np.ndarray, Geometry]:
    """Array (C, Z, Y, X) in the file's own type; a picture has Z = 1, a label map never several channels."""
    with _opened(path) as file:
        shape, axes = _series(file, path)
        array = _voxels(file, path)
    if array.size != int(np.prod(shape)):
        raise truncated(path, f"{array.shape} voxels where {shape} are announced")
    channel, spatial = _split_axes(path, axes, is_label)
    array = array.reshape(shape).transpose([axes.index(a) for a in channel + spatial])
    geometry, known = _geometry(path, array.shape[len(channel) :])
    if not known and not geometry.is_2d and not is_label:  # a label has its image's spacing
        warn_no_spacing(path.parent)
    return array.reshape(-1, *geometry.shape), geometry


def has_alpha(path: Path) -> bool:
    """Whether the pixels are red, green, blue and how opaque they are; four other channels are not."""
    with _opened(path) as file:
        page = file.pages.first
        is_colour = page.photometric == tifffile.PHOTOMETRIC.RGB
        return is_colour and page.planarconfig == tifffile.PLANARCONFIG.CONTIG and page.samplesperpixel == 4


def write(segmentation: np.ndarray, geometry: Geometry, path: Path) -> None:
    """Write a (Z, Y, X) unsigned integer array, and for a stack its spacing beside it."""
    array, axes = (segmentation[0], "YX") if geometry.is_2d else (segmentation, "ZYX")
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary, array, compression="zlib", photometric="minisblack", metadata={"axes": axes}
        )
    if not geometry.is_2d:
        spacing = json.dumps({"spacing": list(geometry.spacing_mm)})
        write_text(path.with_name(f"{path.name[: -len(path.suffix)]}.json"), spacing)


@contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """A file to read; whatever tifffile stumbles over, also in the block, is the file's damage."""
    try:
        check_complete(path)
        with tifffile.TiffFile(path) as file:
            yield file
    except SamunetError:
        raise
    except STUMBLES as error:
        if is_refusal(error):
            raise
        told = str(error).splitlines() or [type(error).__name__]
        raise truncated(path, told[0][:SHOWN]) from error


def _voxels(file: tifffile.TiffFile, path: Path) -> np.ndarray:
    """All slices; through SimpleITK where they are packed in a way that tifffile alone does not know."""
    try:
        images = [np.asarray(series.asarray()) for series in file.series]
        return images[0] if len(images) == 1 else np.stack(images)
    except MemoryError:
        _check_announced(file, path)
        raise
    except (ValueError, RuntimeError) as error:
        if "imagecodecs" not in str(error):
            raise
        return read_by_itk(path)


def _check_announced(file: tifffile.TiffFile, path: Path) -> None:
    """Refuse a file that announces more than it can hold, however it is packed."""
    announced, present = sum(series.nbytes for series in file.series), path.stat().st_size
    if announced > LARGEST_RATIO * present:
        raise truncated(path, f"it announces {announced} bytes, and has {present}")


def _series(file: tifffile.TiffFile, path: Path) -> tuple[tuple[int, ...], str]:
    """Shape and axis letters of what a file holds; axes of length one are left out.

    Pages that were written one by one are images of their own to tifffile, and the slices of a stack here.
    """
    if not file.series:
        raise truncated(path, "it holds no image")
    series = file.series[0]
    if 0 in series.shape:
        raise truncated(path, f"it announces the shape {series.shape}")
    kinds = {(image.shape, image.axes, str(image.dtype)) for image in file.series}
    if len(kinds) > 1:
        _check_announced(file, path)
        told = listed(sorted(f"{axes} {shape} {kind}" for shape, axes, kind in kinds), between="; ")
        raise SamunetError(
            f"{path} holds {len(file.series)} images of different kinds ({told}), so they are no slices of "
            "one stack. Keep one of them, such as the one without its preview or smaller copies."
        )
    shape, axes = series.shape, series.axes
    if len(file.series) > 1:
        shape, axes = (len(file.series), *shape), f"I{axes}"
    kept = [(n, a) for n, a in zip(shape, axes) if n > 1 or a in "YX" or a in STACK_AXES]
    return tuple(n for n, _ in kept), "".join(a for _, a in kept)


def _split_axes(path: Path, axes: str, is_label: bool = False) -> tuple[str, str]:
    """The channel axis (or none) and the spatial axes in the order z, y, x.

    tifffile writes a stack of three or four slices as separate colour planes; a sidecar, which only stacks
    have, and being a label map tell them from pictures.
    """
    channel = "".join(a for a in axes if a in CHANNEL_AXES)
    stack = "".join(a for a in axes if a in STACK_AXES)
    if axes == "SYX" and (is_label or sidecar(path) is not None):
        channel, stack = "", "S"
    valid = len(channel) <= 1 and len(stack) <= 1 and len(channel) + len(stack) + 2 == len(axes)
    if not valid or "Y" not in axes or "X" not in axes:
        raise SamunetError(
            f"{path} has the axes {axes}; samunet reads planes (YX), pictures (YXS) and stacks (ZYX), "
            "with at most one channel axis."
        )
    return channel, f"{stack}YX"


def _geometry(path: Path, spatial: Sequence[int]) -> tuple[Geometry, bool]:
    """Geometry, and whether the spacing is known; that of a picture is nominal.

    A plane with the spacing of a stack beside it is a stack of one slice, whose axis tifffile leaves out.
    """
    beside = sidecar(path)
    if len(spatial) == 2:
        if beside is None or not _is_triple(_stated_spacing(beside)):
            return flat_geometry(*spatial), False
        spatial = (1, *spatial)
    spacing = (1.0, 1.0, 1.0) if beside is None else _read_spacing(beside)
    return Geometry(shape=(spatial[0], spatial[1], spatial[2]), spacing_mm=spacing), beside is not None


def _stated_spacing(path: Path) -> Any:
    """What a sidecar has for the spacing, None for nothing."""
    content = read_json(path)
    return content.get("spacing") if isinstance(content, dict) else None


def _is_triple(spacing: Any) -> bool:
    return isinstance(spacing, list) and len(spacing) == 3


def _read_spacing(path: Path) -> tuple[float, float, float]:
    spacing = _stated_spacing(path)
    if not _is_triple(spacing) or not all(isinstance(s, (int, float)) and 0 < s < math.inf for s in spacing):
        raise SamunetError(
            f"{path}: key `spacing` must list three positive numbers in mm (z, y, x): {spacing!r}."
        )
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


@cache
def warn_no_spacing(folder: Path) -> None:
    """Say once of a folder of stacks what spacing is assumed."""
    logger.warning(
        "TIFF stacks in %s have no JSON file with their spacing beside them; 1 x 1 x 1 mm is assumed. "
        'Write CASE.json with {"spacing": [z, y, x]} to state it.',
        folder,
    )
