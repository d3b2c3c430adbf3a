"""Raw images as slices: orientation, contrast, labels, what is left out, and what is taken again."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from samunet.data.dataset import LoadedCase, RawDataset
from samunet.data.geometry import Geometry
from samunet.data.groups import Origins
from samunet.data.readers import read_label
from samunet.data.scene import UNKNOWN
from samunet.errors import SamunetError
from samunet.preprocessing import slices as module
from samunet.preprocessing.slice_draws import MOST_PARTS, Slices, scene_of_labels
from samunet.preprocessing.slice_index import SlicedCase, SliceIndex
from samunet.preprocessing.slices import (
    UNANNOTATED,
    case_slices,
    dataset_cutting,
    declared_licence,
    folder_cutting,
    write_slices,
)


def slice_dataset(dataset: RawDataset, folder: Path, excluded: frozenset[str]) -> SliceIndex:
    return write_slices(dataset_cutting(dataset, excluded), folder)


def slice_folder(source: Path, folder: Path) -> SliceIndex:
    return write_slices(folder_cutting(source), folder)


def case(image: np.ndarray, label: np.ndarray | None, spacing: tuple[float, float, float]) -> LoadedCase:
    shape = (image.shape[1], image.shape[2], image.shape[3])
    geometry = Geometry(shape=shape, spacing_mm=spacing, origin_mm=(0.0, 0.0, 0.0))
    return LoadedCase(image.astype(np.float32), label, geometry)


def test_slices_are_cut_across_the_coarsest_axis() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(1000, 50, (1, 20, 5, 30))
    label = np.zeros((20, 5, 30), np.int16)
    label[3:9, 2, 4:8] = 2
    label[0, 0, 0] = -1
    pictures, labels = case_slices(case(image, label, (1.0, 4.0, 1.0)))
    assert pictures.shape == (5, 3, 20, 30)
    assert labels is not None
    assert labels.shape == (5, 20, 30)
    assert np.flatnonzero(labels.any((1, 2))).tolist() == [2]
    assert labels[2, 3:9, 4:8].all()
    assert pictures.min() == 0
    assert pictures.max() == 255
    assert (pictures[:, 0] == pictures[:, 2]).all()


def test_one_thin_slice_is_not_cut_into_lines() -> None:
    image = np.random.default_rng(0).normal(size=(1, 1, 20, 30))
    pictures, _ = case_slices(case(image, None, (1.0, 1.4, 1.4)))
    assert pictures.shape == (1, 3, 20, 30)


def test_colour_stays_and_constant_slices_go() -> None:
    image = np.random.default_rng(0).integers(0, 200, (3, 1, 20, 24))
    pictures, labels = case_slices(case(image, None, (999.0, 1.0, 1.0)))
    assert labels is None
    assert np.array_equal(pictures[0], image[:, 0])
    two = np.concatenate([np.zeros((1, 1, 20, 24)), np.random.default_rng(0).random((1, 1, 20, 24))], 1)
    assert len(case_slices(case(two, None, (5.0, 1.0, 1.0)))[0]) == 1


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_how_opaque_a_pixel_is_is_no_colour(ending: str, tmp_path: Path) -> None:
    """Of RGBA pictures red, green and blue are taken, of a dataset's and of plain ones."""
    raw, plain = tmp_path / "Dataset001_RGBA", tmp_path / "plain"
    for folder in (raw / "imagesTr", raw / "labelsTr", plain):
        folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 4)).astype(np.uint8)
    for file in (plain / f"a.{ending}", raw / "imagesTr" / f"a_0000.{ending}"):
        if ending == "png":
            Image.fromarray(pixels).save(file)
        else:
            tifffile.imwrite(file, pixels, photometric="rgb")
    Image.fromarray(np.ones((20, 24), np.uint8)).save(raw / "labelsTr" / f"a.{ending}")
    told = {
        "channel_names": dict(zip("0123", ("red", "green", "blue", "alpha"))),
        "labels": {"background": 0, "cell": 1},
        "numTraining": 1,
        "file_ending": f".{ending}",
    }
    (raw / "dataset.json").write_text(json.dumps(told))
    slice_folder(plain, tmp_path / "0")
    slice_dataset(RawDataset.load(raw), tmp_path / "1", frozenset())
    for number in "01":
        stored = np.load(tmp_path / number / "0_image.npy")
        assert np.array_equal(stored[0], pixels[..., :3].transpose(2, 0, 1))


def test_four_channels_of_other_files_are_no_colour(tmp_path: Path) -> None:
    """Each has its own window, and four volumes of a 4D file are not taken for red, green, blue and alpha."""
    image = np.random.default_rng(0).integers(0, 100, (4, 3, 20, 24))
    pictures, _ = case_slices(case(image, None, (8.0, 1.0, 1.0)))
    assert pictures.max() > 200
    volumes = [sitk.GetImageFromArray(volume.astype(np.uint8)) for volume in image]
    for volume in volumes:
        volume.SetSpacing((1.0, 1.0, 8.0))
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.JoinSeries(volumes), str(tmp_path / "in" / "cine.nii.gz"))
    assert slice_folder(tmp_path / "in", tmp_path / "out").slices == 4 * 3


