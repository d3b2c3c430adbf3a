from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes
from tiny_runs import CLASSES, REGIONS, abandoned

from samunet.data.geometry import Geometry
from samunet.data.labels import LabelSet
from samunet.data.readers import read_label, write_segmentation
from samunet.errors import SamunetError
from samunet.inference.output_folder import check_output
from samunet.inference.postprocessing import (
    Postprocessing,
    Rule,
    holes,
    number_components,
    postprocess_folder,
)
from samunet.records import read_json, write_json

SPACING = (3.0, 1.0, 2.0)


def geometry(array: np.ndarray, is_2d: bool = False) -> Geometry:
    return Geometry(shape=array.shape, spacing_mm=(999.0, 1.0, 1.0) if is_2d else SPACING, is_2d=is_2d)


def run(array: np.ndarray, *rules: Rule, labels: LabelSet = CLASSES, is_2d: bool = False) -> np.ndarray:
    before = array.copy()
    result = Postprocessing(labels=labels, rules=rules).apply(array, geometry(array, is_2d))
    assert np.array_equal(array, before)
    assert result.dtype == array.dtype
    return result


def two_blobs() -> np.ndarray:
    """Organ (1) of 8 voxels with lesion (2) beside it, and far away 2 voxels of organ and one of lesion."""
    array = np.zeros((6, 8, 8), np.uint8)
    array[0:2, 0:2, 0:2] = 1
    array[0:2, 0:2, 2] = 2
    array[4, 6, 5:7] = 1
    array[4, 7, 7] = 2
    return array


def test_the_largest_component_of_one_class_or_of_all() -> None:
    array = two_blobs()
    of_organ = run(array, Rule(kind="largest_component", target="organ"))
    assert np.count_nonzero(of_organ == 1) == 8
    assert np.array_equal(of_organ == 2, array == 2)
    of_all = run(array, Rule(kind="largest_component", target=None))
    assert np.count_nonzero(of_all) == 12
    assert not of_all[4].any()


def test_components_touch_by_corners_and_equal_ones_are_kept() -> None:
    array = np.zeros((2, 4, 6), np.uint8)
    array[0, 0, 0] = array[1, 1, 1] = 1  # a corner in common: one component
    array[0, 3, 5] = 1
    kept = run(array, Rule(kind="largest_component", target="organ"))
    assert np.count_nonzero(kept) == 2
    array[1, 1, 1] = 0
    assert np.array_equal(run(array, Rule(kind="largest_component", target="organ")), array)


@pytest.mark.parametrize(("minimum", "left"), [(6.0, 16), (6.1, 14), (12.0, 14), (12.1, 12), (48.1, 0)])
def test_sizes_are_in_cubic_millimetres(minimum: float, left: int) -> None:
    rules = [Rule(kind="minimum_size", target=name, minimum_mm3=minimum) for name in ("organ", "lesion")]
    array = two_blobs()
    array[4, 6, 6] = 0
    array[5, 0, 0:2] = 1  # a voxel is 6 mm3; organ has 8, 2 and 1 voxels, lesion 4 and 1
    assert np.count_nonzero(run(array, *rules)) == left


def test_holes_are_filled_with_the_class_and_other_classes_stay() -> None:
    array = np.zeros((5, 7, 7), np.uint8)
    array[0:5, 1:6, 1:6] = 1
    array[2, 3, 2:5] = (0, 2, 0)
    filled = run(array, Rule(kind="fill_holes", target="organ"))
    assert filled[2, 3].tolist() == [0, 1, 1, 2, 1, 1, 0]
    array[2, 3, 2] = array[2, 3, 1] = 0  # open to the outside: no hole any more
    assert run(array, Rule(kind="fill_holes", target="organ"))[2, 3, 2] == 0


def test_in_a_single_slice_holes_are_enclosed_in_the_plane() -> None:
    array = np.zeros((1, 7, 7), np.uint8)
    array[0, 1:6, 1:6] = 1
    array[0, 3, 3] = 0
    assert run(array, Rule(kind="fill_holes", target="organ"), is_2d=True)[0, 3, 3] == 1
    assert run(array, Rule(kind="fill_holes", target="organ"))[0, 3, 3] == 1


def test_a_ring_in_one_slice_of_a_volume_is_open() -> None:
    array = np.zeros((5, 7, 7), np.uint8)
    array[2, 1:6, 1:6] = 1
    array[2, 3, 3] = 0
    assert run(array, Rule(kind="fill_holes", target="organ"))[2, 3, 3] == 0
    array[0, 0, 0] = 1  # a stray voxel far away changes nothing
    assert run(array, Rule(kind="fill_holes", target="organ"))[2, 3, 3] == 0


