"""Plain 2D images through Pillow: PNG, BMP, JPEG. Greyscale gives one channel, RGB three, RGBA four."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from samunet.data.damage import is_refusal, truncated
from samunet.data.geometry import FLAT_SPACING_MM, Geometry, Header
from samunet.errors import SamunetError
from samunet.whole_files import atomic_path

ENDINGS = (".png", ".bmp", ".jpg", ".jpeg")
LOSSY = (".jpg", ".jpeg")
CHANNELS = {"1": 1, "L": 1, "I": 1, "F": 1, "I;16": 1, "I;16B": 1, "I;16L": 1, "RGB": 3, "RGBA": 4}
PNG_DEPTH = slice(24, 26)
"""Bytes of a PNG file that hold bit depth and colour type."""


def flat_geometry(height: int, width: int) -> Geometry:
    """Geometry of a picture: pixels of size 1 and nnU-Net's nominal spacing across the plane."""
    return Geometry(shape=(1, height, width), spacing_mm=(FLAT_SPACING_MM, 1.0, 1.0), is_2d=True)


def read_header(path: Path) -> Header:
    """Size and channels without decoding the pixels."""
    with _open(path) as image:
        geometry = flat_geometry(image.height, image.width)
        return Header(geometry=geometry, num_channels=CHANNELS.get(image.mode, 3), spacing_known=False)


def read(path: Path, palette_indices: bool = False) -> tuple[np.ndarray, Geometry]:
    """Array (C, 1, Y, X) in the file's own type.

    Args:
        path: the file.
        palette_indices: give the indices of a palette image instead of its colours (for label maps).
    """
    is_deep = _has_deep_colour(path)
    array = read_by_itk(path) if is_deep else _read_pillow(path, palette_indices)
    array = np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]
    return array[:, None], flat_geometry(array.shape[1], array.shape[2])


def write(segmentation: np.ndarray, path: Path) -> None:
    """Write a (1, Y, X) unsigned integer array.

    Raises:
        SamunetError: the kind of file is lossy, or cannot hold the values.
    """
    ending = path.suffix.lower()
    if ending in LOSSY:
        raise SamunetError(f"{path}: JPEG changes label values. Write segmentations as .png.")
    if ending == ".bmp" and segmentation.dtype != np.uint8:
        raise SamunetError(f"{path}: BMP holds label values up to 255 only. Use .png.")
    with atomic_path(path) as temporary:
        Image.fromarray(segmentation[0]).save(temporary)


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise SamunetError(
            f"{path} has more pixels than Pillow reads ({error}). Cut it into parts, or write it as TIFF, "
            "which has no such limit, with all its images and `file_ending` likewise."
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        if is_refusal(error):
            raise
        raise truncated(path, str(error)) from error


def _read_pillow(path: Path, palette_indices: bool) -> np.ndarray:
    with _open(path) as image:
        mode = image.mode
        try:
            if mode == "1":
                return np.asarray(image).astype(np.uint8)
            if mode == "P" and palette_indices:
                return np.asarray(image)
            return np.asarray(image if mode in CHANNELS else image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            if is_refusal(error):
                raise
            raise truncated(path, str(error)) from error


def _has_deep_colour(path: Path) -> bool:
    """Whether this is a PNG with 16 bits per colour, which Pillow would cut down to 8."""
    if path.suffix.lower() != ".png":
        return False
    with path.open("rb") as file:
        start = file.read(PNG_DEPTH.stop)
    return start[PNG_DEPTH] in (b"\x10\x02", b"\x10\x06")


def read_by_itk(path: Path) -> np.ndarray:
    """The array of a picture or stack that Pillow or tifffile alone cannot read, axes as SimpleITK has them.

    Raises:
        SamunetError: the file is cut off or damaged.
    """
    import SimpleITK as sitk

    try:
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    except RuntimeError as error:
        raise truncated(path, str(error).splitlines()[-1]) from error
