"""Segmentations that an earlier prediction left are not taken for those of the present one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import CLASSES

from samunet.cli import evaluate_folder
from samunet.data.cases import Case, FilesStamp
from samunet.data.geometry import Geometry
from samunet.data.readers import write_segmentation
from samunet.errors import SamunetError
from samunet.inference.ensemble import EnsembleArguments, EnsembleOptions, ensemble_folders
from samunet.inference.files import check_arguments
from samunet.inference.finished import (
    features_file,
    is_finished,
    prediction_hash,
    refuse_unfinished,
    unfinished_cases,
)
from samunet.inference.postprocessing import Postprocessing, postprocess_folder
from samunet.inference.probabilities import ProbabilitiesRecord, new_probabilities
from samunet.records import read_json, to_data, write_json

GEOMETRY = Geometry(shape=(2, 4, 5), spacing_mm=(3.0, 1.0, 1.0))
NOW = {"models": [{"model": "b", "folds": [0]}], "step_size": 0.5}
BEFORE = {"models": [{"model": "a", "folds": [1]}], "step_size": 0.5}
RECORD = ProbabilitiesRecord(class_names=CLASSES.class_names, has_regions=False, geometry=GEOMETRY)
RULES = Postprocessing(labels=CLASSES, rules=())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Cases a of this prediction, b of the one before, and c, which was to be predicted anew and failed."""
    folder = tmp_path / "predicted"
    for name in ("a", "b", "c"):
        write_segmentation(np.ones(GEOMETRY.shape, np.uint8), GEOMETRY, folder / f"{name}.nii.gz")
        with new_probabilities(folder / f"{name}.nii.gz", RECORD) as out:
            out[:] = 1 / 3
    declared = {"labels": {"background": 0, "organ": 1, "lesion": 2}, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", declared)
    write_json(folder / "predict_args.json", NOW)
    for name, arguments in (("a", NOW), ("b", BEFORE)):
        write_json(features_file(folder, name), {"arguments_hash": prediction_hash(arguments)})
    return folder


def test_what_is_not_finished_is_told_by_the_features(folder: Path) -> None:
    assert unfinished_cases(folder, ".nii.gz") == ("b", "c")
    moved = {**NOW, "models": [{"model": "elsewhere", "folds": [0]}]}
    write_json(folder / "predict_args.json", moved)
    assert unfinished_cases(folder, ".nii.gz") == ("b", "c")
    for content in ({}, [], {"models": 3}):
        write_json(folder / "predict_args.json", content)
        with pytest.raises(SamunetError, match=r"predict_args\.json"):
            unfinished_cases(folder, ".nii.gz")
    (folder / "predict_args.json").unlink()  # another program's folder
    assert unfinished_cases(folder, ".nii.gz") == ()


def test_features_that_a_power_failure_left_are_not_there(folder: Path) -> None:
    made_so = prediction_hash(NOW)
    assert is_finished(folder, "a", made_so)
    for content in ("", "[]", "{}", '{"arguments_hash": "x", "source": 3}'):
        features_file(folder, "a").write_text(content)
        assert not is_finished(folder, "a", made_so)
    (folder / "predict_args.json").write_text("")
    with pytest.raises(SamunetError, match="Leave out --continue_prediction"):
        check_arguments(folder, NOW, continuing=True)
    check_arguments(folder, NOW, continuing=False)
    assert read_json(folder / "predict_args.json") == NOW


def test_a_prediction_is_of_the_images_that_it_was_made_of(folder: Path, tmp_path: Path) -> None:
    """Copied ones are the same whatever their time; others are not, also of the same size."""
    case = Case("a", (tmp_path / "a_0000.nii.gz",))
    case.images[0].write_bytes(b"first")
    features = {"arguments_hash": prediction_hash(NOW), "source": to_data(FilesStamp.of(case))}
    write_json(features_file(folder, "a"), features)
    for content, time_ns, same in ((b"first", 1, True), (b"other", 2, False), (b"first and more", 3, False)):
        case.images[0].write_bytes(content)
        os.utime(case.images[0], ns=(time_ns, time_ns))
        assert is_finished(folder, "a", prediction_hash(NOW), case) == same
        assert is_finished(folder, "a", prediction_hash(NOW))


def test_what_an_ensemble_or_a_postprocessing_left_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "averaged"
    for name in ("a", "b"):
        write_segmentation(np.ones(GEOMETRY.shape, np.uint8), GEOMETRY, folder / f"{name}.nii.gz")
    write_json(folder / "ensemble_args.json", EnsembleArguments(members=(), cases=("a",)))
    assert unfinished_cases(folder, ".nii.gz") == ("b",)
    with pytest.raises(
        SamunetError, match=r"holds b\.nii\.gz.*ensemble_args\.json.*Run samunet_ensemble again"
    ):
        refuse_unfinished(folder, ".nii.gz")
    write_json(folder / "postprocessing_unfinished.json", {})
    assert unfinished_cases(folder, ".nii.gz") == ("a", "b")
    with pytest.raises(SamunetError, match="postprocessing that did not finish"):
        refuse_unfinished(folder, ".nii.gz")


def test_an_ensemble_leaves_them_out_and_names_them(folder: Path, tmp_path: Path) -> None:
    folder.rename(first := tmp_path / "first")
    second = tmp_path / "second"  # without records: all of it counts
    for name in ("a", "b"):
        with new_probabilities(second / f"{name}.nii.gz", RECORD) as out:
            out[:] = 1 / 3
    options = EnsembleOptions(labels=CLASSES, file_ending=".nii.gz")
    outcome = ensemble_folders([first, second], tmp_path / "out", options)
    assert (outcome.done, outcome.unfinished) == (("a",), {"b": (first,)})
    assert outcome.missing == {"c": (second,)}
    assert not replace(outcome, missing={}).complete
    assert f"b: in {first}" in outcome.text()
    assert not (tmp_path / "out" / "b.nii.gz").exists()


def test_postprocessing_and_scores_refuse_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        write_segmentation(
            np.ones(GEOMETRY.shape, np.uint8), GEOMETRY, tmp_path / "labels" / f"{name}.nii.gz"
        )
    with pytest.raises(SamunetError, match=r"predicted holds b\.nii\.gz, c\.nii\.gz, left by an earlier"):
        postprocess_folder(folder, tmp_path / "out", RULES)
    words = [str(tmp_path / "labels"), str(folder), "-np", "1", "--chill"]
    assert evaluate_folder.main(words) == 2
    assert "b.nii.gz, c.nii.gz, left by an earlier" in capsys.readouterr().err
    for name in ("b", "c"):
        (folder / f"{name}.nii.gz").unlink()
    assert evaluate_folder.main(words) == 0
    assert postprocess_folder(folder, tmp_path / "out", RULES) == (1, 0)
