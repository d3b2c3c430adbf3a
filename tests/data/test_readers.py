from __future__ import annotations

import errno
import gzip
import json
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from samunet import whole_files
from samunet.data.geometry import Geometry, Header
from samunet.data.readers import (
    files_of,
    has_alpha,
    read_header,
    read_image,
    read_label,
    segmentation_ending,
    write_segmentation,
)
from samunet.errors import NoSpaceError, SamunetError
from samunet.whole_files import remove_partials

OBLIQUE = (0.0, -0.8, 0.6, 1.0, 0.0, 0.0, 0.0, 0.6, 0.8)
FLIPPED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
LEFT_HANDED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


def save_volume(path: Path, array: np.ndarray, direction: tuple[float, ...] = OBLIQUE) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.75, 1.25, 3.5))
    image.SetOrigin((-120.5, 33.25, 8.0))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path), True)


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(-500, 1500, (7, 12, 15)).astype(np.int16)


@pytest.mark.parametrize("ending", VOLUMES)
@pytest.mark.parametrize("direction", [OBLIQUE, FLIPPED, LEFT_HANDED])
def test_volume_and_its_segmentation_have_one_geometry(
    tmp_path: Path, volume: np.ndarray, ending: str, direction: tuple[float, ...]
) -> None:
    save_volume(tmp_path / f"a{ending}", volume, direction)
    image, geometry = read_image([tmp_path / f"a{ending}"])
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image[0], volume)
    np.testing.assert_allclose(geometry.spacing_mm, (3.5, 1.25, 0.75))
    np.testing.assert_allclose(geometry.direction, direction, atol=1e-7)
    assert read_header(tmp_path / f"a{ending}").geometry == geometry

    segmentation = (volume > 0).astype(np.int64) * 3
    write_segmentation(segmentation, geometry, tmp_path / "out" / f"a{ending}")
    read, back = read_label(tmp_path / "out" / f"a{ending}")
    np.testing.assert_array_equal(read, segmentation)
    assert read.dtype == np.uint8
    assert back.shape == geometry.shape
    np.testing.assert_allclose(back.spacing_mm, geometry.spacing_mm, rtol=1e-12)
    np.testing.assert_allclose(back.origin_mm, geometry.origin_mm, atol=0)
    np.testing.assert_allclose(
        back.direction, geometry.direction, rtol=0, atol=1e-6
    )  # single precision header
    assert not [f for f in (tmp_path / "out").iterdir() if f.name.startswith(".")]


