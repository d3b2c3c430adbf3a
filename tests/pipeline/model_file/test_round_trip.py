"""Export, install, predict: what comes out is what went in, with and without base weights or workspace."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_models import DATASET, PATIENT, segmentations, write_images, write_model
from tiny_runs import CLASSES, REGIONS, write_weights

from samunet.cli import predict
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.evaluation.scores import METRICS, CaseScores, Evaluation
from samunet.inference.predictor import Predictor
from samunet.pipeline.info import collect
from samunet.pipeline.model_file import lineage
from samunet.pipeline.model_file.export import ExportOutcome, ExportRequest, export_model
from samunet.pipeline.model_file.install import InstallOutcome, InstallRequest, install_model
from samunet.pipeline.models import ModelRequest, find_model
from samunet.pipeline.out_of_fold import fold_hash
from samunet.pipeline.qc.model import QCModel
from samunet.records import read_json, write_json
from samunet.trainers.checkpoint import load_checkpoint
from samunet.trainers.portable import load_trained, read_tensors
from samunet.workspace import Workspace

VOLUME = np.random.default_rng(0).normal(100, 20, (2, 4, 22, 18)).astype(np.float32)


@pytest.fixture(autouse=True)
def nothing_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own weights folder is empty, and the current folder has no workspace."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def export(folder: Path, **changes: object) -> ExportOutcome:
    output = folder.parents[2] / "shared.zip"
    return export_model(ExportRequest(model_folder=folder, output=output, overwrite=True, **changes))  # type: ignore[arg-type]


def install(file: Path, folder: Path | None, workspace: Path, **changes: object) -> InstallOutcome:
    return install_model(
        InstallRequest(file=file, folder=folder, workspace=Workspace.find(workspace), **changes)  # type: ignore[arg-type]
    )


def logits(folder: Path, weights: Path | None = None) -> torch.Tensor:
    return Predictor.load(folder, device="cpu", weights_folder=weights).predict_preprocessed(VOLUME)


@pytest.mark.parametrize(("method", "folds"), [("2d_unet", (0, 1)), ("2d_cnn", ("all",)), ("3d_unet", (0,))])
def test_logits_are_bit_identical(tmp_path: Path, method: str, folds: tuple[int | str, ...]) -> None:
    trained = write_model(tmp_path / "results", method, folds)
    installed = install(export(trained).file, tmp_path / "installed", tmp_path).folder
    for fold in folds:
        expected = load_checkpoint(trained / f"fold_{fold}/checkpoint_final.pth")
        found = load_trained(installed / f"fold_{fold}/weights.safetensors")
        assert found.network.keys() == expected.network.keys()
        assert all(torch.equal(found.network[key], value) for key, value in expected.network.items())
        assert found.mirror_axes == expected.mirror_axes
    assert torch.equal(logits(installed), logits(trained))


def test_the_command_predicts_the_same_without_any_workspace(tmp_path: Path) -> None:
    trained = write_model(tmp_path / "results", labels=REGIONS)
    images = write_images(tmp_path / "images")
    install(export(trained).file, tmp_path / "model", tmp_path)
    for name, model in (("one", trained), ("other", tmp_path / "model")):
        words = ["-i", str(images), "-o", str(tmp_path / name), "-m", str(model), "-device", "cpu"]
        assert predict.main(words) == 0
    expected, found = segmentations(tmp_path / "one"), segmentations(tmp_path / "other")
    assert list(expected) == list(found) == ["a.nii.gz", "b.nii.gz"]
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
        assert len(np.unique(expected[name])) > 1
    assert not any(Path.cwd().iterdir())


def test_the_workspace_finds_it_by_name(tmp_path: Path) -> None:
    trained = write_model(tmp_path / "results")
    outcome = install(export(trained).file, None, tmp_path / "workspace")
    assert outcome.folder == tmp_path / "workspace/results" / DATASET / "2d_unet__tinyPlans"
    workspace = Workspace.find(tmp_path / "workspace")
    request = ModelRequest(dataset=workspace.dataset_name(900), plans="tinyPlans")
    assert find_model(workspace, request) == outcome.folder
    assert collect(workspace)["datasets"][DATASET]["trained_folds"] == {"2d_unet__tinyPlans": ["0", "1"]}
    assert torch.equal(logits(outcome.folder), logits(trained))


def test_a_number_with_two_meanings_is_said(tmp_path: Path) -> None:
    trained = write_model(tmp_path / "results")
    (tmp_path / "workspace/raw/Dataset900_Other").mkdir(parents=True)
    assert "Dataset900_Other" in install(export(trained).file, None, tmp_path / "workspace").text()


def test_nothing_that_is_there_is_replaced_unasked(tmp_path: Path) -> None:
    trained = write_model(tmp_path / "results")
    file = export(trained).file
    with pytest.raises(SamunetError, match="trained here"):
        install(file, trained, tmp_path)
    assert (trained / "fold_0/checkpoint_final.pth").exists()
    install(file, trained, tmp_path, overwrite=True)
    assert not (trained / "fold_0/checkpoint_final.pth").exists()
    with pytest.raises(SamunetError, match="already holds an installed model"):
        install(file, trained, tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").touch()
    with pytest.raises(SamunetError, match="no model folder"):
        install(file, tmp_path / "home", tmp_path, overwrite=True)
    assert (tmp_path / "home/thesis.tex").exists()


@pytest.fixture
def on_a_base(tmp_path: Path) -> tuple[Path, Path]:
    """A model whose checkpoints leave out a frozen encoder, and the encoder's file."""
    base = write_weights(tmp_path / "weights")
    return write_model(tmp_path / "results", "2d_cnn", base=base), base


