"""The DeSAM paper's evaluation: which slices and pixels count, and that its figures carry its name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samunet.cli import evaluate_folder
from samunet.data.geometry import Geometry
from samunet.data.labels import LabelSet
from samunet.data.readers import write_segmentation
from samunet.evaluation.desam_protocol import (
    counted_slices,
    evaluate_by_protocol,
    protocol_dice,
    to_square,
    without_small_parts,
)


def disc(centre: tuple[float, float] = (128, 128), radius: float = 40) -> np.ndarray:
    rows, columns = np.ogrid[:256, :256]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def volume(*slices: np.ndarray) -> np.ndarray:
    return np.stack(slices)


NOTHING = np.zeros((256, 256), bool)


def test_slices_with_the_class_but_the_last():
    assert counted_slices(volume(NOTHING, disc(), NOTHING, disc(), disc(), NOTHING)).keys() == {1, 3}


def test_what_other_slices_hold_does_not_count():
    reference = volume(NOTHING, disc(), disc(), NOTHING)
    assert protocol_dice(reference, volume(disc(), disc(), NOTHING, disc())) == 1.0
    assert math.isnan(protocol_dice(volume(NOTHING, disc()), volume(NOTHING, disc())))


def test_the_border_of_the_prediction_is_blank():
    far = disc((20, 20), 25)
    assert protocol_dice(volume(disc(), disc()), volume(disc() | far, NOTHING)) == 1.0
    assert protocol_dice(volume(far, far), volume(far, far)) == 0.0  # of the reference it is not
    wide = disc(radius=110)
    inside = np.count_nonzero(wide[50:206, 50:206])
    assert protocol_dice(volume(wide, wide), volume(wide, wide)) == pytest.approx(
        2 * inside / (inside + wide.sum())
    )


def test_a_slice_whose_class_is_too_small_for_the_square_does_not_count():
    speck = np.zeros((1024, 1024), bool)
    speck[0, 0] = True
    large = np.kron(disc(), np.ones((4, 4), bool))
    assert math.isnan(protocol_dice(volume(speck, speck), volume(speck, speck)))
    assert protocol_dice(volume(speck, large, speck, large), volume(large, large, large, large)) == 1.0


def test_small_islands_and_holes_go():
    island, hole = disc((190, 190), 10), disc((128, 128), 10)
    assert np.array_equal(without_small_parts(disc() & ~hole | island), disc())
    assert np.array_equal(without_small_parts(island), island)  # the largest stays
    assert not without_small_parts(NOTHING).any()


def test_a_missed_slice_lowers_the_dice_of_the_case():
    reference = volume(disc(), disc(), disc())
    assert protocol_dice(reference, volume(disc(), NOTHING, NOTHING)) == pytest.approx(2 / 3)


def test_slices_are_resized_by_the_nearest_pixel():
    mask = np.zeros((64, 128), bool)
    mask[16:48, 32:96] = True
    square = to_square(mask)
    assert square.shape == (256, 256)
    assert square.sum() == (256 // 2) ** 2
    assert np.array_equal(to_square(disc()), disc())


def test_what_is_ignored_does_not_count():
    reference = volume(disc((128, 100)), NOTHING) | volume(NOTHING, disc())
    beside = volume(disc((128, 160), 30), NOTHING) & ~reference
    assert protocol_dice(reference, reference | beside) < 0.9
    assert protocol_dice(reference, reference | beside, beside) == 1.0


def test_slices_are_cut_as_the_methods_cut_them(tmp_path: Path) -> None:
    """Across the thick axis, wherever the file has it."""
    masks = [np.stack([disc((120 + 3 * z, 130), radius) for z in range(6)]) for radius in (40, 33)]
    scores = []
    for axis in range(3):
        files = (tmp_path / f"labels{axis}.nii.gz", tmp_path / f"predicted{axis}.nii.gz")
        for mask, file in zip(masks, files):
            array = np.moveaxis(mask, 0, axis).astype(np.uint8)
            spacing = tuple(np.roll((5.0, 1.0, 1.0), axis))
            write_segmentation(array, Geometry(shape=array.shape, spacing_mm=spacing), file)
        labels = LabelSet.from_dataset_json({"labels": {"background": 0, "organ": 1}}, "here")
        scores.append(evaluate_by_protocol({"a": files}, labels).cases["a"]["organ"])
    assert scores[0] < 0.95
    assert scores == [scores[0]] * 3


def test_a_reference_without_spacing_is_cut_as_its_prediction(tmp_path: Path) -> None:
    """A TIFF stack whose JSON file lies beside the prediction alone."""
    masks = [np.stack([disc((120 + 3 * z, 130), radius) for z in range(6)], 1) for radius in (40, 33)]
    files = (tmp_path / "labels.tif", tmp_path / "predicted.tif")
    labels = LabelSet.from_dataset_json({"labels": {"background": 0, "organ": 1}}, "here")
    for mask, file in zip(masks, files):
        write_segmentation(
            mask.astype(np.uint8), Geometry(shape=mask.shape, spacing_mm=(1.0, 5.0, 1.0)), file
        )
    stated = evaluate_by_protocol({"a": files}, labels).cases["a"]["organ"]
    files[0].with_suffix(".json").unlink()
    assert evaluate_by_protocol({"a": files}, labels).cases["a"]["organ"] == stated < 0.95


def test_pictures_have_no_score_and_are_told_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, labels = tmp_path / "a.png", LabelSet(labels={"background": (0,), "disc": (1,)})
    Image.fromarray(disc().astype(np.uint8)).save(file)
    scores = evaluate_by_protocol({"a": (file, file)}, labels)
    assert "has no Dice of disc: no case holds it in two slices" in caplog.text
    assert "nan" not in scores.describe()


def test_figures_are_named_after_the_protocol(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, output = str(tiny_dataset / "labelsTr"), tmp_path / "scores.json"
    words = [labels, labels, "-djfile", str(tiny_dataset / "dataset.json"), "-o", str(output), "-np", "1"]
    assert evaluate_folder.main([*words, "--desam_protocol"]) == 0
    told = capsys.readouterr().out
    assert "mean of the classes      Dice (DeSAM protocol)" in told
    assert "not with scores of whole volumes" in told
    content = json.loads((tmp_path / "scores_desam_protocol.json").read_text())
    assert content["protocol"] == "DeSAM protocol"
    # Small holes that the lesion makes in the organ are filled in the prediction, whose border is blanked.
    assert 0.95 < content["mean"]["1"]["Dice"] < 1.0
    assert len(content["metric_per_case"]) == 6
    assert "Dice (DeSAM protocol)" in (tmp_path / "scores_desam_protocol.csv").read_text().splitlines()[0]
    assert "protocol" not in json.loads(output.read_text())