def test_gipl_keeps_voxels_and_spacing(tmp_path: Path, volume: np.ndarray) -> None:
    save_volume(tmp_path / "a.gipl", volume, (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    image, geometry = read_image([tmp_path / "a.gipl"])
    np.testing.assert_array_equal(image[0], volume)
    np.testing.assert_allclose(geometry.spacing_mm, (3.5, 1.25, 0.75))


def test_a_plane_stays_a_plane(tmp_path: Path, volume: np.ndarray) -> None:
    plane = sitk.GetImageFromArray(volume[0])
    plane.SetSpacing((0.5, 0.25))
    plane.SetOrigin((3.0, 4.0))
    plane.SetDirection((0.0, 1.0, -1.0, 0.0))
    sitk.WriteImage(plane, str(tmp_path / "p.mha"))
    image, geometry = read_image([tmp_path / "p.mha"])
    assert image.shape == (1, 1, 12, 15)
    assert geometry.is_2d
    assert geometry.spacing_mm == (0.5 * 999, 0.25, 0.5)  # nnU-Net's nominal through-plane spacing
    write_segmentation(image[0] > 0, geometry, tmp_path / "s.mha")
    written = sitk.ReadImage(str(tmp_path / "s.mha"))
    assert written.GetDimension() == 2
    assert written.GetSpacing() == (0.5, 0.25)
    assert written.GetOrigin() == (3.0, 4.0)
    assert written.GetDirection() == (0.0, 1.0, -1.0, 0.0)


def test_frames_and_components_are_channels(tmp_path: Path, volume: np.ndarray) -> None:
    frames = sitk.JoinSeries([sitk.GetImageFromArray(volume), sitk.GetImageFromArray(volume + 1)])
    sitk.WriteImage(frames, str(tmp_path / "f.nii.gz"))
    image, geometry = read_image([tmp_path / "f.nii.gz"])
    np.testing.assert_array_equal(image, np.stack([volume, volume + 1]))
    assert geometry.shape == volume.shape
    assert read_header(tmp_path / "f.nii.gz").num_channels == 2

    vector = sitk.GetImageFromArray(np.stack([volume, volume + 1, volume + 2], -1), isVector=True)
    sitk.WriteImage(vector, str(tmp_path / "v.nrrd"))
    image, _ = read_image([tmp_path / "v.nrrd"])
    np.testing.assert_array_equal(image[2], volume + 2)
    assert read_header(tmp_path / "v.nrrd").num_channels == 3


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_rgb_pictures_have_three_channels(tmp_path: Path, ending: str) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / f"a{ending}")
    image, geometry = read_image([tmp_path / f"a{ending}"])
    np.testing.assert_array_equal(image, rgb.transpose(2, 0, 1)[:, None])
    assert geometry.spacing_mm == (999.0, 1.0, 1.0)
    assert read_header(tmp_path / f"a{ending}").num_channels == 3
    write_segmentation(rgb[None, ..., 0] > 9, geometry, tmp_path / f"s{ending}")
    assert read_label(tmp_path / f"s{ending}")[1] == geometry


def test_jpeg_images_have_png_labels(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 24, 3), 90, np.uint8)).save(tmp_path / "a.jpg")
    image, geometry = read_image([tmp_path / "a.jpg"])
    assert image.shape == (3, 1, 20, 24)
    assert segmentation_ending(".jpg") == ".png"
    assert segmentation_ending(".nii.gz") == ".nii.gz"
    with pytest.raises(SamunetError, match="JPEG"):
        write_segmentation(image[0] > 0, geometry, tmp_path / "s.jpg")
    with pytest.raises(SamunetError, match="JPEG"):
        read_label(tmp_path / "a.jpg")


def test_sixteen_bit_pngs_keep_their_depth(tmp_path: Path) -> None:
    deep = np.random.default_rng(2).integers(0, 65536, (8, 9, 3)).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(deep, isVector=True), str(tmp_path / "rgb.png"))
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image([tmp_path / "rgb.png"])[0][:, 0], deep.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_image([tmp_path / "grey.png"])[0][0, 0], deep[..., 0])