def test_a_base_of_ones_own_is_stored_once(on_a_base: tuple[Path, Path], tmp_path: Path) -> None:
    trained, base = on_a_base
    outcome = export(trained, weights_folder=base.parent)
    assert [origin.place for origin in outcome.record.weights] == ["stored"]
    expected = logits(trained, base.parent)
    base.unlink()
    installed = install(outcome.file, tmp_path / "installed", tmp_path).folder
    assert torch.equal(logits(installed), expected)
    assert Predictor.load(installed, device="cpu").shared_encoder
    of_fold = read_tensors(installed / "fold_0/weights.safetensors")
    assert not any(key.startswith("encoder.") for key in of_fold)
    assert any(key.startswith("encoder.") for key in read_tensors(installed / "shared.safetensors"))


def test_official_bases_are_left_out_and_found_by_their_hash(
    on_a_base: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "is_official", lambda variant, sha256: True)
    trained, base = on_a_base
    outcome = export(trained, weights_folder=base.parent)
    (origin,) = outcome.record.weights
    assert (origin.place, origin.kind) == ("left out", "official")
    expected = logits(trained, base.parent)
    moved = tmp_path / "elsewhere/of_another_name.pth"
    moved.parent.mkdir()
    base.rename(moved)
    installed = install(outcome.file, tmp_path / "installed", tmp_path)
    assert origin.sha256 in installed.text()
    with pytest.raises(SamunetError, match=f"{base.name}.*{origin.sha256}.*-w"):
        logits(installed.folder)
    assert torch.equal(logits(installed.folder, moved), expected)
    assert torch.equal(logits(installed.folder, moved.parent), expected)
    at_home = tmp_path / "cache/samunet/weights"
    at_home.mkdir(parents=True)
    moved.rename(at_home / "x.pth")
    assert torch.equal(logits(installed.folder), expected)
    complete = export(trained, weights_folder=at_home, include_base=True)
    (at_home / "x.pth").unlink()
    assert torch.equal(logits(install(complete.file, tmp_path / "two", tmp_path).folder), expected)


def test_a_base_that_is_to_be_stored_must_be_there(on_a_base: tuple[Path, Path], tmp_path: Path) -> None:
    trained, base = on_a_base
    base.unlink()
    with pytest.raises(SamunetError, match=base.name):
        export(trained, weights_folder=base.parent)
    assert not (tmp_path / "shared.zip").exists()


def test_a_teachers_tag_stays_behind() -> None:
    taught = {"teacher": "2d_cnn__samunetPlans__single_source-UCL", "teacher_folder": "/x", "weight": 0.5}
    kept = lineage.shared_overrides({"distillation": taught})["distillation"]
    assert kept == {"teacher": "2d_cnn__samunetPlans", "weight": 0.5}


