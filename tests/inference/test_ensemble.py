"""Saved probabilities averaged: means, decisions, what does not belong together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import CLASSES, REGIONS, abandoned

from samunet.data.geometry import Geometry
from samunet.data.labels import LabelSet
from samunet.data.readers import read_label
from samunet.errors import NoSpaceError, SamunetError
from samunet.inference import ensemble
from samunet.inference.ensemble import EnsembleOptions, average_probabilities, ensemble_folders
from samunet.inference.finished import features_file, prediction_hash
from samunet.inference.probabilities import (
    ProbabilitiesRecord,
    Storage,
    new_probabilities,
    open_probabilities,
    probability_files,
)
from samunet.records import read_json, write_json

GEOMETRY = Geometry(shape=(5, 6, 7), spacing_mm=(3.0, 1.0, 0.5), origin_mm=(-4.0, 2.0, 9.0))
OPTIONS = EnsembleOptions(labels=CLASSES, file_ending=".nii.gz")


def save(
    path: Path,
    values: np.ndarray,
    *,
    labels: LabelSet = CLASSES,
    geometry: Geometry = GEOMETRY,
    storage: Storage = "fp16",
) -> Path:
    record = ProbabilitiesRecord(
        class_names=labels.class_names, has_regions=labels.has_regions, geometry=geometry, storage=storage
    )
    with new_probabilities(path, record) as out:
        out[:] = values
    return path


def softmaxed(seed: int, geometry: Geometry = GEOMETRY) -> np.ndarray:
    values = np.exp(np.random.default_rng(seed).normal(0, 2, (3, *geometry.shape)))
    return (values / values.sum(axis=0)).astype(np.float32)


def test_the_mean_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "SLAB_BYTES", 2 * 3 * 6 * 7 * 4)  # two planes at once
    values = [softmaxed(seed) for seed in range(3)]
    kinds: tuple[Storage, ...] = ("fp16", "uint8", "fp16")
    files = [
        save(tmp_path / f"{i}/a.nii.gz", v, storage=kind) for i, (v, kind) in enumerate(zip(values, kinds))
    ]
    target = tmp_path / "out/a.nii.gz"
    segmentation = average_probabilities(files, CLASSES, target, save_probabilities=True)
    mean = np.mean([open_probabilities(file)[0][:] for file in files], axis=0, dtype=np.float32)
    np.testing.assert_array_equal(segmentation, mean.argmax(axis=0))
    written, geometry = read_label(target)
    np.testing.assert_array_equal(written, segmentation)
    np.testing.assert_allclose(geometry.origin_mm, GEOMETRY.origin_mm)
    kept, record = open_probabilities(target)
    np.testing.assert_allclose(kept[:], mean, atol=1 / 4096)
    assert record.geometry == GEOMETRY
    average_probabilities(files, CLASSES, tmp_path / "plain/a.nii.gz")
    assert [file.name for file in (tmp_path / "plain").iterdir()] == ["a.nii.gz"]


def test_an_ending_of_more_parts(tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / f"{number}/a.seg.nrrd", softmaxed(number))
    folders = [tmp_path / "0", tmp_path / "1"]
    outcome = ensemble_folders(folders, tmp_path / "out", replace(OPTIONS, file_ending=".seg.nrrd"))
    assert outcome.done == ("a",)
    assert (tmp_path / "out/a.seg.nrrd").is_file()


def test_regions_are_painted_above_one_half(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0, 1, (2, 2, *GEOMETRY.shape)).astype(np.float16)
    files = [save(tmp_path / f"{i}/a.nii.gz", v, labels=REGIONS) for i, v in enumerate(values)]
    segmentation = average_probabilities(files, REGIONS, tmp_path / "out.nii.gz")
    whole, core = values.astype(np.float32).mean(axis=0) > 0.5
    np.testing.assert_array_equal(segmentation, np.where(core, 2, np.where(whole, 1, 0)))


def test_equal_classes_go_to_the_first(tmp_path: Path) -> None:
    one, other = np.zeros((2, 3, *GEOMETRY.shape), np.float32)
    one[1] = other[2] = 1
    files = [save(tmp_path / f"{i}/a.nii.gz", v, storage="uint8") for i, v in enumerate((one, other))]
    assert (average_probabilities(files, CLASSES, tmp_path / "a.nii.gz") == 1).all()


def test_a_picture_is_cut_along_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "SLAB_BYTES", 3 * 9 * 4)
    flat = replace(GEOMETRY, shape=(1, 8, 9))
    values = softmaxed(0, flat)
    files = [save(tmp_path / f"{i}/a.nii.gz", values, geometry=flat) for i in range(2)]
    segmentation = average_probabilities(files, CLASSES, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(segmentation, values.astype(np.float16).argmax(axis=0))


def test_what_does_not_belong_together(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}/a.nii.gz", softmaxed(i)) for i in range(2)]
    other = LabelSet(labels={"background": (0,), "liver": (1,), "lesion": (2,)})
    foreign = save(tmp_path / "x/a.nii.gz", softmaxed(3), labels=other)
    with pytest.raises(SamunetError, match="liver") as refusal:
        average_probabilities([files[0], foreign], CLASSES, tmp_path / "out.nii.gz")
    for file in (files[0], foreign):
        assert str(probability_files(file)[0]) in str(refusal.value)
    moved = replace(GEOMETRY, origin_mm=(0.0, 0.0, 0.0))
    for geometry in (moved, replace(GEOMETRY, shape=(5, 6, 8))):
        shifted = save(tmp_path / "y/a.nii.gz", softmaxed(1, geometry), geometry=geometry)
        with pytest.raises(SamunetError, match=r"y.a\.probabilities\.npy lies on another grid than .*0.a\."):
            average_probabilities([files[0], shifted], CLASSES, tmp_path / "out.nii.gz")
    with pytest.raises(SamunetError, match="--save_probabilities"):
        average_probabilities([files[0], tmp_path / "none/a.nii.gz"], CLASSES, tmp_path / "out.nii.gz")
    assert not list(tmp_path.glob("out*"))


def test_folders(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for name in ("a", "b", "c"):
        save(one / f"{name}.nii.gz", softmaxed(0))
    for name in ("b", "c"):
        save(other / f"{name}.nii.gz", softmaxed(1))
    save(other / "c.nii.gz", softmaxed(1), geometry=replace(GEOMETRY, spacing_mm=(1.0, 1.0, 1.0)))
    abandoned(tmp_path / "out")
    outcome = ensemble_folders([one, other], tmp_path / "out", OPTIONS)
    assert outcome.done == ("b",)
    assert outcome.missing == {"a": (other,)}
    assert list(outcome.failed) == ["c"]
    assert not outcome.complete
    assert f"a: none in {other}" in outcome.text()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"b.nii.gz", "ensemble_args.json"}


def test_what_was_averaged_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, out = tmp_path / "one", tmp_path / "other", tmp_path / "out"
    for folder in (one, other):
        save(folder / "a.nii.gz", softmaxed(0))
    used = {"models": [{"model": "2d_cnn__samunetPlans"}], "step_size": 0.5}
    write_json(one / "predict_args.json", used)
    write_json(features_file(one, "a"), {"arguments_hash": prediction_hash(used)})
    options = replace(OPTIONS, save_probabilities=True)
    ensemble_folders([one, other], out, options)
    written = read_json(out / "ensemble_args.json")
    members = [
        {"folder": str(one.resolve()), "made_by": used},
        {"folder": str(other.resolve()), "made_by": None},
    ]
    assert written == {"version": 1, "members": members, "cases": ["a"]}
    ensemble_folders([out, other], tmp_path / "again", OPTIONS)
    assert read_json(tmp_path / "again/ensemble_args.json")["members"][0]["made_by"] == written

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ensemble, "average_probabilities", stopped)
    with pytest.raises(KeyboardInterrupt):
        ensemble_folders([other, one], out, options)
    assert read_json(out / "ensemble_args.json")["cases"] == []  # it may speak of no case of the earlier ones


def test_a_full_disk_ends_the_averaging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        for name in "abcdef":
            save(folder / f"{name}.nii.gz", softmaxed(0))
    asked = []

    def full(segmentations: list[Path], *_: object, **__: object) -> None:
        asked.append(segmentations)
        raise NoSpaceError("No space is left")

    monkeypatch.setattr(ensemble, "average_probabilities", full)
    with pytest.raises(NoSpaceError):
        ensemble_folders([one, other], tmp_path / "out", replace(OPTIONS, workers=1))
    assert len(asked) < 6


def test_a_folder_of_predictions_is_not_overwritten_by_their_mean(tmp_path: Path) -> None:
    one, other, out = tmp_path / "one", tmp_path / "other", tmp_path / "out"
    for folder in (one, other):
        save(folder / "a.nii.gz", softmaxed(0))
    write_json(out / "predict_args.json", {})
    with pytest.raises(SamunetError, match="holds results of samunet_predict"):
        ensemble_folders([one, other], out, OPTIONS)
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / "a.nii.gz").write_bytes(b"labels")
    with pytest.raises(SamunetError, match=r"holds a\.nii\.gz, which this command did not make"):
        ensemble_folders([one, other], manual, OPTIONS)
    assert (manual / "a.nii.gz").read_bytes() == b"labels"
    write_json(one / "predict_args.json", {})
    (one / "predict_args.json").write_text("{")
    with pytest.raises(SamunetError, match="not valid JSON"):
        ensemble_folders([one, other], tmp_path / "new", OPTIONS)
    assert not (tmp_path / "new").exists()


def test_folders_that_cannot_be_averaged(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    save(one / "a.nii.gz", softmaxed(0))
    save(other / "b.nii.gz", softmaxed(0))
    for folders, word in (
        ([one], "two folders"),
        ([one, tmp_path / "none"], "no folder"),
        ([one, one], "twice"),
        ([one, other], "No case"),
    ):
        with pytest.raises(SamunetError, match=word):
            ensemble_folders(folders, tmp_path / "out", OPTIONS)
    with pytest.raises(SamunetError, match="of its own"):
        ensemble_folders([one, other], one, OPTIONS)