def test_palette_and_bilevel_labels_give_indices(tmp_path: Path) -> None:
    label = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    palette = Image.fromarray(label, "P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_label(tmp_path / "p.png")[0][0], label)
    assert read_image([tmp_path / "p.png"])[0].shape[0] == 3  # as an image: its colours
    Image.fromarray(label > 0).save(tmp_path / "b.png")
    tifffile.imwrite(tmp_path / "b.tif", label > 0)
    for file in ("b.png", "b.tif"):
        found = read_label(tmp_path / file)[0]
        assert found.dtype == np.uint8  # as an index, booleans would be a mask
        np.testing.assert_array_equal(found[0], label > 0)


def test_a_picture_beyond_pillows_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(tmp_path / "slide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(SamunetError, match=r"slide\.png has more pixels .*TIFF"):
        read_image([tmp_path / "slide.png"])


@pytest.mark.parametrize("slices", [3, 9])
def test_tiff_stacks_take_their_spacing_from_the_sidecar(tmp_path: Path, slices: int) -> None:
    stack = np.random.default_rng(3).integers(0, 255, (slices, 10, 11)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "c_0000.tif", stack)
    (tmp_path / "c.json").write_text(json.dumps({"spacing": [2.0, 0.5, 0.25]}))
    image, geometry = read_image([tmp_path / "c_0000.tif"])
    np.testing.assert_array_equal(image[0], stack)
    assert geometry.spacing_mm == (2.0, 0.5, 0.25)
    header = read_header(tmp_path / "c_0000.tif")
    assert (header.geometry, header.num_channels, header.spacing_known) == (geometry, 1, True)
    write_segmentation(stack > 100, geometry, tmp_path / "out" / "c.tif")
    label, back = read_label(tmp_path / "out" / "c.tif")
    np.testing.assert_array_equal(label, stack > 100)
    assert back == geometry


def test_a_single_slice_with_a_spacing_file_is_a_stack(tmp_path: Path) -> None:
    """tifffile leaves the axis of one slice out."""
    page = np.random.default_rng(3).integers(0, 255, (10, 11)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "c_0000.tif", page)
    beside = tmp_path / "c.json"
    for other in ({"camera": "left"}, {"spacing": [0.5, 0.5]}):  # of a picture, whose pixels have no size
        beside.write_text(json.dumps(other))
        assert read_image([tmp_path / "c_0000.tif"])[1].is_2d
    beside.write_text(json.dumps({"spacing": [2.0, 0.5, 0.25]}))
    image, geometry = read_image([tmp_path / "c_0000.tif"])
    np.testing.assert_array_equal(image[0, 0], page)
    assert geometry == Geometry(shape=(1, 10, 11), spacing_mm=(2.0, 0.5, 0.25))
    assert read_header(tmp_path / "c_0000.tif") == Header(geometry=geometry, num_channels=1)
    write_segmentation(image[0] > 100, geometry, tmp_path / "out" / "c.tif")
    label, back = read_label(tmp_path / "out" / "c.tif")
    np.testing.assert_array_equal(label[0], page > 100)
    assert back == geometry


def test_a_stack_without_spacing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tifffile.imwrite(tmp_path / "c_0000.tif", np.zeros((5, 10, 11), np.uint8))
    with caplog.at_level(logging.WARNING):
        _, geometry = read_image([tmp_path / "c_0000.tif"])
    assert geometry.spacing_mm == (1.0, 1.0, 1.0)
    assert "1 x 1 x 1 mm is assumed" in caplog.text
    assert not read_header(tmp_path / "c_0000.tif").spacing_known


def test_pages_that_were_written_one_by_one_are_a_stack(tmp_path: Path) -> None:
    """To tifffile each is an image of its own, and only the first one was read."""
    stack = np.random.default_rng(3).integers(0, 255, (4, 10, 11)).astype(np.uint8)

    def save(name: str, pages: list[np.ndarray], **more: object) -> Path:
        with tifffile.TiffWriter(tmp_path / name) as file:
            for page in pages:
                file.write(page, contiguous=False, **more)
        return tmp_path / name

    for more in ({}, {"metadata": None}, {"compression": "zlib"}):
        path = save("c_0000.tif", list(stack), **more)
        np.testing.assert_array_equal(read_image([path])[0][0], stack)
        header = read_header(path)
        assert (header.geometry.shape, header.num_channels) == (stack.shape, 1)
        np.testing.assert_array_equal(read_label(path)[0], stack)
    coloured = save("rgb_0000.tif", [np.stack([page] * 3, -1) for page in stack])
    assert read_image([coloured])[0].shape == (3, 4, 10, 11)
    mixed = save("mixed_0000.tif", [stack[0], stack[0][::2, ::2]])
    for read in (read_header, lambda path: read_image([path])):
        with pytest.raises(SamunetError, match=r"mixed_0000\.tif holds 2 images of different kinds"):
            read(mixed)


def test_a_spacing_file_of_the_very_name_comes_first(tmp_path: Path) -> None:
    for name, spacing in (("img", 9.0), ("img_2019", 2.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"spacing": [spacing, 1.0, 1.0]}))
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((5, 10, 11), np.uint8))
        assert read_header(tmp_path / f"{name}.tif").geometry.spacing_mm[0] == spacing
    (tmp_path / "img_2019.json").write_text('{"spacing": [2.0, 1.0, Infinity]}')
    with pytest.raises(SamunetError, match=r"img_2019\.json: key `spacing`.*positive numbers"):
        read_header(tmp_path / "img_2019.tif")