def test_nobodys_name_leaves_the_house(tmp_path: Path) -> None:
    outcome = export(write_model(tmp_path / "results"))
    with zipfile.ZipFile(outcome.file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert not [name for name, content in contents.items() if PATIENT.encode() in content]
    assert not [name for name in contents if name.endswith((".pth", ".pkl"))]
    assert json.loads(contents["plan.json"])["overrides"] == {"weights": "own.pth"}
    told = json.loads(contents["fold_0/fold.json"])["overrides"]
    assert told == {"weights": "own.pth", "splits": "single_source"}
    envelope = json.loads(contents["fingerprint_envelope.json"])
    assert envelope["cases"] == 3
    assert envelope["spacing_mm"][0] == {"min": 3.0, "median": 4.0, "max": 5.0, "mean": 4.0, "std": 1.0}
    assert envelope["classes"]["lesion"]["cases"] == 2
    assert envelope["classes"]["lesion"]["volume"]["max"] == pytest.approx(20 * 5.0 / 1000)
    card = contents["MODEL_CARD.md"].decode()
    assert "organ, lesion" in card
    assert "not stated" in card
    assert "There are no scores: fold 0: it was not validated" in card


def calibrated(model: Path) -> None:
    """A validation of fold 0, and a calibration made from it."""
    scores = {name: dict.fromkeys(METRICS, 0.5) for name in CLASSES.foreground}
    entry = CaseScores(name="a", reference_file="a", prediction_file="a", group=None, metrics=scores)
    Evaluation(CLASSES, 1.0, (entry,)).save(model / "fold_0/validation/summary.json")
    record = QCModel(
        coverage=0.9,
        patients_are="cases",
        folds=("0",),
        num_cases=1,
        num_patients=1,
        num_seen=0,
        settings={},
        made_from={"0": fold_hash(model, 0)},
        classes={},
    )
    write_json(model / "qc_model.json", record)


def test_only_the_calibration_of_what_is_there_goes_along(tmp_path: Path) -> None:
    trained = write_model(tmp_path / "results", folds=(0,))
    calibrated(trained)
    outcome = export(trained)
    assert "qc_model.json" in outcome.record.files
    assert "qc_model.json" not in outcome.text()
    installed = install(outcome.file, tmp_path / "model", tmp_path).folder
    assert read_json(installed / "qc_model.json") == read_json(trained / "qc_model.json")
    (trained / "fold_0/validation/qc_features").mkdir()
    (trained / "fold_0/validation/qc_features/a.json").write_text("{}")
    changed = export(trained)
    assert "qc_model.json" not in changed.record.files
    assert "fold 0 changed, or is not validated" in changed.text()
    shutil.rmtree(trained / "fold_0/validation")  # trained anew with --overwrite
    assert "fold 0 changed, or is not validated" in export(trained).text()
    (trained / "qc_model.json").write_text("{}")
    assert "qc_model.json is left out" in export(trained).text()


def test_a_tag_that_names_a_site_is_pointed_out(tmp_path: Path) -> None:
    trained = write_model(tmp_path / "results", folds=(0,))
    assert "names a site" not in export(trained).text()
    tagged = trained.rename(trained.with_name(f"{trained.name}__single_source-{PATIENT}"))
    assert f"single_source-{PATIENT} names a site" in export(tagged).text()


def test_labels_come_from_the_plan_where_dataset_json_is_missing(tmp_path: Path) -> None:
    trained = write_model(tmp_path / "results", labels=REGIONS)
    (trained / "dataset.json").unlink()
    installed = install(export(trained).file, tmp_path / "model", tmp_path).folder
    content = json.loads((installed / "dataset.json").read_text())
    assert LabelSet.from_dataset_json(content, "dataset.json") == REGIONS
    assert content["file_ending"] == ".nii.gz"


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    trained = write_model(tmp_path / "results")
    file = export(trained).file
    with pytest.raises(SamunetError, match="exists"):
        export_model(ExportRequest(model_folder=trained, output=file))
    with pytest.raises(SamunetError, match=r"\.zip"):
        export_model(ExportRequest(model_folder=trained, output=tmp_path / "x.tar"))
    with pytest.raises(SamunetError, match="Trained folds: 0, 1"):
        export(trained, folds=(4,))
    installed = install(file, tmp_path / "2d_unet__tinyPlans", tmp_path).folder
    with pytest.raises(SamunetError, match="Pass that file on"):
        export_model(ExportRequest(model_folder=installed, output=tmp_path / "again.zip"))


def test_a_changed_model_is_not_used(tmp_path: Path) -> None:
    installed = install(export(write_model(tmp_path / "results")).file, tmp_path / "model", tmp_path).folder
    with pytest.raises(SamunetError, match=r"made from checkpoint_final\.pth"):
        Predictor.load(installed, checkpoint="checkpoint_best.pth", device="cpu")
    plan = installed / "plan.json"
    plan.write_text(plan.read_text().replace('"num_training": 4', '"num_training": 5'))
    with pytest.raises(SamunetError, match=r"plan\.json.*Install the model again"):
        logits(installed)
