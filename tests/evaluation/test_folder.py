from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from samunet.data.geometry import Geometry
from samunet.data.groups import Origins
from samunet.data.labels import LabelSet
from samunet.data.readers import read_label, write_segmentation
from samunet.errors import SamunetError
from samunet.evaluation.folder import evaluate_cases, evaluate_folder
from samunet.evaluation.metrics import count_overlap, surface_metrics
from samunet.evaluation.scores import METRICS, OVERLAP_METRICS
from samunet.evaluation.summary_file import read_summary

CLASSES = LabelSet(labels={"background": (0,), "organ": (1,), "lesion": (2,)})


def geometry_image(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_mm[::-1])
    return image


def predict_shifted(references: Path, predictions: Path, ending: str = ".nii.gz") -> None:
    """Predictions that are the references moved by a voxel."""
    for path in sorted(references.iterdir()):
        label, geometry = read_label(path)
        write_segmentation(np.roll(label, 1, axis=2), geometry, predictions / path.name)


@pytest.fixture
def predictions(tiny_dataset: Path, tmp_path: Path) -> Path:
    predict_shifted(tiny_dataset / "labelsTr", tmp_path / "out")
    return tmp_path / "out"


def test_scores_equal_those_of_the_whole_masks(tiny_dataset: Path, predictions: Path) -> None:
    scores = evaluate_folder(tiny_dataset / "labelsTr", predictions, CLASSES, ".nii.gz", tolerance_mm=1.3)
    assert [case.name for case in scores.cases] == [f"tiny_{i:03d}" for i in range(6)]
    case = scores.cases[1]
    reference, geometry = read_label(Path(case.reference_file))
    prediction, _ = read_label(Path(case.prediction_file))
    for name, value in (("organ", 1), ("lesion", 2)):
        masks = reference == value, prediction == value
        counts = count_overlap(*masks)
        assert case.metrics[name]["TN"] == counts.tn
        assert case.metrics[name]["Dice"] == counts.dice
        surface = surface_metrics(*masks, geometry.spacing_mm, 1.3)  # cropping must change nothing
        assert {key: case.metrics[name][key] for key in surface} == surface
        assert 0 < surface["SurfaceDice"] <= 1


def test_a_reference_is_told_by_its_classes_voxel_by_voxel(tiny_dataset: Path, tmp_path: Path) -> None:
    """Not by format and integer type; a mirrored one, of as many voxels, is another, read back or not."""
    label, geometry = read_label(tiny_dataset / "labelsTr" / "tiny_001.nii.gz")
    written = {"a": ("nii.gz", label), "b": ("nrrd", label.astype(np.int32)), "c": ("nrrd", label[:, ::-1])}
    pairs = {}
    for name, (ending, array) in written.items():
        file = tmp_path / f"{name}.{ending}"
        pairs[name] = (file, file)
        sitk.WriteImage(geometry_image(array, geometry), file)
    scores = evaluate_cases(pairs, CLASSES)
    scores.save(tmp_path / "summary.json")
    for read in (
        {case.name: case.reference for case in scores.cases},
        read_summary(tmp_path / "summary.json", CLASSES).references,
    ):
        assert not read["a"].differs(read["b"])
        assert read["a"].differs(read["c"])
        assert read["a"].voxels == read["c"].voxels


def test_absent_classes_are_nan_skipped_and_counted(tiny_dataset: Path, predictions: Path) -> None:
    labels = LabelSet(labels={**CLASSES.labels, "never": (7,)})
    scores = evaluate_folder(tiny_dataset / "labelsTr", predictions, labels, ".nii.gz")
    empty = scores.cases[5]
    assert math.isnan(empty.metrics["organ"]["Dice"])
    assert math.isnan(empty.metrics["organ"]["HD95"])
    assert empty.metrics["organ"]["TP"] == 0
    dices = [case.metrics["organ"]["Dice"] for case in scores.cases[:5]]
    assert scores.mean["organ"]["Dice"] == pytest.approx(np.mean(dices))
    assert scores.counts["organ"] == {"cases": 6, "found": 5, "missed": 0, "spurious": 0, "absent": 1}
    assert scores.absent_everywhere == ("never",)
    assert math.isnan(scores.mean["never"]["Dice"])
    both = [scores.mean[name]["Dice"] for name in ("organ", "lesion")]
    assert scores.foreground_mean["Dice"] == pytest.approx(np.mean(both))
    assert "never is in no reference" in scores.describe()