def test_tiff_compressions_beyond_tifffile_and_channel_axes(tmp_path: Path) -> None:
    stack = np.random.default_rng(4).integers(0, 255, (5, 10, 11)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(stack), str(tmp_path / "packbits.tif"), True)
    np.testing.assert_array_equal(read_image([tmp_path / "packbits.tif"])[0][0], stack)
    rgb = np.ascontiguousarray(stack[:3].transpose(1, 2, 0))
    Image.fromarray(rgb).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_image([tmp_path / "lzw.tif"])[0][:, 0], stack[:3])
    hyper = np.stack([stack, 255 - stack], 1)
    tifffile.imwrite(tmp_path / "hyper.tif", hyper, imagej=True, metadata={"axes": "ZCYX"})
    np.testing.assert_array_equal(read_image([tmp_path / "hyper.tif"])[0], hyper.transpose(1, 0, 2, 3))


@pytest.mark.parametrize("ending", [*VOLUMES, ".gipl", ".png", ".bmp", ".jpg", ".tif"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_a_file_that_ends_early_is_named(
    tmp_path: Path, volume: np.ndarray, ending: str, share: float
) -> None:
    name = f"cut_0000{ending}"
    source = tmp_path / name
    if ending in (*VOLUMES, ".gipl"):
        save_volume(source, volume)
    elif ending == ".tif":
        tifffile.imwrite(source, volume, compression="zlib")
    else:
        Image.fromarray(volume[:, :, :3].astype(np.uint8)).resize((60, 50)).save(source)
    if ending == ".mhd":
        source = next(f for f in tmp_path.iterdir() if f.suffix == ".zraw")
    whole = source.read_bytes()
    source.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SamunetError, match="cut_0000"):
        read_image([tmp_path / name])


def tag_value(path: Path, name: str) -> int:
    """Where in a TIFF file the value of a tag lies."""
    with tifffile.TiffFile(path) as file:
        return file.pages[0].tags[name].valueoffset


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("BitsPerSample", b"\x00\x00"),
        ("ImageWidth", b"\x00\x00"),
        ("ImageDescription", b'{"shape":?'),
    ],
)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_damage_inside_a_tiff_is_named(
    tmp_path: Path, volume: np.ndarray, tag: str, value: bytes, compression: str | None
) -> None:
    """Whatever tifffile stumbles over, one file must not end the work on all others."""
    path = tmp_path / "bad_0000.tif"
    tifffile.imwrite(path, volume, compression=compression)
    whole, start = path.read_bytes(), tag_value(path, tag)
    path.write_bytes(whole[:start] + value + whole[start + len(value) :])
    with pytest.raises(SamunetError, match=r"bad_0000\.tif is truncated or damaged"):
        read_image([path])


@pytest.mark.parametrize("error", [KeyError(256), ZeroDivisionError("division by zero"), AssertionError()])
def test_what_tifffile_raises_is_told_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def stumble(*_: object) -> None:
        raise error

    tifffile.imwrite(tmp_path / "bad_0000.tif", np.zeros((5, 6, 7), np.uint8))
    monkeypatch.setattr(tifffile.TiffFile, "series", property(stumble))
    for read in (read_header, lambda path: read_image([path])):
        with pytest.raises(SamunetError, match=r"bad_0000\.tif is truncated or damaged"):
            read(tmp_path / "bad_0000.tif")


