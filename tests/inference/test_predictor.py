"""Predictor: folds, arrays, files, and what it refuses."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from model_folders import SPACING, load, write_fold, write_images
from PIL import Image
from tiny_runs import CHANNELS, CLASSES, REGIONS

from samunet.data.cases import Case
from samunet.data.geometry import FLAT_SPACING_MM
from samunet.errors import NoSpaceError, SamunetError
from samunet.inference.arrays import as_image
from samunet.inference.ensemble_predictor import EnsemblePredictor
from samunet.inference.files import FileOptions, FilesOutcome
from samunet.inference.finished import prediction_hash, unfinished_cases
from samunet.inference.folder import single_case
from samunet.inference.folds import find_folds
from samunet.inference.predictor import Predictor
from samunet.records import read_json, write_json
from samunet.trainers.checkpoint import BaseWeights, load_checkpoint, save_checkpoint
from samunet.workspace import FINAL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "2d_unet__tinyPlans"
    for fold in (0, 1):
        write_fold(folder, fold)
    return folder


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, (CHANNELS, 6, 30, 26)).astype(np.float32)


def test_all_trained_folds_are_taken(model: Path) -> None:
    write_fold(model, "all")
    assert find_folds(model) == (0, 1, "all")
    predictor = load(model)
    assert predictor.folds == (0, 1, "all")
    assert "0, 1, all" in predictor.describe()
    assert predictor.num_mirrorings == 4
    assert load(model, folds=(1,), mirroring=False).num_mirrorings == 1


def test_copies_of_folds_are_not_averaged(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("fold_0_old", "fold_01", "fold_0 (copy)"):
        shutil.copytree(model / "fold_0", model / name)
    assert find_folds(model) == (0, 1)
    assert "fold_0 (copy), fold_01, fold_0_old is no fold_NUMBER" in caplog.text


def test_folds_average_their_logits(model: Path, volume: np.ndarray) -> None:
    alone = [load(model, folds=(fold,)).predict_preprocessed(volume) for fold in (0, 1)]
    both = load(model).predict_preprocessed(volume)
    assert both.shape == (CLASSES.num_outputs, 6, 30, 26)
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2, rtol=1e-4, atol=1e-5)


def test_a_volume(model: Path, volume: np.ndarray) -> None:
    predictor = load(model)
    prediction = predictor.predict(volume, spacing_mm=SPACING, probabilities=True)
    assert prediction.segmentation.shape == volume.shape[1:]
    assert set(np.unique(prediction.segmentation)) <= set(CLASSES.values)
    assert prediction.probabilities is not None
    np.testing.assert_allclose(prediction.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(prediction.probabilities.argmax(0), prediction.segmentation)
    assert prediction.class_names == CLASSES.class_names
    again = predictor.predict(volume.astype(np.float64), spacing_mm=SPACING)
    np.testing.assert_array_equal(again.segmentation, prediction.segmentation)
    assert again.probabilities is None


def test_a_volume_of_other_spacing_comes_back_on_its_own_grid(model: Path, volume: np.ndarray) -> None:
    assert load(model).predict(volume, spacing_mm=(4, 1.7, 0.6)).segmentation.shape == volume.shape[1:]


def test_a_picture(model: Path, volume: np.ndarray) -> None:
    prediction = load(model).predict(volume[:, 0], spacing_mm=(1, 1), probabilities=True)
    assert prediction.segmentation.shape == volume.shape[2:]
    assert prediction.probabilities is not None
    assert prediction.probabilities.shape == (CLASSES.num_outputs, *volume.shape[2:])


@pytest.mark.parametrize("spacing", [(0.5, 0.7), (3.0, 0.5, 0.7)])
def test_spacing_may_be_an_array(spacing: tuple[float, ...]) -> None:
    plane = np.zeros((5, 6), np.float32)
    _, geometry = as_image(plane, np.array(spacing), ("T1",))
    assert geometry == as_image(plane, spacing, ("T1",))[1]
    assert geometry.spacing_mm == (FLAT_SPACING_MM, 0.5, 0.7)


def test_regions(tmp_path: Path, volume: np.ndarray) -> None:
    write_fold(tmp_path / "model", 0, labels=REGIONS)
    prediction = load(tmp_path / "model").predict(volume, spacing_mm=SPACING, probabilities=True)
    assert prediction.class_names == ("whole", "core")
    assert set(np.unique(prediction.segmentation)) <= {0, 1, 2}


def test_a_3d_network(tmp_path: Path, volume: np.ndarray) -> None:
    write_fold(tmp_path / "model", 0, method="3d_unet")
    predictor = load(tmp_path / "model")
    assert predictor.num_mirrorings == 8
    assert predictor.predict(volume, spacing_mm=SPACING).segmentation.shape == volume.shape[1:]
    logits, passes = predictor.predict_observed(volume)
    assert torch.equal(logits, predictor.predict_preprocessed(volume))
    assert passes.figures().keys() == CLASSES.foreground.keys()


def test_slices_with_context(tmp_path: Path, volume: np.ndarray) -> None:
    write_fold(tmp_path / "model", 0, method="2d_linear", settings={"slice_context": 1})
    predictor = load(tmp_path / "model", mirroring=False)
    assert predictor.predict(volume, spacing_mm=SPACING).segmentation.shape == volume.shape[1:]


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((6, 30, 26), SPACING),  # one channel where two are needed
        ((3, 6, 30, 26), SPACING),
        ((CHANNELS, 6, 30, 26), None),
        ((CHANNELS, 6, 30, 26), (1.0, 1.0)),
        ((CHANNELS, 6, 30, 26), (0.0, 1.0, 1.0)),
        ((CHANNELS, 6, 30, 26), (3.0, np.nan, 1.0)),
        ((CHANNELS, 6, 30, 26), (np.nan, 1.0, 1.0)),
        ((CHANNELS, 6, 30, 26), (3.0, np.inf, 1.0)),
        ((CHANNELS, 30, 26), (1.0, np.nan)),
        ((30,), SPACING),
    ],
)
def test_arrays_that_do_not_fit(
    model: Path, shape: tuple[int, ...], spacing: tuple[float, ...] | None
) -> None:
    with pytest.raises(SamunetError):
        load(model).predict(np.zeros(shape), spacing_mm=spacing)


@pytest.mark.parametrize("settings", [{"step_size": s} for s in (1.5, 0, -1, np.nan)] + [{"folds": ()}])
def test_settings_out_of_range_are_refused(model: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(SamunetError, match=next(iter(settings))):
        load(model, **settings)


def test_nan_is_refused(model: Path, volume: np.ndarray) -> None:
    volume[0, 2, 3, 4] = np.nan
    with pytest.raises(SamunetError, match="NaN"):
        load(model).predict(volume, spacing_mm=SPACING)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_has_come_to_nothing_is_a_fault(model: Path, tmp_path: Path, value: float) -> None:
    write_images(tmp_path / "in", ("a",))
    predictor, out = load(model, folds=(0,), mirroring=False), tmp_path / "out"
    with torch.no_grad():
        for parameter in predictor.networks[0].parameters():
            parameter.fill_(value)
    outcome = predictor.predict_files(tmp_path / "in", out, FileOptions(save_probabilities=True))
    assert not outcome.done
    assert f"{model} gives NaN or infinity" in outcome.failed["a"]
    assert "train it again" in outcome.failed["a"]
    assert not [file.name for file in out.iterdir() if file.name.startswith("a.")]


def test_folds_of_one_frozen_encoder_share_it(tmp_path: Path, volume: np.ndarray) -> None:
    model = tmp_path / "model"
    for fold in (0, 1):
        write_fold(model, fold, method="2d_cnn")
    separate = load(model)
    assert not separate.shared_encoder
    members = {}
    base = BaseWeights(variant="vit_micro", file="x.pth", sha256="0" * 64, prefix="encoder.")
    for fold, network in zip((0, 1), separate.networks):
        network.encoder.load_state_dict(separate.networks[0].encoder.state_dict())
        stored = load_checkpoint(model / f"fold_{fold}/checkpoint_final.pth")
        members[fold] = (replace(stored, base_weights=base), network)
    expected = separate.predict_preprocessed(volume)
    shared = Predictor(model, members, separate.settings, {0: "", 1: ""})  # type: ignore[arg-type]
    assert shared.shared_encoder
    assert shared.networks[0].encoder is shared.networks[1].encoder
    torch.testing.assert_close(shared.predict_preprocessed(volume), expected, rtol=1e-4, atol=1e-5)


def test_folds_of_different_configurations_are_not_averaged(model: Path) -> None:
    write_fold(model, 2, batch_size=7)
    with pytest.raises(SamunetError, match="fold 2"):
        load(model)
    assert load(model, folds=(2,)).folds == (2,)


def test_what_is_not_trained_is_said(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SamunetError, match="Trained folds: 0, 1"):
        load(model, folds=(4,))
    with pytest.raises(SamunetError, match="no model folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(SamunetError, match=r"checkpoint_final\.pth"):
        load(model, checkpoint="checkpoint_best.pth")


@pytest.mark.parametrize(
    ("method", "planned", "tiles"),
    [("2d_cnn", 8, 4), ("2d_unet", 7, 7), ("2d_unet", 40, 16), ("3d_unet", 2, 1)],
)
def test_a_gpu_gets_as_many_tiles_as_were_planned_for(
    tmp_path: Path, method: str, planned: int, tiles: int
) -> None:
    write_fold(tmp_path / "model", 0, method=method, batch_size=planned)
    predictor = load(tmp_path / "model")
    predictor.settings = replace(predictor.settings, device=torch.device("cuda"))
    assert predictor._tiles_at_once() == tiles


def test_files_equal_arrays(model: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", ("a", "b", "c"))
    predictor = load(model)
    outcome = predictor.predict_files(tmp_path / "in", tmp_path / "out")
    assert outcome.done == ("a", "b", "c")
    assert not outcome.failed
    read = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"in/b_{c:04d}.nii.gz")))
        for c in range(CHANNELS)
    ]
    expected = predictor.predict(np.stack(read), spacing_mm=SPACING).segmentation
    written = sitk.ReadImage(str(tmp_path / "out/b.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), expected)
    assert json.loads((tmp_path / "out/predict_args.json").read_text())["models"][0]["folds"] == [0, 1]
    assert (tmp_path / "out/plan.json").exists()
    assert {file.name for file in (tmp_path / "out/qc_features").iterdir()} == {"a.json", "b.json", "c.json"}


def test_folds_are_mirrored_along_axes_that_all_of_them_mirrored(model: Path) -> None:
    file = model / "fold_1" / FINAL
    save_checkpoint(file, replace(load_checkpoint(file), mirror_axes=(1,)))
    assert load(model).mirror_axes == (1,)
    assert load(model, folds=(0,)).mirror_axes == (0, 1)


def test_parts_and_existing_cases(model: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", ("a", "b", "c"))
    predictor, out = load(model, mirroring=False), tmp_path / "out"
    first = predictor.predict_files(tmp_path / "in", out, FileOptions(num_parts=2, part=0))
    assert first.done == ("a", "c")
    rest = predictor.predict_files(tmp_path / "in", out, FileOptions(skip_existing=True))
    assert rest.done == ("b",)
    assert rest.skipped == ("a", "c")
    with pytest.raises(SamunetError, match="mirroring was False, is True"):
        load(model).predict_files(tmp_path / "in", out, FileOptions(skip_existing=True))


def test_a_case_without_its_probabilities_is_not_finished(model: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", ("a",))
    predictor, out = load(model, mirroring=False), tmp_path / "out"
    predictor.predict_files(tmp_path / "in", out)
    wanted = FileOptions(skip_existing=True, save_probabilities=True)
    assert predictor.predict_files(tmp_path / "in", out, wanted).done == ("a",)
    assert predictor.predict_files(tmp_path / "in", out, wanted).skipped == ("a",)


def test_continuing_a_run_that_died_keeps_no_segmentation_of_another_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in", ("a", "b", "c"))
    first, second = load(model, mirroring=False), load(model, folds=(1,), mirroring=False)
    out = tmp_path / "out"
    first.predict_files(tmp_path / "in", out)
    earlier = (out / "c.nii.gz").read_bytes()
    write_json(out / "qc.json", {"arguments_hash": prediction_hash(read_json(out / "predict_args.json"))})
    first.predict_files(tmp_path / "in" / "a_0000.nii.gz", out)
    assert (out / "qc.json").exists()  # of the same prediction, perhaps by another part of it
    predict, predicted = second.predict_observed, iter((True, False))

    def dying(*arguments: Any) -> Any:
        assert next(predicted), "the machine is gone"
        return predict(*arguments)

    monkeypatch.setattr(second, "predict_observed", dying)
    with pytest.raises(AssertionError, match="gone"):
        second.predict_files(tmp_path / "in", out)
    assert (out / "c.nii.gz").read_bytes() == earlier  # until its successor is there
    assert unfinished_cases(out, ".nii.gz") == ("b", "c")
    assert not (out / "qc.json").exists()  # it judged the first model's
    monkeypatch.undo()
    outcome = second.predict_files(tmp_path / "in", out, FileOptions(skip_existing=True))
    assert (outcome.skipped, outcome.done) == (("a",), ("b", "c"))
    second.predict_files(tmp_path / "in", tmp_path / "whole")
    for name in ("a", "b", "c"):
        assert (out / f"{name}.nii.gz").read_bytes() == (tmp_path / f"whole/{name}.nii.gz").read_bytes()


def test_predictions_of_networks_that_were_trained_again_are_not_continued(
    model: Path, tmp_path: Path
) -> None:
    write_images(tmp_path / "in", ("a", "b"))
    load(model, mirroring=False).predict_files(tmp_path / "in", tmp_path / "out")
    write_fold(model, 1, network_seed=5)
    again = load(model, mirroring=False)
    with pytest.raises(SamunetError, match=r"trained again since: models\[0\].trained.1 was"):
        again.predict_files(tmp_path / "in", tmp_path / "out", FileOptions(skip_existing=True))
    write_fold(model, 1, network_seed=6)  # while a predictor is in use
    assert load(model).trained["1"] != again.trained["1"]
    write_fold(model, 1, network_seed=5)
    # One case predicted anew does not make the others those of the new networks.
    again.predict_files(tmp_path / "in" / "a_0000.nii.gz", tmp_path / "out")
    rest = again.predict_files(tmp_path / "in", tmp_path / "out", FileOptions(skip_existing=True))
    assert (rest.skipped, rest.done) == (("a",), ("b",))


def test_a_fault_stays_with_its_case(model: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", ("a", "b", "c"))
    broken = tmp_path / "in/a_0001.nii.gz"
    broken.write_bytes(broken.read_bytes()[:400])
    outcome = load(model, mirroring=False).predict_files(tmp_path / "in", tmp_path / "out")
    assert outcome.done == ("b", "c")
    assert list(outcome.failed) == ["a"]
    assert "a_0001.nii.gz" in outcome.text()
    assert not (tmp_path / "out/a.nii.gz").exists()


STAGES = {
    "read": "samunet.inference.predictor.read_image",
    "predict": "samunet.inference.forward.predict_logits",
    "write": "samunet.inference.predictor.export_case",
}


@pytest.mark.parametrize("stage", STAGES)
def test_an_unexpected_death_ends_the_run_with_its_cause(
    stage: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path / "in", ("a", "b", "c", "d"))

    def die(*arguments: object, **more: object) -> None:
        raise ZeroDivisionError("a defect of ours")

    monkeypatch.setattr(STAGES[stage], die)
    died: list[BaseException] = []

    def run() -> None:
        try:
            load(model, mirroring=False).predict_files(tmp_path / "in", tmp_path / "out")
        except BaseException as error:
            died.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive(), "it hangs"
    assert [str(error) for error in died] == ["a defect of ours"]
    assert isinstance(died[0], ZeroDivisionError)
    assert "Case a ended the run" in caplog.text
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_other_errors_end_the_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "in", ("a", "b"))

    def no_space(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("samunet.inference.predictor.export_case", no_space)
    with pytest.raises(OSError, match="No space"):
        load(model, mirroring=False).predict_files(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("stage", ["forward.predict_logits", "predictor.export_case"])
def test_a_full_disk_ends_the_run(
    stage: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each other case would be computed, and fail too."""
    write_images(tmp_path / "in", ("a", "b", "c", "d"))
    asked = []

    def full(*arguments: object, **more: object) -> None:
        asked.append(arguments)
        raise NoSpaceError("No space is left")

    monkeypatch.setattr(f"samunet.inference.{stage}", full)
    with pytest.raises(NoSpaceError):
        load(model, mirroring=False).predict_files(tmp_path / "in", tmp_path / "out")
    assert len(asked) <= 2


