from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from samunet.data.dataset import RawDataset
from samunet.data.integrity import verify_dataset
from samunet.errors import SamunetError


@pytest.fixture
def folder(tiny_copy: Path) -> Path:
    return tiny_copy / "raw" / "Dataset901_Tiny3D"


def rewrite(path: Path, array: np.ndarray | None = None, **changes: tuple[float, ...]) -> None:
    """Write a file again with other voxels, `Spacing`, `Origin` or `Direction`."""
    old = sitk.ReadImage(str(path))
    new = old if array is None else sitk.GetImageFromArray(array)
    if array is not None:
        new.SetSpacing(old.GetSpacing())
        new.SetOrigin(old.GetOrigin())
        new.SetDirection(old.GetDirection())
    for name, value in changes.items():
        getattr(new, f"Set{name}")(value)
    sitk.WriteImage(new, str(path))


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_the_tiny_datasets_are_in_order(tiny_dataset: Path, tiny_rgb_dataset: Path) -> None:
    calls = []
    assert (
        verify_dataset(RawDataset.load(tiny_dataset), 1, lambda done, all_: calls.append((done, all_))) == []
    )
    assert calls[-1] == (6, 6)
    assert verify_dataset(tiny_rgb_dataset, 1) == []


def test_all_faults_are_listed_at_once(folder: Path) -> None:
    images, labels = folder / "imagesTr", folder / "labelsTr"
    (images / "tiny_000_0001.nii.gz").unlink()
    rewrite(labels / "tiny_001.nii.gz", voxels(labels / "tiny_001.nii.gz")[:-1])
    rewrite(labels / "tiny_002.nii.gz", Spacing=(1.0, 1.0, 1.0))
    strange = voxels(labels / "tiny_003.nii.gz")
    strange[0, 0, 0] = 7
    rewrite(labels / "tiny_003.nii.gz", strange)
    broken = voxels(images / "tiny_004_0000.nii.gz").astype(np.float32)
    broken[1, 2, 3] = np.nan
    rewrite(images / "tiny_004_0000.nii.gz", broken)
    whole = (images / "tiny_005_0001.nii.gz").read_bytes()
    (images / "tiny_005_0001.nii.gz").write_bytes(whole[: len(whole) // 2])
    (labels / "tiny_005.nii.gz").unlink()
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"numTraining": 9}))

    faults = verify_dataset(folder, 1)
    expected = [
        ("tiny_000_0000.nii.gz, tiny_000_0001.nii.gz are expected",),
        ("tiny_001.nii.gz", "shape (11, 34, 35) against (10, 34, 35)"),
        ("tiny_002.nii.gz", "spacing"),
        ("tiny_003.nii.gz", "[7]", "declare"),
        ("tiny_004_0000.nii.gz", "1 voxels that are NaN"),
        ("tiny_005_0001.nii.gz is truncated",),
        ("tiny_005", "no label file"),
        ("numTraining", "9", "6 training cases"),
    ]
    for words in expected:
        assert any(all(word in fault for word in words) for fault in faults), (words, faults)
    assert len(faults) == len(expected)


def test_truncated_files_and_channels_of_different_grids(folder: Path) -> None:
    images = folder / "imagesTr"
    whole = (images / "tiny_005_0001.nii.gz").read_bytes()
    (images / "tiny_005_0001.nii.gz").write_bytes(whole[: len(whole) // 2])
    rewrite(images / "tiny_000_0001.nii.gz", Origin=(0.0, 0.0, 0.0))
    rewrite(images / "tiny_001_0001.nii.gz", Direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    faults = verify_dataset(folder, 1)
    assert len(faults) == 3
    assert "tiny_000_0001.nii.gz" in faults[0]
    assert "origin" in faults[0]
    assert "direction" in faults[1]
    assert "tiny_005_0001.nii.gz is truncated" in faults[2]


def test_an_empty_folder(folder: Path) -> None:
    for path in sorted((folder / "imagesTr").iterdir()):
        path.unlink()
    faults = verify_dataset(folder, 1)
    assert any("imagesTr holds no images" in fault for fault in faults)
    with pytest.raises(SamunetError, match="imagesTr holds no images"):
        RawDataset.load(folder)


def test_workers_find_the_same(folder: Path) -> None:
    rewrite(folder / "labelsTr" / "tiny_002.nii.gz", Spacing=(1.0, 1.0, 1.0))
    assert verify_dataset(folder, 2) == verify_dataset(folder, 1)


@pytest.mark.real_data
@pytest.mark.slow
def test_the_real_datasets_are_in_order(real_data: Path) -> None:
    for folder in sorted(real_data.glob("Dataset*")):
        assert verify_dataset(folder) == []
