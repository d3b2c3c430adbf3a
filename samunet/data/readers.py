"""Reading and writing case files of every kind. Arrays are (C, Z, Y, X); a plane has Z = 1."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from samunet.data import pictures, tiff, volumes
from samunet.data.damage import nonfinite
from samunet.data.geometry import Geometry, Header, grid_differences
from samunet.errors import NoSpaceError, SamunetError
from samunet.whole_files import NO_SPACE

ENDINGS = (*volumes.ENDINGS, *pictures.ENDINGS, *tiff.ENDINGS)
"""Supported file endings; a longer one stands before its own end (.nii.gz before .gz)."""
OF_NO_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Numbers of errors in opening a file that are no fault of that file."""


def file_kind(path: Path | str) -> str:
    """`volume`, `picture` or `tiff`, from the ending of a file's name.

    Raises:
        SamunetError: the ending is not supported.
    """
    name = str(path).lower()
    for kind, endings in (("volume", volumes.ENDINGS), ("picture", pictures.ENDINGS), ("tiff", tiff.ENDINGS)):
        if name.endswith(endings):
            return kind
    raise SamunetError(
        f"{path}: this kind of file is not supported. Supported endings: {', '.join(ENDINGS)}."
    )


def files_of(path: Path) -> tuple[Path, ...]:
    """All files that an image or label map consists of: itself first, then those that are there beside it.

    These are the voxels of a header that names them, and the spacing of a TIFF stack.

    Raises:
        SamunetError: the ending is not supported.
    """
    kind = file_kind(path)
    if kind == "volume":
        return (path, *volumes.data_files(path))
    beside = tiff.sidecar(path) if kind == "tiff" else None
    return (path,) if beside is None else (path, beside)


def segmentation_ending(file_ending: str) -> str:
    """Ending of label and prediction files: that of the images, but .png for lossy JPEG images."""
    return ".png" if file_ending.lower() in pictures.LOSSY else file_ending


def read_header(path: Path, is_label: bool = False) -> Header:
    """Geometry and channel count of a file, without reading its voxels.

    Args:
        path: the file.
        is_label: it holds a label map, so that a few slices of a TIFF stack are no colours.

    Raises:
        SamunetError: missing, unreadable or of an unknown kind.
    """
    with _refusals(path):
        path = _existing(path)
        kind = file_kind(path)
        if kind == "volume":
            return volumes.read_header(path)
        return pictures.read_header(path) if kind == "picture" else tiff.read_header(path, is_label)


def has_alpha(path: Path) -> bool:
    """Whether this is an RGBA picture, whose fourth channel says how opaque its pixels are.

    Raises:
        SamunetError: missing, unreadable or of an unknown kind.
    """
    with _refusals(path):
        path = _existing(path)
        kind = file_kind(path)
        if kind == "picture":
            return pictures.read_header(path).num_channels == 4
        return kind == "tiff" and tiff.has_alpha(path)


def read_image(paths: Sequence[Path]) -> tuple[np.ndarray, Geometry]:
    """Read the channels of a case.

    Args:
        paths: one file per channel, or one file that holds several (RGB, 4D).

    Returns:
        float32 (C, Z, Y, X) and the geometry of the first file.

    Raises:
        SamunetError: a file is missing, truncated, holds NaN or infinity, or lies on another grid than the
            first; names the file.
    """
    assert paths, "a case has at least one file"
    channels: list[np.ndarray] = []
    geometries: list[Geometry] = []
    for path in paths:
        array, geometry = _read(Path(path))
        check_finite(array, path)
        channels.append(array)
        geometries.append(geometry)
        differences = grid_differences(geometries[0], geometry)
        if differences:
            raise SamunetError(
                f"{path} does not lie on the grid of {paths[0]}: {'; '.join(differences)}. All channels of a "
                "case must: resample them onto one grid or, where only a header is wrong, correct it."
            )
    shape = (sum(len(c) for c in channels), *geometries[0].shape)
    image = np.empty(shape, np.float32)
    start = 0
    while channels:
        channel = channels.pop(0)
        image[start : start + len(channel)] = channel
        start += len(channel)
    return image, geometries[0]