def test_a_tiff_that_announces_more_than_it_can_hold_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What really does not fit into memory is told as that."""

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(tifffile.TiffFile, "asarray", full)
    path = tmp_path / "bad_0000.tif"
    tifffile.imwrite(path, np.zeros((5, 60, 70), np.uint8))
    with pytest.raises(MemoryError):
        read_image([path])
    whole, start = path.read_bytes(), tag_value(path, "ImageLength")
    path.write_bytes(whole[:start] + b"\xff\xff\xff\x7f" + whole[start + 4 :])
    with pytest.raises(SamunetError, match=r"bad_0000\.tif is truncated or damaged \(.*announces"):
        read_image([path])


def test_a_gzip_of_two_members_is_complete(tmp_path: Path, volume: np.ndarray) -> None:
    import gzip

    save_volume(tmp_path / "a.nii", volume)
    raw = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]))
    np.testing.assert_array_equal(read_image([tmp_path / "b.nii.gz"])[0][0], volume)


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(SamunetError, match=r"no file .*a\.nii\.gz"):
        read_image([tmp_path / "a.nii.gz"])
    (tmp_path / "a.xyz").write_text("?")
    with pytest.raises(SamunetError, match=r"a\.xyz.*Supported endings: \.nii\.gz"):
        read_image([tmp_path / "a.xyz"])


def test_nan_and_infinity_are_counted(tmp_path: Path) -> None:
    array = np.zeros((4, 5, 6), np.float32)
    array[0, 0, :2] = (np.nan, np.inf)
    save_volume(tmp_path / "a.nii.gz", array)
    with pytest.raises(SamunetError, match=r"a\.nii\.gz holds 2 voxels that are NaN or infinite"):
        read_image([tmp_path / "a.nii.gz"])


def test_channels_must_share_a_grid(tmp_path: Path, volume: np.ndarray) -> None:
    save_volume(tmp_path / "a.nii.gz", volume)
    save_volume(tmp_path / "b.nii.gz", volume[:-1])
    with pytest.raises(SamunetError, match=r"b\.nii\.gz does not lie on the grid .*\(7, 12, 15\)"):
        read_image([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"])


@pytest.mark.parametrize(("direction", "word"), [(FLIPPED, "direction"), (OBLIQUE, "origin")])
def test_channels_must_lie_at_the_same_place(
    tmp_path: Path, volume: np.ndarray, direction: tuple[float, ...], word: str
) -> None:
    """Of one shape and spacing, but mirrored or elsewhere: stacked as they are they would not match."""
    save_volume(tmp_path / "a.nii.gz", volume)
    save_volume(tmp_path / "b.nii.gz", volume, direction)
    if direction == OBLIQUE:
        moved = sitk.ReadImage(str(tmp_path / "b.nii.gz"))
        moved.SetOrigin((-100.0, 33.25, 8.0))
        sitk.WriteImage(moved, str(tmp_path / "b.nii.gz"))
    with pytest.raises(SamunetError, match=rf"b\.nii\.gz does not lie on the grid .*{word}.*resample"):
        read_image([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"])


def test_float_labels_must_be_whole(tmp_path: Path, volume: np.ndarray) -> None:
    save_volume(tmp_path / "whole.nii.gz", (volume > 0).astype(np.float32))
    assert read_label(tmp_path / "whole.nii.gz")[0].dtype == np.int32
    save_volume(tmp_path / "half.nii.gz", (volume > 0).astype(np.float32) * 0.5)
    with pytest.raises(SamunetError, match=r"half.*not integers"):
        read_label(tmp_path / "half.nii.gz")
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(SamunetError, match=r"rgb\.png holds 3 channels"):
        read_label(tmp_path / "rgb.png")


@pytest.mark.parametrize(("largest", "kind"), [(255, np.uint8), (256, np.uint16), (70000, np.int32)])
def test_the_integer_type_fits(tmp_path: Path, largest: int, kind: type) -> None:
    segmentation = np.zeros((2, 3, 4), np.int64)
    segmentation[0, 0, 0] = largest
    geometry = Geometry(shape=(2, 3, 4), spacing_mm=(1.0, 1.0, 1.0))
    write_segmentation(segmentation, geometry, tmp_path / "s.nii.gz")
    read, _ = read_label(tmp_path / "s.nii.gz")
    assert read.dtype == kind
    assert read.max() == largest


def test_files_of_the_tiny_dataset(tiny_dataset: Path, tiny_rgb_dataset: Path) -> None:
    image, geometry = read_image(sorted((tiny_dataset / "imagesTr").glob("tiny_000_*")))
    assert image.shape == (2, 10, 32, 36)
    np.testing.assert_allclose(geometry.spacing_mm, (4.0, 1.2, 1.2), rtol=1e-6)
    assert read_image([tiny_rgb_dataset / "imagesTr" / "img_0_0000.png"])[0].shape == (3, 1, 48, 56)


KILLED = """
import os, sys
import numpy as np
from samunet.data import volumes
from samunet.data.geometry import Geometry, Header
from samunet.data.readers import write_segmentation

