"""Several configurations as one predictor: means, shared encoders, disk instead of memory, refusals."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from model_folders import SPACING, load, write_fold, write_images
from tiny_runs import CHANNELS, CLASSES, REGIONS, make_configuration, make_plan

from samunet.data.labels import LabelSet
from samunet.data.readers import read_label
from samunet.errors import SamunetError
from samunet.inference import ensemble_predictor, folder
from samunet.inference.ensemble import average_probabilities
from samunet.inference.ensemble_predictor import EnsemblePredictor, MemberLogits
from samunet.inference.files import FileOptions
from samunet.inference.logit_storage import LogitsOnDisk, LogitStorage
from samunet.inference.probabilities import open_probabilities
from samunet.preprocessing.case import preprocess_case
from samunet.preprocessing.restore import restore_probabilities


@pytest.fixture
def volume() -> np.ndarray:
    image = np.random.default_rng(0).normal(100, 20, (CHANNELS, 6, 30, 26)).astype(np.float32)
    image[:, :, :3] = 0  # outside the crop
    return image


def load_ensemble(*models: Path, **settings: object) -> EnsemblePredictor:
    return EnsemblePredictor.load(models, device="cpu", **settings)  # type: ignore[arg-type]


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, Path]:
    """A 2D model of two folds and a 3D model of one."""
    models = tmp_path / "2d_unet__tinyPlans", tmp_path / "3d_unet__tinyPlans"
    for fold in (0, 1):
        write_fold(models[0], fold)
    write_fold(models[1], 2, method="3d_unet")
    return models


def test_2d_and_3d_average_their_probabilities(mixed: tuple[Path, Path], volume: np.ndarray) -> None:
    spacing = (2.0, 1.3, 0.9)
    alone = [load(model, mirroring=False).predict(volume, spacing, probabilities=True) for model in mixed]
    together = load_ensemble(*mixed, mirroring=False).predict(volume, spacing, probabilities=True)
    mean = sum(prediction.probabilities for prediction in alone) / 2
    assert together.probabilities is not None
    np.testing.assert_allclose(together.probabilities, mean, atol=1e-5)
    np.testing.assert_array_equal(together.segmentation, together.probabilities.argmax(0))
    assert (together.probabilities[0, :, :3] == 1).all()


def test_slabs_do_not_show(
    mixed: tuple[Path, Path], volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = load_ensemble(*mixed, mirroring=False)
    whole = ensemble.predict(volume, SPACING, probabilities=True)
    monkeypatch.setattr(ensemble_predictor, "SLAB_BYTES", 1)
    pieces = ensemble.predict(volume, SPACING, probabilities=True)
    np.testing.assert_array_equal(pieces.segmentation, whole.segmentation)
    np.testing.assert_allclose(pieces.probabilities, whole.probabilities, atol=1e-6)


def test_plans_of_other_axes_average_in_the_files_frame(
    volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, geometry = _as_case(volume)
    plan = make_plan(make_configuration("3d_unet"))
    turned = replace(plan, transpose_forward=(2, 0, 1), transpose_backward=(1, 2, 0))
    members, alone = [], []
    for number, own in enumerate((plan, turned)):
        case = preprocess_case(
            image, None, geometry, own, replace(own.data["3d"], spacing_mm=(2.0, 1.5, 0.7))
        )
        logits = torch.randn(3, *case.record.shape, generator=torch.Generator().manual_seed(number))
        alone.append(np.empty((3, *geometry.shape), np.float32))
        restore_probabilities(logits, case.record, own, alone[-1])
        members.append(MemberLogits(logits=logits, record=case.record, plan=own))
    monkeypatch.setattr(ensemble_predictor, "SLAB_BYTES", 2 * 4 * 3 * 30 * 26 * 2)  # two planes of each
    mean = np.empty_like(alone[0])
    segmentation = ensemble_predictor.restore_mean(members, mean)
    np.testing.assert_allclose(mean, (alone[0] + alone[1]) / 2, atol=1e-5)
    np.testing.assert_array_equal(segmentation, mean.argmax(0))


def test_regions(tmp_path: Path, volume: np.ndarray) -> None:
    models = [tmp_path / name for name in ("a", "b")]
    for fold, model in enumerate(models):
        write_fold(model, fold, labels=REGIONS)
    together = load_ensemble(*models, mirroring=False).predict(volume, SPACING, probabilities=True)
    whole, core = together.probabilities > 0.5
    np.testing.assert_array_equal(together.segmentation, np.where(core, 2, np.where(whole, 1, 0)))


def test_files_equal_averaged_folders(
    mixed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in", ("a", "b"))
    for number, model in enumerate(mixed):
        load(model, mirroring=False).predict_files(
            tmp_path / "in", tmp_path / f"{number}", FileOptions(save_probabilities="uint8")
        )
    monkeypatch.setattr(folder, "LogitStorage", lambda place: LogitStorage(place, limit_bytes=0))
    ensemble = load_ensemble(*mixed, mirroring=False)
    outcome = ensemble.predict_files(
        tmp_path / "in", tmp_path / "out", FileOptions(save_probabilities="fp16")
    )
    assert outcome.done == ("a", "b")
    expected = average_probabilities(
        [tmp_path / "0/a.nii.gz", tmp_path / "1/a.nii.gz"],
        CLASSES,
        tmp_path / "mean/a.nii.gz",
        save_probabilities=True,
    )
    kept, mean = (open_probabilities(tmp_path / f"{f}/a.nii.gz")[0][:] for f in ("out", "mean"))
    np.testing.assert_allclose(kept, mean, atol=1 / 510 + 2 / 4096)
    written, _ = read_label(tmp_path / "out/a.nii.gz")
    clear = np.sort(mean, axis=0)[-1] - np.sort(mean, axis=0)[-2] > 0.01
    assert clear.any()
    np.testing.assert_array_equal(written[clear], expected[clear])
    arguments = json.loads((tmp_path / "out/predict_args.json").read_text())
    assert [model["folds"] for model in arguments["models"]] == [[0, 1], [2]]
    assert not [f for f in (tmp_path / "out").iterdir() if f.name.startswith(".")]
    with pytest.raises(SamunetError, match=r"models\[0\]\.folds was \[0, 1\], is \[2\]"):
        load_ensemble(mixed[1], mixed[0], mirroring=False).predict_files(
            tmp_path / "in", tmp_path / "out", FileOptions(skip_existing=True)
        )


def test_logits_on_disk_are_those_in_memory(
    tmp_path: Path, mixed: tuple[Path, Path], volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load(mixed[0], mirroring=False)
    memory = predictor.predict_preprocessed(volume, LogitStorage(tmp_path))
    disk = predictor.predict_preprocessed(volume, LogitStorage(tmp_path, limit_bytes=memory.nbytes - 1))
    assert isinstance(memory, torch.Tensor)
    assert isinstance(disk, LogitsOnDisk)
    torch.testing.assert_close(disk[:], memory, rtol=0, atol=0)
    torch.testing.assert_close(disk.classes(1, 3)[:, 2:4], memory[1:3, 2:4], rtol=0, atol=0)
    assert not list(tmp_path.glob(".samunet*"))
    if hasattr(os, "posix_fallocate"):
        monkeypatch.setattr(os, "posix_fallocate", _full)
        with pytest.raises(SamunetError, match="No space is left for the logits"):
            LogitStorage(tmp_path, limit_bytes=0)((3, 4, 5, 6))


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def heads(tmp_path: Path) -> tuple[Path, ...]:
    """Two CNN heads, a DeSAM head (which needs inner blocks) and a linear head on one random encoder."""
    models = tuple(tmp_path / f"{name}__tinyPlans" for name in ("2d_cnn", "2d_desam", "2d_linear"))
    encoder: dict[str, torch.Tensor] = {}
    for model in models:
        method = model.name.split("__")[0]
        for fold in (0, 1) if method == "2d_cnn" else (0,):
            encoder = write_fold(model, fold, method=method, encoder=encoder)
    return models


def test_heads_of_several_methods_share_one_pass(heads: tuple[Path, ...], volume: np.ndarray) -> None:
    volume = volume[:, :4, -16:, -16:]
    alone = [load(model) for model in heads]
    assert alone[0].shared_encoder
    expected = [predictor.predict_preprocessed(volume) for predictor in alone]
    ensemble = load_ensemble(*heads)
    assert [len(group) for group in ensemble.groups] == [3]
    assert "serves 2d_cnn, 2d_desam, 2d_linear" in ensemble.describe()
    networks = [network for member in ensemble.members for network in member.networks]
    assert len({id(network.encoder) for network in networks}) == 1
    passes: list[int] = []
    networks[0].encoder.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    case = ensemble.preprocess(*_as_case(volume), "it")
    found = ensemble.predict_prepared({key: replace(ready, image=volume) for key, ready in case.items()})
    assert len(passes) == 4  # one batch of slices, four flips
    for one, logits in zip(expected, found):
        torch.testing.assert_close(logits.logits, one, rtol=1e-4, atol=1e-5)


def _as_case(volume: np.ndarray) -> tuple[np.ndarray, object]:
    from samunet.inference.arrays import as_image

    return as_image(volume, SPACING, ("T1", "T2"))


def test_a_trained_stem_or_another_encoder_is_not_shared(heads: tuple[Path, ...], tmp_path: Path) -> None:
    other = tmp_path / "2d_autosam__tinyPlans"
    write_fold(other, 3, method="2d_autosam")
    assert [len(group) for group in load_ensemble(heads[0], other).groups] == [1, 1]
    stem = tmp_path / "stem"
    encoder: dict[str, torch.Tensor] = {}
    for fold in (0, 1):
        encoder = write_fold(
            stem, fold, method="2d_linear", encoder=encoder, settings={"channel_map": "stem"}
        )
    assert not load(stem).shared_encoder


def test_models_that_do_not_belong_together(mixed: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_fold(other, 0, labels=LabelSet(labels={"background": (0,), "liver": (1,), "lesion": (2,)}))
    with pytest.raises(SamunetError, match="liver 1") as refusal:
        load_ensemble(mixed[0], other)
    assert str(other) in str(refusal.value)
    with pytest.raises(SamunetError, match="counts once"):
        load_ensemble(mixed[0], mixed[0])


def test_a_fault_stays_with_its_case(mixed: tuple[Path, Path], tmp_path: Path) -> None:
    write_images(tmp_path / "in", ("a", "b", "c"))
    broken = tmp_path / "in/b_0001.nii.gz"
    broken.write_bytes(broken.read_bytes()[:400])
    out = tmp_path / "out"
    outcome = load_ensemble(*mixed, mirroring=False).predict_files(
        tmp_path / "in", out, FileOptions(num_parts=1, save_probabilities=True)
    )
    assert outcome.done == ("a", "c")
    assert list(outcome.failed) == ["b"]
    assert sitk.ReadImage(str(out / "c.nii.gz")).GetSize() == (18, 20, 4)
    assert not list(out.glob("*b.*"))
