"""Fixtures of all tests: two tiny datasets on disk, written once a session, and the real cases if present."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the arrays are tiny and the machines small

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from samunet import whole_files

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TINY_3D = "Dataset901_Tiny3D"
TINY_RGB = "Dataset902_TinyRGB"
EMPTY_CASE = "tiny_005"
"""The case of Dataset901 without foreground."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if REAL_DATA.is_dir():
        return
    skip = pytest.mark.skip(reason="the real cases are not at hand")
    for item in items:
        if item.get_closest_marker("real_data"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the developer's shell reaches a test."""
    for name in list(os.environ):
        if name.lower().startswith(("samunet", "nnunet")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def no_shipped_weights() -> Iterator[None]:
    """Tests say themselves which weights they mean; those of the package would stand in every plan."""
    from samunet.networks.sam import weight_files

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_files, "SHIPPED", Path(__file__).with_name("no_weights"))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_measuring() -> Iterator[None]:
    """Plans do not depend on how fast the machine is, nor on how busy."""
    from samunet.pipeline import calibrate

    rates = dict.fromkeys(("conv2d", "conv3d", "vit"), 20.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "measure_gflops", lambda device: dict(rates))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the real raw datasets; mark the test `real_data` too."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real cases are not at hand")
    return REAL_DATA


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace root whose `raw` holds both tiny datasets. Do not write into `raw`; copy it (`tiny_copy`)."""
    root = tmp_path_factory.mktemp("workspace")
    write_tiny_3d(root / "raw" / TINY_3D)
    write_tiny_rgb(root / "raw" / TINY_RGB)
    return root


@pytest.fixture(scope="session")
def tiny_dataset(tiny_root: Path) -> Path:
    """Raw folder: six two-channel oblique NIfTI cases, classes organ=1 and lesion=2; tiny_005 is empty."""
    return tiny_root / "raw" / TINY_3D


@pytest.fixture(scope="session")
def tiny_rgb_dataset(tiny_root: Path) -> Path:
    """Raw folder: six RGB PNG images of 48 x 56 pixels with a binary label."""
    return tiny_root / "raw" / TINY_RGB


@pytest.fixture
def tiny_copy(tiny_root: Path, tmp_path: Path) -> Path:
    """A workspace root of one's own (only `raw` filled), to change and to break."""
    root = tmp_path / "workspace"
    shutil.copytree(tiny_root / "raw", root / "raw")
    return root


@pytest.fixture
def stack_dataset(tmp_path: Path) -> Path:
    """Folder of a dataset of one TIFF stack with its spacing, (2, 0.5, 0.5) mm, in a JSON file beside it."""
    folder = tmp_path / "Dataset904_Stack"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    stack = np.random.default_rng(0).integers(0, 200, (6, 20, 22)).astype(np.uint16)
    tifffile.imwrite(folder / "imagesTr" / "a_0000.tif", stack)
    (folder / "imagesTr" / "a.json").write_text('{"spacing": [2, 0.5, 0.5]}')
    tifffile.imwrite(folder / "labelsTr" / "a.tif", (stack > 100).astype(np.uint8))
    write_dataset_json(
        folder,
        channel_names={"0": "light"},
        labels={"background": 0, "cell": 1},
        file_ending=".tif",
        numTraining=1,
    )
    return folder


@pytest.fixture
def held_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two replacements are refused, as on Windows while somebody reads; three are tried."""
    held, replace = [True, True], os.replace

    def refusing(*names: object) -> None:
        if held:
            held.pop()
            raise PermissionError(13, "Access is denied")
        replace(*names)

    monkeypatch.setattr(os, "replace", refusing)
    monkeypatch.setattr(whole_files, "REPLACE_SECONDS", 0.0)
    monkeypatch.setattr(whole_files, "REPLACE_TRIES", 3)


def write_dataset_json(folder: Path, **content: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def oblique_direction() -> tuple[float, ...]:
    """Row-major direction cosines, turned by 20 degrees about z and 15 about x."""
    a, b = np.deg2rad((20.0, 15.0))
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return tuple((about_z @ about_x).ravel().tolist())


def write_volume(path: Path, array_zyx: np.ndarray, spacing_zyx: tuple[float, ...]) -> None:
    """Write one oblique NIfTI volume."""
    image = sitk.GetImageFromArray(array_zyx)
    image.SetSpacing([float(s) for s in spacing_zyx[::-1]])
    image.SetOrigin((-31.5, 12.25, 100.0))
    image.SetDirection(oblique_direction())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)


def ellipsoid(shape: tuple[int, ...], centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Mask of an ellipsoid in voxel coordinates."""
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grids, centre, radii)) <= 1


def write_tiny_3d(folder: Path) -> None:
    """Six cases of about (10, 32, 36) voxels of 4 x 1.2 x 1.2 mm; zero outside a body: cropping acts."""
    rng = np.random.default_rng(901)
    for index in range(6):
        shape = (10 + index % 3, 32 + 2 * (index % 2), 36 - index)
        spacing = (4.0 + 0.25 * (index % 2), 1.2 + 0.05 * (index % 3), 1.2 + 0.05 * (index % 3))
        middle = (np.array(shape) - 1) / 2
        body = ellipsoid(shape, middle, np.array([shape[0], shape[1] * 0.47, shape[2] * 0.47]))
        label = np.zeros(shape, np.uint8)
        if index != 5:
            centre = middle + rng.uniform(-1, 1, 3) * (0.5, 2, 2)
            label[ellipsoid(shape, centre, np.array([3.5, 9.0, 10.0]))] = 1
            label[ellipsoid(shape, centre + np.array([0, 2, -3]), np.array([1.6, 4.0, 4.0]))] = 2
        means = ((100, 220, 160), (90, 140, 260))  # background, organ, lesion of each channel
        for channel, levels in enumerate(means):
            image = np.asarray(levels)[label] + rng.normal(0, 15, shape)
            image = np.where(body, np.clip(image, 1, None), 0).astype(np.int16)
            write_volume(folder / "imagesTr" / f"tiny_{index:03d}_{channel:04d}.nii.gz", image, spacing)
        write_volume(folder / "labelsTr" / f"tiny_{index:03d}.nii.gz", label, spacing)
    write_dataset_json(
        folder,
        channel_names={"0": "T1", "1": "T2"},
        labels={"background": 0, "organ": 1, "lesion": 2},
        numTraining=6,
        file_ending=".nii.gz",
    )


def write_tiny_rgb(folder: Path) -> None:
    """Six images: pinkish discs on a pale ground, label 1 on the discs."""
    rng = np.random.default_rng(902)
    shape = (48, 56)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(6):
        label = np.zeros(shape, np.uint8)
        for _ in range(4):
            centre = rng.uniform((8, 8), (40, 48))
            label[ellipsoid(shape, centre, rng.uniform(4, 8, 2))] = 1
        colours = np.array([[225, 215, 230], [150, 70, 140]])
        image = np.clip(colours[label] + rng.normal(0, 12, (*shape, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "imagesTr" / f"img_{index}_0000.png")
        Image.fromarray(label).save(folder / "labelsTr" / f"img_{index}.png")
    write_dataset_json(
        folder,
        channel_names={"0": "R", "1": "G", "2": "B"},
        labels={"background": 0, "cell": 1},
        numTraining=6,
        file_ending=".png",
    )
