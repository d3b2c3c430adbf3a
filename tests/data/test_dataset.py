from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from samunet.data.cases import absent_label
from samunet.data.dataset import Case, RawDataset, find_cases
from samunet.errors import SamunetError
from samunet.records import hash_files


@pytest.fixture
def folder(tiny_copy: Path) -> Path:
    return tiny_copy / "raw" / "Dataset901_Tiny3D"


def edit_json(folder: Path, **changes: Any) -> None:
    file = folder / "dataset.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_the_tiny_dataset(tiny_dataset: Path) -> None:
    dataset = RawDataset.load(tiny_dataset)
    assert dataset.name == "Dataset901_Tiny3D"
    assert dataset.channel_names == ("T1", "T2")
    assert dataset.case_names == tuple(f"tiny_{i:03d}" for i in range(6))
    case = dataset.case("tiny_002")
    assert [path.name for path in case.images] == ["tiny_002_0000.nii.gz", "tiny_002_0001.nii.gz"]
    loaded = dataset.read(case)
    assert loaded.image.shape == (2, *loaded.geometry.shape)
    assert loaded.label is not None
    assert loaded.label.shape == loaded.geometry.shape
    with pytest.raises(SamunetError, match="Did you mean tiny_00"):
        dataset.case("tiny_00")


def test_a_linked_folder_keeps_the_name_that_it_is_given(folder: Path, tmp_path: Path) -> None:
    data = folder.rename(tmp_path / "heart")
    folder.symlink_to(data)
    assert RawDataset.load(folder).name == "Dataset901_Tiny3D"


def test_rgb_pictures_need_one_file(tiny_rgb_dataset: Path) -> None:
    dataset = RawDataset.load(tiny_rgb_dataset)
    assert dataset.read(dataset.cases[0]).image.shape == (3, 1, 48, 56)


def test_the_legacy_key_modality(folder: Path) -> None:
    edit_json(folder, channel_names=None, modality={"1": "T2", "0": "T1"})
    assert RawDataset.load(folder).channel_names == ("T1", "T2")


def test_the_explicit_map_takes_relative_and_absolute_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "imagesTr").rename(folder / "elsewhere")
    monkeypatch.setenv("MY_LABELS", str(folder / "labelsTr"))
    entries = {
        "b": {
            "images": [f"elsewhere/tiny_001_000{c}.nii.gz" for c in (0, 1)],
            "label": "$MY_LABELS/tiny_001.nii.gz",
        },
        "a": {
            "images": [str(folder / f"elsewhere/tiny_000_000{c}.nii.gz") for c in (0, 1)],
            "label": "./labelsTr/tiny_000.nii.gz",
        },
    }
    edit_json(folder, dataset=entries)
    dataset = RawDataset.load(folder)
    assert dataset.case_names == ("a", "b")
    assert all(dataset.read(case).label is not None for case in dataset.cases)
    edit_json(folder, dataset={"a": {"images": "one.nii.gz"}})
    with pytest.raises(SamunetError, match=r"dataset\.json: `dataset\.a` must look like"):
        RawDataset.load(folder)


@pytest.mark.parametrize(
    "images", [None, "imagesTr/tiny_000_0000.nii.gz", {"0": "imagesTr/tiny_000_0000.nii.gz"}, [""]]
)
def test_a_map_with_images_of_another_kind_is_refused(images: Any, folder: Path) -> None:
    edit_json(folder, dataset={"a": {"images": images, "label": "labelsTr/tiny_000.nii.gz"}})
    with pytest.raises(SamunetError, match=r"dataset\.json: `dataset\.a` must look like"):
        RawDataset.load(folder)


@pytest.mark.parametrize("name", ["site/a", "..\\a", "../a", "..", ".", "", ".a"])
def test_names_of_a_map_become_file_names(name: str, folder: Path) -> None:
    images = [f"imagesTr/tiny_000_000{channel}.nii.gz" for channel in range(2)]
    edit_json(folder, dataset={name: {"images": images, "label": "labelsTr/tiny_000.nii.gz"}})
    with pytest.raises(SamunetError, match=rf"dataset\.json: `dataset` names a case {re.escape(repr(name))}"):
        RawDataset.load(folder)


def one_channel(folder: Path, keep_suffix: bool) -> None:
    for path in sorted((folder / "imagesTr").iterdir()):
        if path.name.endswith("_0001.nii.gz"):
            path.unlink()
        elif not keep_suffix:
            path.rename(path.with_name(path.name.replace("_0000.", ".")))
    edit_json(folder, channel_names={"0": "T1"})