def test_holes_found_one_component_at_a_time_are_those_of_the_whole_mask() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shape = tuple(rng.integers(3, 10, 3)) if seed % 3 else (1, 15, 15)
        mask = rng.random(shape) < rng.uniform(0.4, 0.9)
        expected = binary_fill_holes(mask.squeeze()).reshape(shape) & ~mask
        components, _ = number_components(mask)
        assert np.array_equal(holes(components, mask.astype(np.uint8), shape), expected), seed


def test_a_pixel_of_a_picture_is_one_mm3() -> None:
    array = np.zeros((1, 7, 7), np.uint8)
    array[0, 0, :3] = array[0, 5, :2] = 1
    kept = run(array, Rule(kind="minimum_size", target="organ", minimum_mm3=3), is_2d=True)
    assert np.count_nonzero(kept) == 3


def test_regions_are_taken_as_a_whole_and_the_ignore_label_stays() -> None:
    array = np.zeros((3, 8, 8), np.uint8)
    array[0, 0:3, 0:3] = 1
    array[0, 1, 1] = 2
    array[2, 6, 6:8] = (1, 2)
    array[2, 0, 0] = 3
    whole = run(array, Rule(kind="largest_component", target="whole"), labels=REGIONS)
    assert np.count_nonzero(whole == 1) == 8
    assert np.count_nonzero(whole == 2) == 1
    assert whole[2, 0, 0] == 3
    flat = array[:1].copy()
    flat[0, 1, 1] = 0
    filled = run(flat, Rule(kind="fill_holes", target="whole"), labels=REGIONS)
    assert filled[0, 1, 1] == 1  # the value that `whole` is painted with


def test_an_ignore_label_that_the_map_cannot_hold_does_not_matter() -> None:
    declared = {"background": 0, "organ": 1, "lesion": 2, "ignore": 300}
    labels = LabelSet.from_dataset_json({"labels": declared}, "dataset.json")
    kept = run(two_blobs(), Rule(kind="largest_component", target="organ"), labels=labels)
    assert np.count_nonzero(kept == 1) == 8


def test_a_map_whose_type_is_too_small_for_the_result_gets_a_larger_one() -> None:
    """The value that a region is painted with lies above those of the map."""
    declared = {"background": 0, "whole": [1, 300], "core": [1]}
    labels = LabelSet.from_dataset_json({"labels": declared, "regions_class_order": [300, 1]}, "dataset.json")
    array = np.zeros((1, 7, 7), np.uint8)
    array[0, 1:6, 1:6] = 1
    array[0, 3, 3] = 0
    rules = (Rule(kind="fill_holes", target="whole"),)
    filled = Postprocessing(labels=labels, rules=rules).apply(array, geometry(array, is_2d=True))
    assert filled[0, 3, 3] == 300
    assert np.count_nonzero(filled == 1) == 24


def test_rules_follow_each_other_and_an_empty_map_stays_empty() -> None:
    rules = (
        Rule(kind="largest_component", target=None),
        Rule(kind="minimum_size", target="lesion", minimum_mm3=1000),
        Rule(kind="fill_holes", target="organ"),
    )
    assert run(two_blobs(), *rules).sum() == 8
    assert not run(np.zeros((2, 3, 4), np.uint8), *rules).any()


def test_foreign_values_are_refused() -> None:
    array = two_blobs()
    array[0, 0, 0] = 9
    with pytest.raises(SamunetError, match=r"values \[9\] that dataset.json does not declare"):
        run(array, Rule(kind="largest_component", target=None))


def test_the_file_is_strict(tmp_path: Path) -> None:
    file = tmp_path / "postprocessing.json"
    made = Postprocessing(labels=REGIONS, rules=(Rule(kind="minimum_size", target="core", minimum_mm3=4.5),))
    made.save(file)
    assert Postprocessing.load(file) == made
    for change, message in (
        ({"target": "liver"}, r"rules\[0\] names 'liver', which is none of whole, core"),
        ({"minimum_mm3": None}, "belongs to minimum_size"),
        ({"kind": "fill_holes"}, "belongs to minimum_size"),
        ({"kind": "fill_holes", "target": None, "minimum_mm3": None}, "needs a class or region"),
        ({"kind": "smooth"}, "is not one of 'largest_component'"),
        ({"size": 3}, r"unknown keys \['size'\]"),
    ):
        content = read_json(file)
        content["rules"][0] |= change
        other = tmp_path / "other.json"
        write_json(other, content)
        with pytest.raises(SamunetError, match=message):
            Postprocessing.load(other)