def test_parts_of_a_class_are_objects_of_their_own() -> None:
    labels = np.zeros((30, 30), np.uint16)
    labels[2:8, 2:8], labels[12:20, 12:20], labels[12:20, 20:25], labels[28, 28] = 1, 1, 2, 1
    scene = scene_of_labels(labels)
    assert scene.count == 3
    masks = [scene.mask(part) for part in np.flatnonzero(scene.usable)]
    assert sorted(int(mask.sum()) for mask in masks) == [36, 40, 64]


def test_of_too_many_parts_the_largest_are_kept_and_the_rest_is_unknown() -> None:
    """A chequer board has more parts than 16 bits count; a click on one that is left out is not wrong."""
    labels = np.indices((400, 400)).sum(axis=0) % 2
    labels[:20, :20] = 1
    labels[-20:, -20:] = 2
    scene = scene_of_labels(labels)
    assert scene.labels.min() == UNKNOWN
    assert len(scene.parents) == MOST_PARTS + 1
    assert scene.count == 1
    assert scene.mask(int(np.flatnonzero(scene.usable)[0]))[:20, :20].all()
    assert (scene.labels[-20:, -20:] == UNKNOWN).all()  # nothing was left for the second class
    np.testing.assert_array_equal(scene.labels == 0, labels == 0)


def test_excluded_cases_are_nowhere(tiny_dataset: Path, tmp_path: Path) -> None:
    dataset = RawDataset.load(tiny_dataset)
    index = slice_dataset(dataset, tmp_path, frozenset({"tiny_001", "tiny_003"}))
    assert [c.name for c in index.cases] == ["tiny_000", "tiny_002", "tiny_004", "tiny_005"]
    assert index.excluded == 2
    assert not index.cases[-1].labelled
    again = slice_dataset(dataset, tmp_path, frozenset({"tiny_001", "tiny_003"}))
    assert again == index
    assert slice_dataset(dataset, tmp_path, frozenset()).excluded == 0
    with pytest.raises(SamunetError, match="no case is left"):
        slice_dataset(dataset, tmp_path / "none", frozenset(dataset.case_names))


def test_ignored_voxels_are_no_object(tiny_dataset: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_dataset / "dataset.json").read_text())
    ignoring = {**content, "labels": {"background": 0, "organ": 1, "ignore": 2}}
    folder = tmp_path / tiny_dataset.name
    shutil.copytree(tiny_dataset, folder)
    (folder / "dataset.json").write_text(json.dumps(ignoring))
    dataset = RawDataset.load(folder)
    assert any((read_label(case.label)[0] == 2).any() for case in dataset.cases if case.label)
    index = slice_dataset(dataset, tmp_path / "slices", frozenset())
    for case in index.cases:
        stored = np.load(tmp_path / "slices" / f"{case.number}_label.npy")
        assert set(np.unique(stored)) <= {0, 1, UNANNOTATED}
        assert case.labelled == tuple(np.flatnonzero((stored == 1).any((1, 2))).tolist())
        for labels in stored[(stored == UNANNOTATED).any((1, 2))]:
            scene = scene_of_labels(labels)
            assert np.array_equal(scene.labels == UNKNOWN, labels == UNANNOTATED)
            for part in range(1, len(scene.parents)):
                assert set(np.unique(labels[scene.mask(part)])) == {1}


def test_a_licence_is_taken_from_where_datasets_write_it() -> None:
    assert declared_licence({"license": "CC0", "note": "x"}) == "CC0"
    assert declared_licence({"note": "public, CC0"}) == "not declared (note: public, CC0)"
    assert declared_licence({}) == "not declared"


def test_draws_fit_image_and_label_together(tiny_rgb_dataset: Path, tmp_path: Path) -> None:
    index = slice_dataset(RawDataset.load(tiny_rgb_dataset), tmp_path, frozenset())
    slices = Slices(tmp_path, index)
    assert slices.has_labels
    picture, scene = slices.draw(np.random.default_rng(0), validation=False)
    assert picture.shape == (3, 48, 56)
    cells = scene.labels > 0
    assert picture[1][cells].mean() < 100 < picture[1][~cells].mean()


def test_a_folder_of_images_has_no_objects(tmp_path: Path) -> None:
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (20, 30), np.uint8)
    Image.fromarray(noise).save(tmp_path / "in" / "deeper" / "a.png")
    slices = Slices(tmp_path / "out", slice_folder(tmp_path / "in", tmp_path / "out"))
    assert not slices.has_labels
    assert slices.draw(np.random.default_rng(0), validation=True)[1].count == 0
    with pytest.raises(SamunetError, match="no folder"):
        slice_folder(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SamunetError, match="holds no images"):
        slice_folder(tmp_path / "empty", tmp_path / "out")