volumes.check_complete = lambda path: os._exit(9)  # once the voxels are written
shape = (2, 3, 4)
write_segmentation(np.ones(shape, np.uint8), Geometry(shape=shape, spacing_mm=(1.0, 1.0, 1.0)), sys.argv[1])
"""


@pytest.mark.parametrize("ending", [".nii.gz", ".mhd"])
def test_what_a_killed_writer_leaves_is_removed(tmp_path: Path, ending: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / f"a{ending}")], check=False)
    assert killed.returncode == 9
    (left,) = tmp_path.iterdir()
    remove_partials(tmp_path)
    assert left.exists()  # somebody may be writing it
    remove_partials(tmp_path, untouched=-1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("held_for_a_moment")
def test_a_volume_that_a_viewer_holds_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    name = f"{'a' * 240}.nii.gz"  # about as long as a file's name may be
    label = np.ones((2, 3, 4), np.uint8)
    write_segmentation(label, Geometry(shape=(2, 3, 4), spacing_mm=(1.0, 1.0, 1.0)), tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]


LISTED = {
    "one.raw": ("one.raw",),
    "sub/one.raw": ("sub/one.raw",),
    "LOCAL": (),
    "s%03d.raw 1 3 1": ("s001.raw", "s002.raw", "s003.raw"),
    "s%03d.raw 1 3 2": ("s001.raw", "s003.raw"),
    "s%03d.raw 1 3": (),  # SimpleITK does not read it
    "s%d%d.raw 1 3 1": (),
    "LIST\ns002.raw\ns001.raw\n": ("s002.raw", "s001.raw"),
    "LIST 2\r\ns001.raw\r\ns002.raw\r\n": ("s001.raw", "s002.raw"),
    "gone.raw": (),
    "": (),
}


@pytest.mark.parametrize("named", LISTED)
@pytest.mark.parametrize(
    ("ending", "head"),
    [
        (".mhd", "ObjectType = Image\nNDims = 3\nElementDataFile = "),
        (".mha", "ObjectType = Image\nElementDataFile="),
        (".nrrd", "NRRD0004\n# data file: of a comment\ntype: short\ndata file: "),
    ],
)
def test_data_beside_a_header_belong_to_it(tmp_path: Path, ending: str, head: str, named: str) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("one.raw", "sub/one.raw", "s001.raw", "s002.raw", "s003.raw"):
        (tmp_path / name).touch()
    path = tmp_path / f"a{ending}"
    path.write_bytes(f"{head}{named}".encode())
    assert files_of(path) == (path, *(tmp_path / name for name in LISTED[named]))


def test_files_of_what_is_written(tmp_path: Path, volume: np.ndarray) -> None:
    geometry = Geometry(shape=volume.shape, spacing_mm=(3.0, 1.0, 1.0))
    for ending in (*VOLUMES, ".gipl", ".tif"):
        folder = tmp_path / ending[1:]
        write_segmentation((volume > 0).astype(np.uint8), geometry, folder / f"a{ending}")
        assert sorted(files_of(folder / f"a{ending}")) == sorted(folder.iterdir())
    assert files_of(tmp_path / "gone.mhd") == (tmp_path / "gone.mhd",)


NO_TEXT = b"M\xfcller_0000"
"""A name in Latin-1."""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".png", ".tif"])
def test_a_name_that_is_no_text_is_refused(tmp_path: Path, ending: str) -> None:
    """SimpleITK ends the whole process at it."""
    path = tmp_path / (os.fsdecode(NO_TEXT) + ending)
    path.write_bytes(b"whatever")
    geometry = Geometry(shape=(1, 3, 4), spacing_mm=(1.0, 1.0, 1.0), is_2d=True)
    for use in (
        read_header,
        read_label,
        has_alpha,
        lambda path: read_image([path]),
        lambda path: write_segmentation(np.zeros((1, 3, 4), int), geometry, path),
    ):
        with pytest.raises(SamunetError, match=r"M\\xfcller_0000\..* not valid UTF-8.* Rename the file"):
            use(path)


def turned_plane(path: Path, rows: tuple[float, ...]) -> None:
    """A NIfTI file of one plane whose sform has these rows."""
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(30, dtype=np.int16).reshape(5, 6)), str(path))
    whole = bytearray((gzip.decompress if path.suffix == ".gz" else bytes)(path.read_bytes()))
    struct.pack_into("<2h", whole, 252, 0, 1)  # no qform, the sform counts
    struct.pack_into("<12f", whole, 280, *rows)
    path.write_bytes(gzip.compress(bytes(whole)) if path.suffix == ".gz" else bytes(whole))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "rows",
    [
        (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0),  # sagittal
        (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0),  # coronal
    ],
)
def test_a_plane_that_2d_files_cannot_place_is_refused(
    tmp_path: Path, ending: str, rows: tuple[float, ...]
) -> None:
    """It could be read, but its segmentation not be written."""
    turned_plane(path := tmp_path / f"a_0000{ending}", rows)
    for read in (read_header, read_label, lambda path: read_image([path])):
        with pytest.raises(SamunetError, match=r"a_0000\.nii.* a 2D file cannot keep that"):
            read(path)


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    """Only their real part would be seen."""
    path = tmp_path / "a_0000.nii"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 5, 6), np.float64)), str(path))
    whole = bytearray(path.read_bytes())
    struct.pack_into("<2h", whole, 70, 32, 64)  # pairs of float32 in the place of float64
    path.write_bytes(bytes(whole))
    for read in (read_header, lambda path: read_image([path])):
        with pytest.raises(SamunetError, match=r"a_0000\.nii holds complex numbers"):
            read(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".png", ".tif"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOENT])
def test_a_file_that_the_system_does_not_open_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, number: int
) -> None:
    path = tmp_path / f"a_0000{ending}"
    write_segmentation(
        np.ones((1, 3, 4), int), Geometry(shape=(1, 3, 4), spacing_mm=(9.0, 1.0, 1.0), is_2d=True), path
    )

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    for read in (read_header, read_label, has_alpha, lambda path: read_image([path])):
        with pytest.raises(SamunetError, match=rf"a_0000.*cannot be read \({os.strerror(number)}\)"):
            read(path)
    number = errno.EMFILE  # no fault of this file
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        read_header(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".mhd", ".png", ".tif"])
def test_a_full_disk_is_no_fault_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """SimpleITK does not tell why it could not write."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("ITK ERROR: could not write")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    geometry = Geometry(shape=(1, 3, 4), spacing_mm=(9.0, 1.0, 1.0), is_2d=True)
    path = tmp_path / f"a{ending}"
    monkeypatch.setattr(sitk, "WriteImage", fail)
    if ending in VOLUMES:
        with pytest.raises(SamunetError, match="could not write") as other:
            write_segmentation(np.ones((1, 3, 4), int), geometry, path)
        assert not isinstance(other.value, NoSpaceError)
    monkeypatch.setattr(whole_files, "take_space", full)
    monkeypatch.setattr(tifffile, "imwrite", full)
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(NoSpaceError, match=rf"No space is left on the disk for {path} \(No space left"):
        write_segmentation(np.ones((1, 3, 4), int), geometry, path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.img.nii.gz", "a.nii.nii.gz", "a.hdr.nii", "a.IMG.nii.gz", "a.seg.nrrd"])
def test_a_segmentation_whose_name_holds_another_ending(tmp_path: Path, name: str) -> None:
    """Left to itself, SimpleITK writes a.hdr.gz, a.nii.gz and a.hdr for the first three."""
    label = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    geometry = Geometry(shape=(2, 3, 4), spacing_mm=(3.0, 1.0, 0.5), origin_mm=(1.0, 2.0, 3.0))
    write_segmentation(label, geometry, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    read, found = read_label(tmp_path / name)
    np.testing.assert_array_equal(read, label)
    assert found.origin_mm == geometry.origin_mm
