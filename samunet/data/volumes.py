"""Medical volumes through SimpleITK: NIfTI, NRRD, MetaImage, GIPL; planes, volumes and 4D files."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from samunet.data.damage import check_complete, count_nonfinite_nifti, is_gzip, nonfinite
from samunet.data.geometry import FLAT_SPACING_MM, Geometry, Header
from samunet.data.nifti import read_compressed_voxels
from samunet.data.sheared import check_shear, is_shear, permissive
from samunet.errors import SamunetError
from samunet.whole_files import lacks_space, partial_folder, replace_path

NIFTI_ENDINGS = (".nii.gz", ".nii")
ENDINGS = (*NIFTI_ENDINGS, ".nrrd", ".mha", ".mhd", ".gipl")
HEADERS = {
    ".mhd": ("=", ("elementdatafile",)),
    ".mha": ("=", ("elementdatafile",)),
    ".nrrd": (":", ("data file", "datafile")),
}
"""Endings of headers in text that may name other files for their voxels -> separator, and keys for it."""


LEAST_DETERMINANT = 1e-3
"""Of a direction matrix; that of the axes of a grid is 1 or -1."""


def read_header(path: Path) -> Header:
    """Geometry and channels without the voxels."""
    reader, _ = _opened(path)
    geometry, frames = _geometry(path, reader)
    return Header(geometry=geometry, num_channels=frames * reader.GetNumberOfComponents())


def _opened(path: Path) -> tuple[Any, bool]:
    """A reader that has read the header, and whether it had to be permissive."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        return reader, False
    except RuntimeError as error:
        if not is_shear(error):
            raise _unreadable(path, error) from error
    with permissive():
        reader.ReadImageInformation()
    check_shear(path, reader)
    return reader, True


def read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Array (C, Z, Y, X) in the file's own type; frames of a 4D file and vector components are channels."""
    check_complete(path)
    if path.name.lower().endswith(".nii.gz") and is_gzip(path):
        plain = _read_plain_nifti(path)
        if plain is not None:
            return plain
    bad = count_nonfinite_nifti(path) if path.name.lower().endswith(NIFTI_ENDINGS) else 0
    if bad:
        raise nonfinite(path, bad)
    reader, sheared = _opened(path)
    try:
        with permissive() if sheared else nullcontext():
            image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    geometry, frames = _geometry(path, image)
    array = sitk.GetArrayFromImage(image)
    components = image.GetNumberOfComponentsPerPixel()
    if components > 1:
        array = np.moveaxis(array, -1, 0)
    return array.reshape(components * frames, *geometry.shape), geometry


def _read_plain_nifti(path: Path) -> tuple[np.ndarray, Geometry] | None:
    """As `read`, for the usual kind of NIfTI file; geometry is SimpleITK's. None for any other kind."""
    reader, _ = _opened(path)
    if reader.GetNumberOfComponents() != 1:
        return None
    voxels = read_compressed_voxels(path, reader.GetSize())
    if voxels is None:
        return None
    if voxels.dtype.kind == "f":
        bad = int(np.count_nonzero(~np.isfinite(voxels)))
        if bad:
            raise nonfinite(path, bad)
    geometry, frames = _geometry(path, reader)
    return voxels.reshape(frames, *geometry.shape), geometry


def data_files(path: Path) -> tuple[Path, ...]:
    """Files beside a header that hold its voxels, as far as they are there; none where itself does."""
    ending = path.suffix.lower()
    if ending not in HEADERS or not path.is_file():
        return ()
    separator, keys = HEADERS[ending]
    with path.open("rb") as file:
        for line in file:
            key, found, value = os.fsdecode(line).partition(separator)
            if found and key.strip().lower() in keys:
                following = os.fsdecode(file.read()).splitlines() if value.split()[:1] == ["LIST"] else []
                named = _named_files(value.strip(), following)
                return tuple(data for name in named if (data := path.parent / name).is_file())
            if ending == ".nrrd" and not line.strip():  # the voxels follow
                break
    return ()


def _named_files(value: str, following: Sequence[str]) -> Sequence[str]:
    """File names of a header: LIST with the lines that follow, `NAME%03d.raw MIN MAX STEP`, or one name."""
    words = value.split()
    if not words or words == ["LOCAL"]:
        return ()
    if words[0] == "LIST":
        return [name.strip() for name in following if name.strip()]
    if "%" not in words[0]:
        return (value,)
    try:
        first, last, step = map(int, words[1:4])
        return [words[0] % number for number in range(first, last + 1, step)]
    except (TypeError, ValueError):  # of no kind that SimpleITK reads
        return ()