def test_one_file_is_a_case_with_all_its_channels(model: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", ("a", "b"))
    predictor = load(model, mirroring=False)
    outcome = predictor.predict_files(tmp_path / "in/a_0001.nii.gz", tmp_path / "out")
    assert outcome.done == ("a",)
    with pytest.raises(SamunetError, match=r"\.nii\.gz"):
        predictor.predict_files(Path(__file__), tmp_path / "out")


def test_a_file_is_named_as_in_its_folder(tmp_path: Path) -> None:
    """Four digits at the end may be a year, and brackets are no pattern."""
    for name in ("patient_2019", "patient_2020", "scan[1]_0000", "scan[1]_0001"):
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / f"{name}.png")
    for name in ("patient_2019", "patient_2020"):
        file = tmp_path / f"{name}.png"
        assert single_case(file, ".png", 1) == Case(name, (file,))
        with pytest.raises(SamunetError, match="declares 2"):
            single_case(file, ".png", 2)
    both = tuple(tmp_path / f"scan[1]_000{channel}.png" for channel in range(2))
    assert single_case(both[1], ".png", 2) == Case("scan[1]", both)
    third = both[1].rename(tmp_path / "scan[1]_0002.png")
    for file in (both[0], third):
        with pytest.raises(SamunetError, match=r"scan\[1\] lacks the file\(s\) of channel 1"):
            single_case(file, ".png", 2)  # the third channel is not the second
    third.rename(both[1])
    both[0].unlink()
    both[0].symlink_to(tmp_path / "gone.png")
    with pytest.raises(SamunetError, match=r"scan.*is a link to .*gone\.png, which is not there"):
        single_case(both[1], ".png", 2)