def test_frames_of_a_4d_file_are_volumes_of_their_own(tmp_path: Path) -> None:
    """A cine's frames are no channels to be averaged."""
    frames = np.random.default_rng(0).normal(size=(25, 3, 20, 24)).astype(np.float32)
    frames[24] *= 100
    (tmp_path / "in").mkdir()
    volumes = [sitk.GetImageFromArray(frame) for frame in frames]
    for volume in volumes:
        volume.SetSpacing((1.0, 1.0, 8.0))
    sitk.WriteImage(sitk.JoinSeries(volumes), str(tmp_path / "in" / "cine.nii.gz"))
    index = slice_folder(tmp_path / "in", tmp_path / "out")
    assert [(c.name, c.slices) for c in index.cases] == [("cine.nii.gz", 10 * 3)]
    pictures = np.load(tmp_path / "out" / "0_image.npy")
    assert pictures.shape[1] == 1
    for frame, place in ((0, 0), (24, 27)):
        expected, _ = case_slices(case(frames[frame][None], None, (8.0, 1.0, 1.0)))
        assert np.array_equal(pictures[place : place + 3], expected[:, :1])


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    """macOS leaves ._NAME beside NAME on foreign disks."""
    (tmp_path / "in").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "in/a.png")
    (tmp_path / "in/._a.png").write_bytes(b"Mac OS X")
    assert [c.name for c in slice_folder(tmp_path / "in", tmp_path / "out").cases] == ["a.png"]


def test_slices_cut_off_while_they_are_written_anew_are_not_complete(
    tiny_rgb_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = RawDataset.load(tiny_rgb_dataset)
    whole = slice_dataset(dataset, tmp_path, frozenset())
    before = (tmp_path / "0_image.npy").read_bytes()

    def interrupted(path: Path, array: np.ndarray) -> None:
        np.save(path, array)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        slice_dataset(dataset, tmp_path, frozenset(dataset.case_names[:1]))
    monkeypatch.undo()
    assert slice_dataset(dataset, tmp_path, frozenset()) == whole
    assert (tmp_path / "0_image.npy").read_bytes() == before


def test_one_case_in_ten_is_for_validation_only() -> None:
    cases = tuple(SlicedCase(name=str(n), number=n, slices=1, labelled=()) for n in range(20))
    slices = Slices(Path("."), SliceIndex(source="x", licence="", excluded=0, cases=cases))
    held = {c.name for c in slices.cases(validation=True)}
    assert held == {"0", "10"}
    assert not held & {c.name for c in slices.cases(validation=False)}


def test_a_patients_cases_are_kept_for_validation_together(tiny_rgb_dataset: Path) -> None:
    cases = tuple(SlicedCase(name=f"{n:02d}", number=n, slices=1, labelled=()) for n in range(24))
    index = SliceIndex(source="x", licence="", excluded=0, cases=cases)
    patients = {case.name: f"p{case.number // 2}" for case in cases}
    slices = Slices(Path("."), index, patients)
    held, rest = ({c.name for c in slices.cases(validation=part)} for part in (True, False))
    assert held == {"00", "01", "20", "21"}
    assert rest == patients.keys() - held
    alone = Slices(Path("."), index, dict.fromkeys(patients, "p"))
    assert alone.cases(validation=True) == alone.cases(validation=False) == list(cases)

    dataset = RawDataset.load(tiny_rgb_dataset)
    names = dataset.case_names
    declared = {
        "patients": Origins(patients=dict.fromkeys(names, "p")),
        "sites": Origins(groups=dict.fromkeys(names, "north")),
    }
    cut = {kind: dataset_cutting(replace(dataset, origins=o), frozenset()) for kind, o in declared.items()}
    assert cut["patients"].patients == dict.fromkeys(names, "p")
    assert not cut["sites"].patients


def test_three_channels_of_mr_are_no_colours() -> None:
    """They would be cut to four levels of grey."""
    image = np.random.default_rng(0).uniform(0, 3, (3, 4, 32, 32)).astype(np.float32)
    pictures, _ = case_slices(case(image, None, (4.0, 1.0, 1.0)))
    assert len(np.unique(pictures)) > 100
    colours = np.rint(image * 80)
    np.testing.assert_array_equal(case_slices(case(colours, None, (4.0, 1.0, 1.0)))[0][0], colours[:, 0])


def test_a_damaged_picture_of_a_folder_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a", "b"):
        noise = np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(noise).save(source / f"{name}.png")
    (source / "a.png").write_bytes((source / "b.png").read_bytes()[:200])
    index = slice_folder(source, tmp_path / "out")
    assert [c.slices for c in index.cases] == [0, 1]
    assert "a.png" in caplog.text
    slices = Slices(tmp_path / "out", index)
    assert [c.name for c in slices.cases(validation=False)] == ["b.png"]


def test_cutting_takes_a_few_bytes_a_voxel() -> None:
    """In double precision and three channels a volume of 600 slices would not fit into a laptop."""
    image = np.random.default_rng(0).normal(size=(1, 40, 96, 96)).astype(np.float32)
    tracemalloc.start()
    case_slices(case(image, None, (4.0, 1.0, 1.0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * image.size  # three of a picture, four of a copy for the percentiles, and planes
