from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from samunet.data.labels import LabelSet
from samunet.data.readers import read_image, read_label
from samunet.errors import SamunetError
from samunet.inference.export import export_case
from samunet.inference.probabilities import Storage, open_probabilities, probability_files
from samunet.planning.plan import Budget, DataConfiguration, Plan
from samunet.preprocessing.case import preprocess_case
from samunet.preprocessing.restore import restore_probabilities

SHAPE = (12, 24, 20)
FLIPPED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
OBLIQUE = (0.9396926, -0.3303661, 0.0885213, 0.3420201, 0.9076734, -0.2432103, 0.0, 0.258819, 0.9659258)


@pytest.fixture
def plan() -> Plan:
    data = DataConfiguration(
        name="3d",
        dimension=3,
        spacing_mm=(2.0, 1.0, 1.0),
        median_shape=(12.0, 24.0, 20.0),
        max_shape=SHAPE,
        normalization=("zscore",),
        use_mask_for_norm=(False,),
        display_window=((-3.0, 3.0),),
    )
    return Plan(
        name="samunetPlans",
        dataset="Dataset999_Test",
        fingerprint_hash="0" * 16,
        file_ending=".nii.gz",
        channel_names=("MR",),
        labels=LabelSet(labels={"background": (0,), "organ": (1,), "lesion": (4,)}),
        num_training=5,
        transpose_forward=(1, 0, 2),
        transpose_backward=(1, 0, 2),
        original_median_spacing_mm=(2.0, 1.0, 1.0),
        original_median_shape=(12.0, 24.0, 20.0),
        intensity=(),
        budget=Budget(device="cpu", memory_gb=8.0, hours=1.0, disk_gb=10.0, gflops={}),
        data={"3d": data},
        configurations={},
        recommended="",
        verdicts=(),
    )


def write_input(folder: Path, direction: tuple[float, ...], spacing_xyz: tuple[float, ...]) -> Path:
    label = np.zeros(SHAPE, np.uint8)
    label[3:9, 5:18, 4:15] = 1
    label[4:7, 8:13, 6:10] = 4
    image = np.random.default_rng(0).uniform(1, 2, SHAPE).astype(np.float32) + label
    image[:, :2] = 0
    for name, array in (("image", image), ("label", label)):
        volume = sitk.GetImageFromArray(array)
        volume.SetDirection(direction)
        volume.SetSpacing(spacing_xyz)
        volume.SetOrigin((-12.5, 33.0, 7.25))
        sitk.WriteImage(volume, str(folder / f"{name}.nii.gz"))
    return folder / "image.nii.gz"