def write(segmentation: np.ndarray, geometry: Geometry, path: Path) -> None:
    """Write a (Z, Y, X) integer array with the geometry of its image; a plane is written as a plane."""
    image = sitk.GetImageFromArray(segmentation[0] if geometry.is_2d else segmentation)
    dimension = 2 if geometry.is_2d else 3
    direction = np.array(geometry.direction).reshape(3, 3)[:dimension, :dimension]
    image.SetSpacing([float(s) for s in geometry.spacing_mm[::-1][:dimension]])
    image.SetOrigin([float(o) for o in geometry.origin_mm[:dimension]])
    image.SetDirection(direction.ravel().tolist())
    with partial_folder(path.parent) as folder:
        if path.name.lower().endswith(NIFTI_ENDINGS):
            # Of a.img.nii.gz, SimpleITK would make a.hdr.gz: it looks for an ending anywhere in the name.
            plain = folder / f"volume{'.nii.gz' if path.suffix.lower() == '.gz' else '.nii'}"
            _write_checked(image, plain, path)
            replace_path(plain, path)
            return
        # .mhd consists of two files that name each other, so the temporary names must be the final ones
        _write_checked(image, folder / path.name, path)
        written = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
        for file in written:
            replace_path(file, path.parent / file.name)


def _write_checked(image: Any, temporary: Path, path: Path) -> None:
    try:
        sitk.WriteImage(image, str(temporary), True)
        check_complete(temporary)  # a full disk can leave a cut-off file without an error
    except (RuntimeError, SamunetError) as error:
        for left in temporary.parent.iterdir():
            left.unlink()
        size = sitk.GetArrayViewFromImage(image).nbytes
        if lacks_space(temporary.parent, size):  # SimpleITK does not tell
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        reason = str(error).strip().splitlines()[-1]
        raise SamunetError(f"{path} cannot be written ({reason}).") from error


def _geometry(path: Path, image: Any) -> tuple[Geometry, int]:
    """Geometry of one channel, and the number of frames of a 4D file."""
    size, dimension = image.GetSize(), len(image.GetSize())
    if dimension not in (2, 3, 4):
        raise SamunetError(f"{path} has {dimension} dimensions; samunet reads planes, volumes and 4D files.")
    if image.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise SamunetError(
            f"{path} holds complex numbers. Write what is to be seen of them as real ones, as the magnitude."
        )
    used = min(dimension, 3)
    spacing = [abs(s) for s in image.GetSpacing()[:used]]
    if not all(np.isfinite(spacing)) or min(spacing) <= 0:
        raise SamunetError(
            f"{path} states a spacing of {spacing} mm (x, y, z); it must be positive. Correct it."
        )
    direction = np.eye(3)
    direction[:used, :used] = np.array(image.GetDirection()).reshape(dimension, dimension)[:used, :used]
    if dimension == 2 and abs(np.linalg.det(direction)) < LEAST_DETERMINANT:
        raise _turned(path)
    origin = [*image.GetOrigin()[:used], 0.0][:3]
    is_2d = dimension == 2
    flat = [FLAT_SPACING_MM * max(spacing)] if is_2d else []
    shape = [1] * is_2d + list(size[:used][::-1])
    geometry = Geometry(
        shape=(shape[0], shape[1], shape[2]),
        spacing_mm=_triple([*flat, *spacing[::-1]]),
        origin_mm=_triple(origin),
        direction=tuple(direction.ravel().tolist()),
        is_2d=is_2d,
    )
    return geometry, size[3] if dimension == 4 else 1


def _triple(values: list[float]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _unreadable(path: Path, error: RuntimeError) -> SamunetError:
    text = str(error)
    if "determinant is 0" in text:
        return _turned(path)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return SamunetError(
        f"{path} cannot be read ({lines[-1] if lines else text}). It may be truncated or damaged."
    )


def _turned(path: Path) -> SamunetError:
    return SamunetError(
        f"{path} has a direction matrix (sform or qform) that turns its plane out of x and y, as of a "
        "sagittal or coronal slice; a 2D file cannot keep that. Write it as a volume of one slice, or with "
        "the identity as its direction, and its label alike."
    )