def test_missed_and_spurious_cases_are_counted(tiny_dataset: Path, predictions: Path) -> None:
    for name, value in (("tiny_000", 0), ("tiny_005", 1)):
        label, geometry = read_label(tiny_dataset / "labelsTr" / f"{name}.nii.gz")
        write_segmentation(np.full_like(label, value), geometry, predictions / f"{name}.nii.gz")
    scores = evaluate_folder(tiny_dataset / "labelsTr", predictions, CLASSES, ".nii.gz")
    assert scores.counts["organ"] == {"cases": 6, "found": 4, "missed": 1, "spurious": 1, "absent": 0}
    assert scores.cases[0].metrics["organ"]["Dice"] == 0
    assert scores.cases[0].metrics["organ"]["SurfaceDice"] == 0
    assert math.isnan(scores.cases[0].metrics["organ"]["HD95"])
    assert "missed in 1 case(s), predicted where it is not in 1" in scores.describe()


def test_a_case_is_named_without_an_ending_of_more_parts(tmp_path: Path, tiny_dataset: Path) -> None:
    """As everywhere else, so that its group is found and a later stage finds its scores."""
    for name in ("tiny_000", "tiny_001"):
        label, geometry = read_label(tiny_dataset / "labelsTr" / f"{name}.nii.gz")
        for folder in ("labels", "predictions"):
            write_segmentation(label, geometry, tmp_path / folder / f"{name}.seg.nrrd")
    origins = Origins(groups={"tiny_000": "a", "tiny_001": "b"})
    scores = evaluate_folder(
        tmp_path / "labels", tmp_path / "predictions", CLASSES, ".seg.nrrd", origins=origins
    )
    assert [(case.name, case.group) for case in scores.cases] == [("tiny_000", "a"), ("tiny_001", "b")]