@pytest.mark.parametrize("spacing_xyz", [(1.0, 2.0, 1.0), (0.9, 1.7, 1.2)])
@pytest.mark.parametrize("direction", [FLIPPED, OBLIQUE])
def test_geometry_and_labels_survive_the_round_trip(
    tmp_path: Path, plan: Plan, direction: tuple[float, ...], spacing_xyz: tuple[float, ...]
) -> None:
    file = write_input(tmp_path, direction, spacing_xyz)
    image, geometry = read_image([file])
    label, _ = read_label(tmp_path / "label.nii.gz")
    case = preprocess_case(image, label, geometry, plan, plan.data["3d"])
    logits = torch.nn.functional.one_hot(torch.from_numpy(case.label).clamp(0).long(), 3).movedim(-1, 0)
    written = export_case(logits.float(), case.record, plan, tmp_path / "out" / "case.nii.gz")

    source, result = sitk.ReadImage(str(file)), sitk.ReadImage(str(tmp_path / "out" / "case.nii.gz"))
    assert result.GetSize() == source.GetSize()
    np.testing.assert_allclose(result.GetSpacing(), source.GetSpacing(), atol=1e-6)
    np.testing.assert_allclose(result.GetOrigin(), source.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(result.GetDirection(), source.GetDirection(), atol=1e-6)
    array = sitk.GetArrayFromImage(result)
    np.testing.assert_array_equal(array, written)
    assert array.dtype == np.uint8
    assert set(np.unique(array)) == {0, 1, 4}
    overlap = 2 * ((array > 0) & (label > 0)).sum() / ((array > 0).sum() + (label > 0).sum())
    assert overlap > (0.999 if spacing_xyz == (1.0, 2.0, 1.0) else 0.93)


def test_probabilities_lie_beside_the_segmentation(tmp_path: Path, plan: Plan) -> None:
    image, geometry = read_image([write_input(tmp_path, FLIPPED, (1.0, 1.5, 1.0))])
    case = preprocess_case(image, None, geometry, plan, plan.data["3d"])
    logits = torch.randn(3, *case.record.shape, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "case.one.nii.gz"
    segmentation = export_case(logits, case.record, plan, path, save_probabilities=True)
    assert probability_files(path)[0].name == "case.one.probabilities.npy"
    probabilities, record = open_probabilities(path)
    assert (probabilities.shape, probabilities.stored) == ((3, *SHAPE), np.float16)
    np.testing.assert_allclose(probabilities[:].sum(axis=0), 1, atol=2e-3)
    best = np.array([0, 1, 4])[probabilities[:].argmax(axis=0)]
    assert (best == segmentation).mean() > 0.999
    assert record.class_names == ("background", "organ", "lesion")
    assert (record.geometry, record.storage) == (geometry, "fp16")
    assert not [file for file in tmp_path.iterdir() if "partial" in file.name]


@pytest.mark.parametrize(
    ("storage", "kind", "error"), [("fp16", np.float16, 1 / 4096), ("uint8", np.uint8, 1 / 510)]
)
def test_stored_probabilities_keep_to_their_error(
    tmp_path: Path, plan: Plan, storage: Storage, kind: type, error: float
) -> None:
    image, geometry = read_image([write_input(tmp_path, FLIPPED, (1.0, 1.5, 1.0))])
    case = preprocess_case(image, None, geometry, plan, plan.data["3d"])
    logits = 3 * torch.randn(3, *case.record.shape, generator=torch.Generator().manual_seed(0))
    exact = np.empty((3, *SHAPE), np.float32)
    restore_probabilities(logits, case.record, plan, exact)
    export_case(logits, case.record, plan, tmp_path / "case.nii.gz", save_probabilities=storage)
    probabilities, record = open_probabilities(tmp_path / "case.nii.gz")
    assert (probabilities.stored, record.storage) == (kind, storage)
    np.testing.assert_allclose(probabilities[:], exact, rtol=0, atol=error * (1 + 1e-6))
    np.testing.assert_array_equal(probabilities[1, 3:5], probabilities[:][1, 3:5])
    assert probabilities[:].max() <= 1


def test_cut_off_or_foreign_probabilities_are_refused(tmp_path: Path, plan: Plan) -> None:
    image, geometry = read_image([write_input(tmp_path, FLIPPED, (1.0, 2.0, 1.0))])
    case = preprocess_case(image, None, geometry, plan, plan.data["3d"])
    path = tmp_path / "case.nii.gz"
    export_case(torch.zeros(3, *case.record.shape), case.record, plan, path, save_probabilities="uint8")
    array, record = probability_files(path)
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "storage": "fp16"}))
    with pytest.raises(SamunetError, match="uint8"):
        open_probabilities(path)
    record.write_text(json.dumps(content))
    array.write_bytes(array.read_bytes()[:-500])
    with pytest.raises(SamunetError, match="cut off"):
        open_probabilities(path)


def test_probabilities_of_an_earlier_prediction_go(tmp_path: Path, plan: Plan) -> None:
    image, geometry = read_image([write_input(tmp_path, FLIPPED, (1.0, 2.0, 1.0))])
    case = preprocess_case(image, None, geometry, plan, plan.data["3d"])
    path, logits = tmp_path / "case.nii.gz", torch.zeros(3, *case.record.shape)
    export_case(logits, case.record, plan, path, save_probabilities=True)
    export_case(logits, case.record, plan, path)
    assert path.is_file()
    with pytest.raises(SamunetError, match="save_probabilities"):
        open_probabilities(path)


def test_unsaved_probabilities_and_full_disk(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SamunetError, match="save_probabilities"):
        open_probabilities(tmp_path / "a.nii.gz")
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("needs posix_fallocate")
    image, geometry = read_image([write_input(tmp_path, FLIPPED, (1.0, 2.0, 1.0))])
    case = preprocess_case(image, None, geometry, plan, plan.data["3d"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SamunetError, match="No space"):
        export_case(torch.zeros(3, *case.record.shape), case.record, plan, tmp_path / "a.nii.gz", True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["image.nii.gz", "label.nii.gz"]