@pytest.mark.parametrize(("seconds", "shown"), [(0.123, "0.12 s"), (98.0, "98 s"), (150.0, "150 s")])
def test_long_times_are_told_in_seconds(tmp_path: Path, seconds: float, shown: str) -> None:
    outcome = FilesOutcome(output=tmp_path, done=("a", "b"), skipped=(), seconds=2 * seconds)
    assert f"{shown} a case" in outcome.text()


def test_images_are_not_overwritten(model: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", ("a",))
    for source in (tmp_path / "in", tmp_path / "in/a_0000.nii.gz"):
        with pytest.raises(SamunetError, match="output folder of their own"):
            load(model).predict_files(source, tmp_path / "in")


def test_cases_may_be_given_themselves(model: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", ("a",))
    files = tuple(tmp_path / f"in/a_{c:04d}.nii.gz" for c in range(CHANNELS))
    outcome = load(model, mirroring=False).predict_files([Case("mine", files)], tmp_path / "out")
    assert outcome.done == ("mine",)
    assert (tmp_path / "out/mine.nii.gz").exists()


def test_prediction_settings_of_a_trained_model(tmp_path: Path, volume: np.ndarray) -> None:
    model = tmp_path / "model"
    for fold in (0, 1):
        write_fold(model, fold, method="2d_desam", settings={"grid_side": 2})
    usual, single = load(model, mirroring=False), load(model, mirroring=False, settings={"grid_side": 1})
    assert "grid_side=1" in single.describe()
    assert [network.head.settings.grid_side for network in single.networks] == [1, 1]
    assert not torch.equal(usual.predict_preprocessed(volume), single.predict_preprocessed(volume))
    again = load(model, mirroring=False, settings={"grid_side": 2, "top_prompts": 1, "mode": "grid_points"})
    assert torch.equal(usual.predict_preprocessed(volume), again.predict_preprocessed(volume))
    assert again.describe() == usual.describe()  # what is repeated changes nothing
    for settings, words in (
        ({"mode": "whole_box"}, "What may be set at prediction: grid_side"),
        ({"grid_side": 0}, "at least 1"),
        ({"grid_sides": 3}, "--set grid_sides"),
    ):
        with pytest.raises(SamunetError, match=words):
            load(model, settings=settings)


def test_settings_are_written_beside_the_predictions(tmp_path: Path) -> None:
    model, images, out = tmp_path / "model", tmp_path / "images", tmp_path / "out"
    write_fold(model, 0, method="2d_desam", settings={"grid_side": 2})
    write_images(images, ("a",))
    load(model, mirroring=False, settings={"top_prompts": 2}).predict_files(images, out)
    assert json.loads((out / "predict_args.json").read_text())["models"][0]["settings"] == {"top_prompts": 2}
    with pytest.raises(SamunetError, match=r"models\[0\]\.settings.top_prompts was 2, is None"):
        load(model, mirroring=False).predict_files(images, out, FileOptions(skip_existing=True))


def test_methods_without_prediction_settings_refuse(model: Path) -> None:
    with pytest.raises(SamunetError, match="It has no setting that can be"):
        load(model, settings={"learning_rate": 1.0})


def test_what_python_users_give_by_mistake_is_told(tmp_path: Path) -> None:
    """Values that the command line takes, or a word where a list is meant."""
    write_fold(tmp_path / "model", 0)
    predictor = Predictor.load(tmp_path / "model", 0, device="cpu")
    assert predictor.folds == (0,)
    with pytest.raises(SamunetError, match=r"Fold all is not trained"):
        Predictor.load(tmp_path / "model", "all", device="cpu")
    with pytest.raises(SamunetError, match=r"give a list, not .*model alone"):
        EnsemblePredictor.load(tmp_path / "model")
    with pytest.raises(SamunetError, match="Give a folder of images, one image file, or cases"):
        predictor.predict_files(["a_0000.nii.gz"], tmp_path / "out")
    with pytest.raises(SamunetError, match="give a value for each axis"):
        predictor.predict(np.zeros((2, 4, 8, 8), np.float32), spacing_mm=1.0)