def read_label(path: Path) -> tuple[np.ndarray, Geometry]:
    """Read a label map as the integers of the file, (Z, Y, X).

    Raises:
        SamunetError: missing, truncated, lossy, several channels, or values that are not integers.
    """
    with _refusals(path):
        path = _existing(path)
    if path.name.lower().endswith(pictures.LOSSY):
        raise SamunetError(f"{path}: JPEG changes label values, so it cannot hold a label map. Use .png.")
    array, geometry = _read(path, is_label=True)
    if len(array) != 1:
        raise SamunetError(
            f"{path} holds {len(array)} channels; a label map has one. Write it as a greyscale integer image."
        )
    label = array[0].astype(np.uint8) if array.dtype == bool else array[0]
    if label.dtype.kind == "f":
        check_finite(label, path)
        rounded = np.rint(label).astype(np.int32)
        if not np.array_equal(rounded, label):
            raise SamunetError(
                f"{path} holds label values that are not integers. Write it as an integer file."
            )
        label = rounded
    return label, geometry


def write_segmentation(segmentation: np.ndarray, geometry: Geometry, path: Path) -> None:
    """Write a (Z, Y, X) label map with the image's geometry, complete or not at all.

    The smallest integer type that holds the values is used: unsigned 8, unsigned 16, else signed 32 bits.

    Raises:
        SamunetError: the kind of file cannot hold label maps or these values, or the name cannot be used.
        NoSpaceError: the disk is full.
    """
    assert segmentation.shape == geometry.shape, (segmentation.shape, geometry.shape)
    path = Path(path)
    fault = name_fault(path)
    if fault:
        raise SamunetError(fault)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(_smallest_type(segmentation), geometry, path)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise NoSpaceError(
            f"No space is left on the disk for {path} ({error.strerror}). Free some, or choose another place."
        ) from error


def _write(array: np.ndarray, geometry: Geometry, path: Path) -> None:
    kind = file_kind(path)
    if kind == "volume":
        volumes.write(array, geometry, path)
    elif kind == "tiff":
        tiff.write(array, geometry, path)
    elif not geometry.is_2d:
        raise SamunetError(f"{path}: a volume of shape {geometry.shape} does not fit into a 2D picture file.")
    else:
        pictures.write(array, path)


def check_finite(array: np.ndarray, path: Path) -> None:
    """Refuse NaN and infinity.

    Raises:
        SamunetError: naming the file and how many voxels are affected.
    """
    if array.dtype.kind == "f" and not np.isfinite(array.sum(dtype=np.float64)):
        bad = int(np.count_nonzero(~np.isfinite(array)))
        if bad:
            raise nonfinite(path, bad)


def _read(path: Path, is_label: bool = False) -> tuple[np.ndarray, Geometry]:
    """Array (C, Z, Y, X) in the file's own type."""
    with _refusals(path):
        path = _existing(path)
        kind = file_kind(path)
        if kind == "volume":
            return volumes.read(path)
        if kind == "picture":
            return pictures.read(path, palette_indices=is_label)
        return tiff.read(path, is_label)


def name_fault(path: Path) -> str:
    """What is wrong with a path that is not valid UTF-8, empty where nothing is.

    SimpleITK ends the whole process at one, and tables and pages are written in UTF-8.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        return f"{shown} is a name that is not valid UTF-8, which cannot be used. Rename the file or folder."
    return ""


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """What the system refuses in the block is the fault of this file, and of no other.

    Raises:
        SamunetError: instead of OSError, with its reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in OF_NO_FILE:
            raise
        raise SamunetError(
            f"{path} cannot be read ({error.strerror or error}). Check its permissions and the disk it is on."
        ) from error


def _existing(path: Path) -> Path:
    """The path of a file that is there and may be opened.

    Raises:
        SamunetError: there is none, or its name cannot be used.
        OSError: the system does not open it.
    """
    path = Path(path)
    fault = name_fault(path)
    if fault:
        raise SamunetError(fault)
    if not path.is_file():
        raise SamunetError(f"There is no file {path}.")
    path.open("rb").close()
    return path


def _smallest_type(segmentation: np.ndarray) -> np.ndarray:
    low, high = (int(segmentation.min()), int(segmentation.max())) if segmentation.size else (0, 0)
    if low < 0 or high > np.iinfo(np.uint16).max:
        return segmentation.astype(np.int32, copy=False)
    return segmentation.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16, copy=False)