def test_a_folder(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    clean = np.zeros((6, 8, 8), np.uint8)
    clean[0:2] = 1
    for name, array in (("a", two_blobs()), ("b", clean)):
        write_segmentation(array, geometry(array), source / f"{name}.nii.gz")
    pp = Postprocessing(labels=CLASSES, rules=(Rule(kind="largest_component", target=None),))
    with pytest.raises(SamunetError, match=r"no dataset\.json"):
        postprocess_folder(source, output, pp)
    declared = {"labels": {"background": 0, "organ": 1, "lesion": 2}, "file_ending": ".nii.gz"}
    write_json(source / "dataset.json", {**declared, "labels": {"background": 0, "lesion": 1, "organ": 2}})
    with pytest.raises(
        SamunetError, match=r"organ 1, lesion 2, but .*dataset\.json says .*lesion 1, organ 2"
    ):
        postprocess_folder(source, output, pp)
    write_json(source / "dataset.json", {**declared, "file_ending": 5})
    with pytest.raises(SamunetError, match=r"`file_ending` must be .*: 5\."):
        postprocess_folder(source, output, pp)
    write_json(source / "dataset.json", declared)
    left = abandoned(output)
    assert postprocess_folder(source, output, pp) == (2, 1)
    assert not left.exists()
    result, found = read_label(output / "a.nii.gz")
    assert np.count_nonzero(result) == 12
    assert found.spacing_mm == pytest.approx(SPACING)
    assert Postprocessing.load(output / "postprocessing.json") == pp
    with pytest.raises(SamunetError, match="output folder of its own"):
        postprocess_folder(source, source, pp)
    write_json(tmp_path / "predicted/predict_args.json", {})
    with pytest.raises(SamunetError, match="holds results of samunet_predict"):
        postprocess_folder(source, tmp_path / "predicted", pp)
    for file in source.glob("*.nii.gz"):
        file.unlink()
    with pytest.raises(SamunetError, match=r"no label maps with the ending \.nii\.gz"):
        postprocess_folder(source, output, pp)


def folder_of_predictions(source: Path, *names: str) -> Path:
    declared = {"labels": {"background": 0, "organ": 1, "lesion": 2}, "file_ending": ".nii.gz"}
    write_json(source / "dataset.json", declared)
    for name in names:
        write_segmentation(two_blobs(), geometry(two_blobs()), source / f"{name}.nii.gz")
    return source


LARGEST = Postprocessing(labels=CLASSES, rules=(Rule(kind="largest_component", target=None),))
FILLED = Postprocessing(labels=CLASSES, rules=(Rule(kind="fill_holes", target="organ"),))


def test_maps_of_other_rules_are_not_taken_for_these(tmp_path: Path) -> None:
    first, second = (
        folder_of_predictions(tmp_path / "1", "a", "b"),
        folder_of_predictions(tmp_path / "2", "b", "c"),
    )
    output = tmp_path / "out"
    postprocess_folder(first, output, LARGEST)
    before = {file: file.read_bytes() for file in output.iterdir()}
    with pytest.raises(SamunetError, match=r"out holds 1 label map\(s\) .* other rules.* a\.nii\.gz"):
        postprocess_folder(second, output, FILLED)
    assert {file: file.read_bytes() for file in output.iterdir()} == before
    postprocess_folder(second, output, LARGEST)  # the record is true of all three
    assert len(list(output.glob("*.nii.gz"))) == 3
    (output / "postprocessing.json").unlink()
    with pytest.raises(SamunetError, match=r"out holds 1 label map\(s\) .*a\.nii\.gz"):
        postprocess_folder(second, output, LARGEST)
    (output / "a.nii.gz").unlink()
    before = {file: file.read_bytes() for file in output.iterdir()}
    with pytest.raises(
        SamunetError, match=r"out holds b\.nii\.gz, c\.nii\.gz, which this command did not make"
    ):
        postprocess_folder(second, output, FILLED)
    assert {file: file.read_bytes() for file in output.iterdir()} == before


def test_maps_of_other_rules_are_replaced_where_none_would_stay(tmp_path: Path) -> None:
    source, output = folder_of_predictions(tmp_path / "in", "a", "b"), tmp_path / "out"
    postprocess_folder(source, output, LARGEST)
    postprocess_folder(source, output, FILLED)
    assert Postprocessing.load(output / "postprocessing.json") == FILLED


def test_an_interruption_leaves_no_word_on_maps_that_are_half_replaced(tmp_path: Path) -> None:
    source, output = folder_of_predictions(tmp_path / "in", "a", "b"), tmp_path / "out"
    postprocess_folder(source, output, LARGEST)
    (source / "b.nii.gz").write_bytes((source / "b.nii.gz").read_bytes()[:100])
    with pytest.raises(SamunetError, match=r"b\.nii\.gz"):
        postprocess_folder(source, output, FILLED)
    assert not (output / "postprocessing.json").exists()
    with pytest.raises(
        SamunetError, match=r"holds results of samunet_apply_postprocessing \(postprocessing_un"
    ):
        check_output(output, "samunet_predict")
    folder_of_predictions(source, "b")
    postprocess_folder(source, output, FILLED)
    assert Postprocessing.load(output / "postprocessing.json") == FILLED
    assert {file.name for file in output.glob("*.json")} == {"postprocessing.json", "dataset.json"}
