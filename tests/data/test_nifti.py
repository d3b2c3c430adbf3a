from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from samunet.data import volumes
from samunet.data.nifti import read_compressed_voxels
from samunet.errors import SamunetError


def write(path: Path, array: np.ndarray) -> Path:
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing((0.5, 0.75, 2.0, 1.0)[: array.ndim])
    sitk.WriteImage(image, str(path), True)
    return path


def patched(path: Path, offset: int, value: bytes) -> Path:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[offset : offset + len(value)] = value
    path.write_bytes(gzip.compress(bytes(content)))
    return path


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(5, 6, 7), (6, 7), (3, 5, 6, 7)])
def test_same_voxels_as_simpleitk(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 100, shape).astype(kind)
    path = write(tmp_path / "a.nii.gz", array)
    voxels = read_compressed_voxels(path, shape[::-1])
    assert voxels is not None
    assert voxels.dtype == array.dtype
    assert voxels.flags.writeable
    np.testing.assert_array_equal(voxels, array)
    read, geometry = volumes.read(path)
    np.testing.assert_array_equal(read.reshape(shape), array)
    assert geometry == volumes.read_header(path).geometry


def test_a_file_that_only_has_the_name_of_a_compressed_one(tmp_path: Path) -> None:
    """A renamed .nii; SimpleITK, and so nnU-Net, reads it."""
    array = np.random.default_rng(0).normal(size=(5, 6, 7)).astype("f4")
    plain = write(tmp_path / "a.nii", array)
    renamed = tmp_path / "b.nii.gz"
    renamed.write_bytes(plain.read_bytes())
    read, geometry = volumes.read(renamed)
    np.testing.assert_array_equal(read[0], array)
    assert geometry == volumes.read(plain)[1]
    renamed.write_bytes(plain.read_bytes()[:-8])
    with pytest.raises(SamunetError, match=r"b\.nii\.gz is truncated"):
        volumes.read(renamed)
    array[0, 0, 0] = np.nan
    renamed.write_bytes(write(plain, array).read_bytes())
    with pytest.raises(SamunetError, match="1 voxels that are NaN"):
        volumes.read(renamed)


def test_big_endian_voxels(tmp_path: Path) -> None:
    array = np.arange(60, dtype="i2").reshape(3, 4, 5)
    path = write(tmp_path / "a.nii.gz", array)
    content = gzip.decompress(path.read_bytes())
    start = int(struct.unpack_from("<f", content, 108)[0])
    swapped = bytearray(content)
    for offset, form in (
        (0, "i"),
        (40, "8h"),
        (70, "2h"),
        (76, "8f"),
        (108, "3f"),
        (252, "2h"),
        (256, "18f"),
    ):
        struct.pack_into(f">{form}", swapped, offset, *struct.unpack_from(f"<{form}", content, offset))
    swapped[start:] = np.frombuffer(content[start:], "<i2").astype(">i2").tobytes()
    path.write_bytes(gzip.compress(bytes(swapped)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), array)
    np.testing.assert_array_equal(read_compressed_voxels(path, (5, 4, 3)), array)


def test_scaled_values_are_left_to_simpleitk(tmp_path: Path) -> None:
    array = np.arange(60, dtype="i2").reshape(3, 4, 5)
    path = patched(write(tmp_path / "a.nii.gz", array), 112, struct.pack("<2f", 0.5, -10.0))
    assert read_compressed_voxels(path, (5, 4, 3)) is None
    np.testing.assert_allclose(volumes.read(path)[0][0], array * 0.5 - 10)


@pytest.mark.parametrize("numbers", [(0.0, 5.0), (0.0, 0.0), (1.0, 5.0), (float("nan"), 5.0)])
def test_odd_scalings_are_read_as_by_simpleitk(tmp_path: Path, numbers: tuple[float, float]) -> None:
    array = np.arange(60, dtype="i2").reshape(3, 4, 5)
    path = patched(write(tmp_path / "a.nii.gz", array), 112, struct.pack("<2f", *numbers))
    np.testing.assert_array_equal(volumes.read(path)[0][0], sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


@pytest.mark.parametrize("start", [0.0, -5.0, 100.0, 348.0, 350.0, float("nan"), float("inf"), 352.0])
@pytest.mark.parametrize("kind", ["i2", "f4"])
def test_odd_starts_of_the_voxels_are_read_as_by_simpleitk(tmp_path: Path, kind: str, start: float) -> None:
    array = np.arange(60, dtype=kind).reshape(3, 4, 5)
    path = patched(write(tmp_path / "a.nii.gz", array), 108, struct.pack("<f", start))
    read = volumes.read(path)[0][0]
    np.testing.assert_array_equal(read, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    assert read.any()


@pytest.mark.parametrize("start", [0.0, 352.0])
def test_nan_is_found_wherever_the_voxels_start(tmp_path: Path, start: float) -> None:
    array = np.zeros((3, 4, 5), "f4")
    array[2, 3, 2] = np.nan
    path = patched(write(tmp_path / "a.nii.gz", array), 108, struct.pack("<f", start))
    with pytest.raises(SamunetError, match="1 voxels that are NaN"):
        volumes.read(path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-20]))
    with pytest.raises(SamunetError, match="truncated"):
        volumes.read(path)


def test_damage_inside_the_file_is_named(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 1000, (20, 30, 30)).astype("i2")
    path = write(tmp_path / "a.nii.gz", array)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(SamunetError, match=r"a\.nii\.gz"):
        volumes.read(path)
    path.write_bytes(bytes(content[: len(content) // 2]))
    with pytest.raises(SamunetError, match=r"a\.nii\.gz"):
        volumes.read(path)


def sheared(path: Path, shear: float) -> Path:
    """A volume of 20 voxels along y whose x axis leans by `shear` voxels a voxel of y, by its sform alone."""
    write(path, np.arange(20 * 60, dtype="i2").reshape(3, 20, 20))
    content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    rows = list(struct.unpack_from("<12f", content, 280))
    rows[1] = shear * 0.5
    struct.pack_into("<12f", content, 280, *rows)
    struct.pack_into("<2h", content, 252, 0, 1)
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_grid_that_is_hardly_sheared_is_read_as_a_right_angled_one(tmp_path: Path, name: str) -> None:
    """SimpleITK alone refuses a thousandth; half a voxel at the far corner is where this ends."""
    path = sheared(tmp_path / name, 0.001)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(path))
    array, geometry = volumes.read(path)
    np.testing.assert_array_equal(array[0], np.arange(20 * 60).reshape(3, 20, 20))
    assert geometry.spacing_mm == pytest.approx((2.0, 0.75, 0.5))
    assert geometry == volumes.read_header(path).geometry
    assert np.abs(np.array(geometry.direction) - np.eye(3).ravel()).max() < 1e-3
    with pytest.raises(RuntimeError, match="orthonormal"):  # nothing is left permissive
        sitk.ReadImage(str(path))
    far = sheared(tmp_path / f"far_{name}", 0.1)
    for reading in (volumes.read, volumes.read_header):
        with pytest.raises(SamunetError, match=r"far_a\.nii.*corner \d\.\d mm beside .* Resample it"):
            reading(far)
