"""Measuring cases and pooling their intensities."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
import SimpleITK as sitk

from samunet.data.dataset import RawDataset
from samunet.data.geometry import Geometry
from samunet.data.groups import Origins
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.planning.case_measurement import CaseArrays, ForegroundSample, measure_arrays, pool_intensities
from samunet.planning.fingerprint import Fingerprint, extract_fingerprint, load_or_extract
from samunet.records import read_record, to_data, write_json

LABELS = LabelSet(labels={"background": (0,), "organ": (1,), "lesion": (2,)}, ignore=3)
EMPTY = "tiny_005"


def arrays(shape=(4, 10, 12)):
    image = np.zeros((1, *shape), np.float32)
    image[0, 1:3, 2:8, 3:9] = np.arange(1, 73).reshape(2, 6, 6)
    indices = np.zeros(shape, np.int16)
    indices[1, 2:4, 3:5] = 1
    indices[1, 6:8, 3:5] = 1
    indices[2, 2, 3] = 2
    indices[2, 7, 8] = 3
    geometry = Geometry(shape=shape, spacing_mm=(3.0, 1.0, 1.0))
    return CaseArrays(name="a", content="", image=image, indices=indices, geometry=geometry)


def test_one_case():
    measured = measure_arrays(arrays(), LABELS, keep=1000)
    case = measured.fingerprint
    assert case.shape_after_crop == (2, 6, 6)
    assert case.relative_size == pytest.approx(72 / 480)
    assert case.class_voxels == {"organ": 8, "lesion": 1}
    assert case.class_components == {"organ": 2, "lesion": 1}
    assert not case.empty
    assert case.channels[0].mean == pytest.approx(36.5)
    # The ignore label is no foreground.
    assert measured.foreground[0].values.size == 9


def test_case_without_foreground_and_case_without_content():
    blank = arrays()
    empty = dataclasses.replace(blank, indices=np.zeros_like(blank.indices))
    measured = measure_arrays(empty, LABELS, keep=10)
    assert measured.fingerprint.empty
    assert measured.foreground[0].values.size == 0
    black = dataclasses.replace(empty, image=np.zeros_like(blank.image))
    assert measure_arrays(black, LABELS, keep=10).fingerprint.shape_after_crop == (4, 10, 12)


def test_pooling_weighs_every_case_alike():
    few, many = np.full(10, 1.0, np.float32), np.full(1000, 3.0, np.float32)
    samples = [
        [ForegroundSample(values=v, lowest=float(v.min()), highest=float(v.max()))] for v in (few, many)
    ]
    (found,) = pool_intensities(samples, ["MRI"])
    assert found.mean == pytest.approx(2)
    assert found.std == pytest.approx(1)
    assert (found.min, found.max) == (1, 3)
    assert (found.percentile_00_5, found.percentile_99_5) == (1, 3)


def test_pooling_agrees_with_drawing_as_nnunet_does():
    rng = np.random.default_rng(0)
    parts = [rng.gamma(2, 50, size).astype(np.float32) for size in (300, 5000, 40)]
    samples = [[ForegroundSample(values=v, lowest=float(v.min()), highest=float(v.max()))] for v in parts]
    (found,) = pool_intensities(samples, ["CT"])
    drawn = np.concatenate([rng.choice(part, 200_000) for part in parts])
    assert found.mean == pytest.approx(drawn.mean(), rel=0.01)
    assert found.std == pytest.approx(drawn.std(), rel=0.01)
    assert found.median == pytest.approx(np.median(drawn), rel=0.01)
    assert found.percentile_99_5 == pytest.approx(np.percentile(drawn, 99.5), rel=0.02)


def test_no_foreground_anywhere_still_gives_numbers():
    empty = ForegroundSample(values=np.empty(0, np.float32), lowest=np.inf, highest=-np.inf)
    (found,) = pool_intensities([[empty]], ["MRI"])
    assert found.std > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_tiny_dataset(tiny_dataset, workers):
    steps = []
    fingerprint = extract_fingerprint(
        RawDataset.load(tiny_dataset), workers, lambda done, total: steps.append((done, total))
    )
    assert steps[-1] == (6, 6)
    assert [case.name for case in fingerprint.cases if case.empty] == [EMPTY]
    assert len(fingerprint.intensity) == len(fingerprint.channel_names) == 2
    assert not fingerprint.natural_image


def test_rgb_dataset_is_natural(tiny_rgb_dataset):
    fingerprint = extract_fingerprint(RawDataset.load(tiny_rgb_dataset), 1)
    assert fingerprint.natural_image
    assert len(fingerprint.cases[0].channels) == 3


def test_a_fingerprint_of_another_version_is_measured_again(tiny_rgb_dataset, tmp_path):
    file = tmp_path / "fingerprint.json"
    dataset = RawDataset.load(tiny_rgb_dataset)
    first = load_or_extract(dataset, file, 1)
    assert Fingerprint.load(file) == first
    write_json(file, {**to_data(first), "version": 0})
    with pytest.raises(SamunetError, match=r"version 0.* samunet_extract_fingerprint -d Dataset902_TinyRGB"):
        Fingerprint.load(file)
    assert load_or_extract(dataset, file, 1) == first == Fingerprint.load(file)


def test_stored_fingerprint_is_used_until_the_data_change(tiny_copy, tmp_path):
    folder = next((tiny_copy / "raw").glob("*Tiny3D"))
    file = tmp_path / "fingerprint.json"
    first = load_or_extract(RawDataset.load(folder), file, 1)
    assert read_record(Fingerprint, file) == first
    before = file.stat().st_mtime_ns
    assert load_or_extract(RawDataset.load(folder), file, 1) == first
    assert file.stat().st_mtime_ns == before
    # A copy has other times but the same content: measured again, with the same identity.
    image = sorted((folder / "imagesTr").iterdir())[0]
    os.utime(image, ns=(1, 1))
    again = load_or_extract(RawDataset.load(folder), file, 1)
    assert again.stamp != first.stamp
    assert again.data_hash == first.data_hash
    label = sorted((folder / "labelsTr").iterdir())[0]
    picture = sitk.ReadImage(str(label))
    picture[0, 0, 0] = 1 - picture[0, 0, 0]
    sitk.WriteImage(picture, str(label))
    changed = load_or_extract(RawDataset.load(folder), file, 1)
    assert changed.data_hash != first.data_hash


def test_a_corrected_spacing_of_tiff_stacks_is_noticed(stack_dataset, tmp_path):
    file = tmp_path / "fingerprint.json"
    first = load_or_extract(RawDataset.load(stack_dataset), file, 1)
    (stack_dataset / "imagesTr" / "a.json").write_text('{"spacing": [3, 0.5, 0.5]}')
    corrected = load_or_extract(RawDataset.load(stack_dataset), file, 1)
    assert (first.spacings_mm, corrected.spacings_mm) == ([(2.0, 0.5, 0.5)], [(3.0, 0.5, 0.5)])
    assert corrected.data_hash != first.data_hash


def test_regions_in_another_order_are_other_data(tiny_dataset, tmp_path):
    dataset, file = RawDataset.load(tiny_dataset), tmp_path / "fingerprint.json"
    names = [name for name, values in dataset.labels.labels.items() if values != (0,)]
    every = tuple(value for value in dataset.labels.values if value)
    regions = {"whole": every, **{f"only {name}": dataset.labels.labels[name] for name in names}}
    found = []
    for order in (list(regions), list(regions)[::-1]):
        labels = LabelSet(
            labels={"background": (0,), **{name: regions[name] for name in order}},
            region_order=tuple(range(len(order))),
        )
        found.append(load_or_extract(dataclasses.replace(dataset, labels=labels), file, 1))
    assert found[0].data_hash != found[1].data_hash
    assert [list(one.labels.foreground) for one in found] == [list(regions), list(regions)[::-1]]


def test_a_file_that_changes_while_it_is_measured_is_measured_again(tiny_copy, tmp_path):
    folder = next((tiny_copy / "raw").glob("*Tiny3D"))
    dataset, file = RawDataset.load(folder), tmp_path / "fingerprint.json"
    image = dataset.cases[0].images[0]

    def touch(done: int, total: int) -> None:
        os.utime(image, ns=(1, 1))

    first = load_or_extract(dataset, file, 1, progress=touch)
    again = load_or_extract(dataset, file, 1)
    assert again.stamp != first.stamp
    assert load_or_extract(dataset, file, 1).stamp == again.stamp


def test_groups_and_name_do_not_make_other_data(tiny_rgb_dataset):
    dataset = RawDataset.load(tiny_rgb_dataset)
    groups = {name: f"patient {number // 2}" for number, name in enumerate(dataset.case_names)}
    alone = extract_fingerprint(dataset, 1)
    grouped = extract_fingerprint(dataclasses.replace(dataset, origins=Origins(groups=groups)), 1)
    renamed = extract_fingerprint(dataclasses.replace(dataset, name="Dataset7_Other"), 1)
    patients = extract_fingerprint(dataclasses.replace(dataset, origins=Origins(patients=groups)), 1)
    assert (grouped.groups, patients.patients) == (groups, groups)
    assert alone.data_hash == grouped.data_hash == renamed.data_hash == patients.data_hash
    assert len({one.stamp for one in (alone, grouped, renamed, patients)}) == 4
    others = extract_fingerprint(dataclasses.replace(dataset, channel_names=("a", "b", "c")), 1)
    assert others.data_hash != alone.data_hash
    assert alone.describes(grouped.data_hash)
    assert not alone.describes(others.data_hash)


def test_unusable_file_is_measured_again(tiny_dataset, tmp_path):
    file = tmp_path / "fingerprint.json"
    file.write_text(json.dumps({"version": 0}))
    assert load_or_extract(RawDataset.load(tiny_dataset), file, 1).cases


def test_faults_name_the_file(tiny_copy):
    folder = next((tiny_copy / "raw").glob("*Tiny3D"))
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, "organ": 1}
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(SamunetError, match="labelsTr") as caught:
        extract_fingerprint(RawDataset.load(folder), 1)
    assert str(caught.value).count("does not declare") > 1  # all of them at once