def test_json_has_nnunets_keys_and_csv_one_row_per_class(
    tiny_dataset: Path, predictions: Path, tmp_path: Path
) -> None:
    groups = {f"tiny_{i:03d}": "a" if i < 2 else "b" for i in range(5)}
    patients = {f"tiny_{i:03d}": f"p{i // 2}" for i in range(4)}
    origins = Origins(groups=groups, patients=patients)
    scores = evaluate_folder(tiny_dataset / "labelsTr", predictions, CLASSES, ".nii.gz", origins=origins)
    scores.save(tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"foreground_mean", "mean", "metric_per_case"} <= set(summary)
    assert set(summary["mean"]) == {"1", "2"}
    assert set(OVERLAP_METRICS) <= set(summary["foreground_mean"])
    first = summary["metric_per_case"][0]
    assert first["reference_file"].endswith("tiny_000.nii.gz")
    assert first["metrics"]["1"]["Dice"] == scores.cases[0].metrics["organ"]["Dice"]
    assert isinstance(first["metrics"]["1"]["TP"], int)
    assert summary["classes"] == {"1": "organ", "2": "lesion"}
    assert summary["by_group"]["a"]["cases"] == 2
    dices = [case.metrics["organ"]["Dice"] for case in scores.cases[:2]]
    assert summary["by_group"]["a"]["mean"]["1"]["Dice"] == pytest.approx(np.mean(dices))

    scores.save_csv(tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert list(rows[0]) == ["case", "group", "class", "label", *METRICS]
    assert float(rows[0]["Dice"]) == scores.cases[0].metrics["organ"]["Dice"]
    assert (rows[-1]["case"], rows[-1]["group"], rows[-1]["Dice"]) == ("tiny_005", "", "")


def test_regions_and_the_ignore_label(tiny_dataset: Path, predictions: Path, tmp_path: Path) -> None:
    labels = LabelSet(
        labels={"background": (0,), "whole": (1, 2), "lesion": (2,)}, ignore=3, region_order=(1, 2)
    )
    references = tmp_path / "references"
    for path in sorted((tiny_dataset / "labelsTr").iterdir()):
        label, geometry = read_label(path)
        label[:, :16] = 3
        write_segmentation(label, geometry, references / path.name)
    scores = evaluate_folder(references, predictions, labels, ".nii.gz")
    case = scores.cases[0]
    reference, _ = read_label(Path(case.reference_file))
    prediction, _ = read_label(Path(case.prediction_file))
    counted = reference != 3
    counts = count_overlap((reference > 0)[counted], (prediction > 0)[counted])
    whole = case.metrics["whole"]
    assert [whole[k] for k in ("TP", "FP", "FN", "TN")] == [counts.tp, counts.fp, counts.fn, counts.tn]
    scores.save(tmp_path / "summary.json")
    assert set(json.loads((tmp_path / "summary.json").read_text())["mean"]) == {"(1, 2)", "2"}


def test_missing_predictions_are_listed(tiny_dataset: Path, predictions: Path) -> None:
    for name in ("tiny_001", "tiny_004"):
        (predictions / f"{name}.nii.gz").unlink()
    references = tiny_dataset / "labelsTr"
    with pytest.raises(SamunetError, match=r"lacks 2 of 6 predictions: tiny_001\.nii\.gz, tiny_004\.nii\.gz"):
        evaluate_folder(references, predictions, CLASSES, ".nii.gz")
    scores = evaluate_folder(references, predictions, CLASSES, ".nii.gz", chill=True)
    assert len(scores.cases) == 4
    assert scores.skipped == ("tiny_001.nii.gz", "tiny_004.nii.gz")
    for path in sorted(predictions.iterdir()):
        path.unlink()
    with pytest.raises(SamunetError, match="lacks 6 of 6"):
        evaluate_folder(references, predictions, CLASSES, ".nii.gz", chill=True)
    with pytest.raises(SamunetError, match="no folder"):
        evaluate_folder(references, predictions / "nowhere", CLASSES, ".nii.gz")


def test_what_does_not_fit_is_said(
    tiny_dataset: Path, predictions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = sitk.ReadImage(str(predictions / "tiny_000.nii.gz"))
    image.SetOrigin((0.0, 0.0, 0.0))
    image[0, 0, 0] = 9
    sitk.WriteImage(image, str(predictions / "tiny_000.nii.gz"))
    with caplog.at_level(logging.WARNING):
        evaluate_folder(tiny_dataset / "labelsTr", predictions, CLASSES, ".nii.gz")
    assert "origin" in caplog.text
    assert "does not declare" in caplog.text
    sitk.WriteImage(image[:, :, 1:], str(predictions / "tiny_000.nii.gz"))
    with pytest.raises(SamunetError, match=r"tiny_000\.nii\.gz has the shape \(9, 32, 36\)"):
        evaluate_folder(tiny_dataset / "labelsTr", predictions, CLASSES, ".nii.gz")


def test_pictures_are_measured_in_the_plane(tiny_rgb_dataset: Path, tmp_path: Path) -> None:
    predict_shifted(tiny_rgb_dataset / "labelsTr", tmp_path / "out")
    labels = LabelSet(labels={"background": (0,), "cell": (1,)})
    scores = evaluate_folder(tiny_rgb_dataset / "labelsTr", tmp_path / "out", labels, ".png")
    assert scores.mean["cell"]["HD95"] <= 1.5
    assert 0 < scores.mean["cell"]["ASSD"] < 1.5


def test_stacks_without_spacing_are_said_and_one_file_beside_them_is_enough(
    stack_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    references, predictions = stack_dataset / "labelsTr", tmp_path / "out"
    predict_shifted(references, predictions)
    labels = LabelSet(labels={"background": (0,), "cell": (1,)})
    evaluate_folder(references, predictions, labels, ".tif")
    assert not caplog.text
    (predictions / "a.json").unlink()
    evaluate_folder(references, predictions, labels, ".tif")
    assert "1 x 1 x 1 mm is assumed" in caplog.text


@pytest.mark.parametrize("slices", [3, 4])
def test_few_slices_without_a_spacing_file_are_no_colours(tmp_path: Path, slices: int) -> None:
    """tifffile writes so few of them as planes of one colour picture."""
    label = np.zeros((slices, 9, 10), np.uint8)
    label[:, 2:7, 3:8] = 1
    geometry = Geometry(shape=label.shape, spacing_mm=(2.0, 1.0, 1.0))
    (references := tmp_path / "labels").mkdir()
    tifffile.imwrite(references / "a.tif", label)
    write_segmentation(label, geometry, tmp_path / "out" / "a.tif")
    labels = LabelSet(labels={"background": (0,), "cell": (1,)})
    scores = evaluate_folder(references, tmp_path / "out", labels, ".tif")
    assert scores.mean["cell"]["Dice"] == 1


def test_workers_give_the_same(tiny_dataset: Path, predictions: Path) -> None:
    one = evaluate_folder(tiny_dataset / "labelsTr", predictions, CLASSES, ".nii.gz")
    two = evaluate_folder(tiny_dataset / "labelsTr", predictions, CLASSES, ".nii.gz", workers=2)
    assert repr(one) == repr(two)


def test_nothing_to_evaluate() -> None:
    with pytest.raises(SamunetError, match="nothing to evaluate"):
        evaluate_cases({}, CLASSES)
    with pytest.raises(SamunetError, match=r"2 label file\(s\) .* do not exist: .*a\.png"):
        evaluate_cases({"a": (Path("a.png"), Path("b.png"))}, CLASSES)