@pytest.mark.parametrize("keep_suffix", [True, False])
def test_one_channel_needs_no_suffix(folder: Path, keep_suffix: bool) -> None:
    one_channel(folder, keep_suffix)
    assert RawDataset.load(folder).case_names == tuple(f"tiny_{i:03d}" for i in range(6))


def test_four_digits_may_belong_to_the_name(tmp_path: Path) -> None:
    for name in ("patient_2019.png", "patient_2020_0000.png", "._patient_2021.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    assert [c.name for c in find_cases(tmp_path, ".png", 1)] == ["patient_2019", "patient_2020"]


def test_a_surplus_channel_is_not_taken_for_a_case(tmp_path: Path) -> None:
    for name in ("a_0000.png", "a_0001.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    with pytest.raises(SamunetError, match=r"Case a has 2 channel\(s\).*declares 1.*a_0000\.png"):
        find_cases(tmp_path, ".png", 1)


def test_missing_channels_and_labels_are_all_named(folder: Path) -> None:
    (folder / "imagesTr" / "tiny_001_0001.nii.gz").unlink()
    (folder / "imagesTr" / "tiny_003_0000.nii.gz").unlink()
    (folder / "labelsTr" / "tiny_004.nii.gz").unlink()
    with pytest.raises(SamunetError) as caught:
        RawDataset.load(folder)
    message = str(caught.value)
    assert "Case tiny_001 has 1 channel(s)" in message
    assert "tiny_001_0000.nii.gz, tiny_001_0001.nii.gz are expected" in message
    assert "tiny_003 lacks the file(s) of channel 0" in message
    assert "tiny_004.nii.gz" in message
    lenient = RawDataset.load(folder, strict=False)
    assert len(lenient.cases) == 6
    assert len(lenient.faults) >= 3


def test_links_to_files_that_are_gone_are_named(folder: Path, tmp_path: Path) -> None:
    gone = ("imagesTr/tiny_001_0000", "imagesTr/tiny_001_0001", "imagesTr/tiny_002_0001", "labelsTr/tiny_003")
    links = [folder / f"{name}.nii.gz" for name in gone]
    for link in links:
        link.unlink()
        link.symlink_to(tmp_path / "disk" / link.name)
    told = [f"{link} is a link to {tmp_path / 'disk' / link.name}, which is not there." for link in links]
    with pytest.raises(SamunetError) as caught:
        RawDataset.load(folder)
    assert all(words in str(caught.value) for words in told)
    assert len(RawDataset.load(folder, strict=False).faults) == 4
    with pytest.raises(SamunetError) as caught:
        find_cases(folder / "imagesTr", ".nii.gz", 2)
    assert [words in str(caught.value) for words in told] == [True, True, True, False]
    with pytest.raises(SamunetError, match="is a link to"):
        find_cases(links[0], ".nii.gz", 2)


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(SamunetError, match=r"CASE_0000\.nii\.gz, CASE_0001\.nii\.gz.*It is empty"):
        find_cases(tmp_path, ".nii.gz", 2)
    Image.new("L", (8, 8)).save(tmp_path / "scan.png")
    with pytest.raises(SamunetError, match=r"scan\.png\. If \.png is meant, convert the images to \.nii\.gz"):
        find_cases(tmp_path, ".nii.gz", 1)
    with pytest.raises(SamunetError, match="no folder"):
        find_cases(tmp_path / "nowhere", ".png", 1)


def test_pictures_of_a_film_are_no_channels(tmp_path: Path) -> None:
    """Each of them has all three, so the four digits are a number."""
    for numbers, told in (((1, 2, 3), "lacks the file"), (range(4), "has 12 channel")):
        (folder := tmp_path / told).mkdir()
        for number in numbers:
            Image.new("RGB", (8, 8)).save(folder / f"frame_{number:04d}.png")
        first = f"frame_{min(numbers):04d}"
        with pytest.raises(SamunetError, match=rf"{told}.*append _0000 to every name \({first}_0000\.png\)"):
            find_cases(folder, ".png", 3)


def test_numbered_patients_of_one_channel_are_no_channels(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("L", (8, 8)).save(tmp_path / f"patient_{number:04d}.png")
    with pytest.raises(SamunetError, match=r"has the one channel: .*name \(patient_0000_0000\.png\)"):
        find_cases(tmp_path, ".png", 1)


def test_a_label_with_a_lost_header_is_told_from_one_on_another_grid(folder: Path) -> None:
    """Resampled, it would be emptied; with the image's header it is what it was."""
    file = folder / "labelsTr" / "tiny_001.nii.gz"
    image = sitk.ReadImage(str(file))
    moved = sitk.Image(image)
    moved.SetOrigin((-300.0, 20.0, 5.0))
    for label, told in (
        (moved, r"origin .*label\.CopyInformation\(image\)"),
        (image[:, :, 1:], "shape .*re-export"),
    ):
        sitk.WriteImage(label, str(file))
        dataset = RawDataset.load(folder)
        with pytest.raises(SamunetError, match=f"does not lie on the grid of .*{told}"):
            dataset.read(dataset.case("tiny_001"))
    moved.CopyInformation(image)
    sitk.WriteImage(moved, str(file))
    dataset = RawDataset.load(folder)
    read = dataset.read(dataset.case("tiny_001")).label
    assert read is not None
    np.testing.assert_array_equal(read, sitk.GetArrayFromImage(image))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_is_the_fault_of_its_case(folder: Path) -> None:
    for place in ("imagesTr", "labelsTr"):
        for file in (folder / place).glob("tiny_001*"):
            file.rename(file.with_name(file.name.replace("tiny_001", os.fsdecode(b"M\xfcller"))))
    with pytest.raises(SamunetError) as caught:
        RawDataset.load(folder)
    assert "M\\xfcller_0001.nii.gz is a name that is not valid UTF-8" in str(caught.value)
    assert "M\\xfcller.nii.gz is a name that is not valid UTF-8" in str(caught.value)
    with pytest.raises(SamunetError, match=r"M.*xfcller_0000.* is a name"):
        find_cases(folder / "imagesTr", ".nii.gz", 2)


def test_rgba_for_rgb_is_explained(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8)).save(tmp_path / "a_0000.png")
    with pytest.raises(SamunetError, match="RGBA"):
        find_cases(tmp_path, ".png", 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channel_names": {"T1": "0", "T2": "1"}}, ["`channel_names`", "'T1'"]),
        ({"channel_names": None}, ["`channel_names`"]),
        ({"labels": {"0": "background", "1": "organ"}}, ["`labels.0`", "'background'"]),
        ({"labels": {"background": 0, "organ": "one"}}, ["`labels.organ`", "'one'"]),
        ({"labels": None}, ["`labels`"]),
        ({"file_ending": None}, ["`file_ending`"]),
        ({"file_ending": "nii.gz"}, ["`file_ending`"]),
        ({"file_ending": ".dcm"}, ["`file_ending`", ".dcm", "Supported endings"]),
    ],
)
def test_a_malformed_dataset_json_names_file_and_key(
    folder: Path, changes: dict[str, Any], words: list[str]
) -> None:
    edit_json(folder, **changes)
    with pytest.raises(SamunetError) as caught:
        RawDataset.load(folder)
    for word in ["dataset.json", *words]:
        assert word in str(caught.value)


def test_absent_and_broken_dataset_json(folder: Path) -> None:
    (folder / "dataset.json").write_text("{")
    with pytest.raises(SamunetError, match=r"dataset\.json is not valid JSON"):
        RawDataset.load(folder)
    (folder / "dataset.json").unlink()
    with pytest.raises(SamunetError, match="There is no"):
        RawDataset.load(folder)


def test_image_and_label_must_share_the_grid(folder: Path) -> None:
    file = folder / "labelsTr" / "tiny_000.nii.gz"
    label = sitk.ReadImage(str(file))
    label.SetOrigin((0.0, 0.0, 0.0))
    sitk.WriteImage(label, str(file))
    dataset = RawDataset.load(folder)
    with pytest.raises(SamunetError, match=r"tiny_000\.nii\.gz does not lie on the grid.*origin"):
        dataset.read(dataset.case("tiny_000"))


def test_another_reader_is_mentioned(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(folder, overwrite_image_reader_writer="NibabelIOWithReorient")
    with caplog.at_level(logging.WARNING):
        RawDataset.load(folder)
    assert "NibabelIOWithReorient is ignored" in caplog.text


def test_groups_of_cases_that_are_not_there_are_left_out(folder: Path) -> None:
    (folder / "groups.csv").write_text("case,group\ntiny_000,A\nother,B\n")
    assert RawDataset.load(folder).groups == {"tiny_000": "A"}


def test_jpeg_images_with_png_labels(tmp_path: Path, tiny_rgb_dataset: Path) -> None:
    folder = tmp_path / "Dataset903_Jpeg"
    shutil.copytree(tiny_rgb_dataset, folder)
    for path in sorted((folder / "imagesTr").iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    edit_json(folder, file_ending=".jpg")
    dataset = RawDataset.load(folder)
    assert dataset.label_ending == ".png"
    assert dataset.read(dataset.cases[0]).label is not None


def test_tiff_stacks(stack_dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = RawDataset.load(stack_dataset)
    case = dataset.cases[0]
    loaded = dataset.read(case)  # the label has no sidecar and takes the image's spacing
    assert loaded.geometry.spacing_mm == (2.0, 0.5, 0.5)
    assert not caplog.text
    assert case.files == (*case.images, case.label, stack_dataset / "imagesTr" / "a.json")
    (stack_dataset / "labelsTr" / "a.json").write_text('{"spacing": [1, 0.5, 0.5]}')
    with pytest.raises(SamunetError, match="spacing"):
        dataset.read(dataset.cases[0])


def test_a_tiff_of_a_single_slice_is_part_of_a_3d_dataset(stack_dataset: Path) -> None:
    for path in (stack_dataset / "imagesTr" / "a_0000.tif", stack_dataset / "labelsTr" / "a.tif"):
        tifffile.imwrite(path, tifffile.imread(path)[0])
    dataset = RawDataset.load(stack_dataset)
    loaded = dataset.read(dataset.cases[0])  # the label has no sidecar and takes the image's spacing
    assert loaded.geometry.spacing_mm == (2.0, 0.5, 0.5)
    assert loaded.label is not None
    assert loaded.label.shape == loaded.geometry.shape == (1, 20, 22)


def test_the_voxels_of_a_header_belong_to_the_case(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8))
    for name in ("a_0000", "a_0001", "a"):
        sitk.WriteImage(image, str(tmp_path / f"{name}.mhd"))
    case = Case("a", (tmp_path / "a_0000.mhd", tmp_path / "a_0001.mhd"), tmp_path / "a.mhd")
    beside = [tmp_path / f"{name}.raw" for name in ("a", "a_0000", "a_0001")]
    assert case.files == (*case.images, case.label, *beside)
    before = hash_files(case.files)
    voxels = bytearray(beside[0].read_bytes())
    voxels[5] = 1
    beside[0].write_bytes(voxels)
    assert hash_files(case.files) != before


@pytest.mark.real_data
def test_the_real_datasets_load(real_data: Path) -> None:
    for folder in sorted(real_data.glob("Dataset*")):
        dataset = RawDataset.load(folder)
        assert len(dataset.cases) == dataset.json["numTraining"]
        assert dataset.read(dataset.cases[0]).label is not None


def test_images_and_labels_that_no_case_has_are_told(
    tiny_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of another ending, or without a partner: else half of a dataset may be left out in silence."""
    raw = tiny_copy / "raw" / "Dataset901_Tiny3D"
    assert RawDataset.load(raw).unused_files() == []
    for file in (raw / "imagesTr").glob("tiny_003*"):
        file.unlink()
    (raw / "imagesTr" / "tiny_010_0000.NII.GZ").touch()
    (raw / "imagesTr" / "tiny_011_0000.mha").touch()
    (raw / "imagesTr" / "notes.txt").touch()
    images, labels = RawDataset.load(raw).unused_files()
    assert images.endswith("are read: tiny_010_0000.NII.GZ, tiny_011_0000.mha.")
    assert labels == f"{raw / 'labelsTr'}: labels without an image: tiny_003.nii.gz."
    assert len(find_cases(raw / "imagesTr", ".nii.gz", 2)) == 5
    assert images in caplog.text


@pytest.mark.parametrize(
    ("name", "wanted", "told"),
    [
        ("a_0000.nii.gz", "a.nii.gz", "a_0000.nii.gz lies there: label maps have no channel"),
        ("a.nii", "a.nii.gz", "a.nii lies there: label maps have no channel, and the ending .nii.gz."),
        ("a.jpg", "a.png", "labels of JPEG images are PNG files"),
        ("b.nii.gz", "a.nii.gz", "There is no label file"),
    ],
)
def test_what_lies_in_the_place_of_a_label_is_told(name: str, wanted: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    said = absent_label(tmp_path / wanted)
    assert said.startswith(f"There is no label file {tmp_path / wanted}.")
    assert told in said
