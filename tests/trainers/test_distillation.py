"""Learning from a teacher: soft labels follow the image, what the loss counts, a distilled run is a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from absent_gpu import check_steps, knows_cuda
from soft_teacher import IDENTITY, KINDS, one_hot_logits, write_soft_labels
from test_conformance import _StopAfter, assert_same
from tiny_runs import CLASSES, NAMES, REGIONS, SHAPE, SilentReporter, make_request, write_cases
from torch import Tensor

from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.inference.folds import check_alike
from samunet.preprocessing.case import PreprocessedCase
from samunet.preprocessing.locations import Locations
from samunet.preprocessing.soft_labels import (
    SoftLabelIdentity,
    decode,
    encode,
    output_of,
)
from samunet.trainers import get_trainer
from samunet.trainers.augmentation import Augmentation, AugmentationSettings
from samunet.trainers.base import config_of
from samunet.trainers.batches import PatchSource, SoftSource
from samunet.trainers.checkpoint import load_checkpoint
from samunet.trainers.distillation import Distillation, distilled, soft_label_error
from samunet.trainers.entry import train_fold
from samunet.trainers.identity import read_run
from samunet.trainers.losses import LossSettings
from samunet.trainers.reporter import Reporter
from samunet.trainers.run import RunRequest, source_settings
from samunet.trainers.sampling import TRAIN, VAL, SampleKey
from samunet.workspace import FINAL

SHORT = {"epochs": 2, "iterations": 2, "val_iterations": 1}


def make_distillation(root: Path, weight: float = 0.5, **changes: Any) -> Distillation:
    def label(reporter: Reporter) -> None:
        labels = distillation.labels
        write_soft_labels(labels.folder, labels.identity, root / "cases")
        if labels.unlabelled_folder is not None:
            write_soft_labels(labels.folder, labels.identity, labels.unlabelled_folder)

    labels = SoftSource(folder=root / "soft", identity=IDENTITY)
    distillation = Distillation(
        teacher="3d_unet__tinyPlans",
        teacher_folder="somewhere",
        folds=(0,),
        checkpoint=FINAL,
        weight=weight,
        labels=replace(labels, **changes),
        label=label,
    )
    return distillation


def request_of(root: Path, weight: float | None, labels: LabelSet = CLASSES, **changes: Any) -> RunRequest:
    request = make_request(root, "3d_student", labels, settings=SHORT)
    if weight is None:
        return request
    return replace(request, distillation=make_distillation(root, weight, **changes))


# How it follows the image


@pytest.mark.parametrize(
    "settings",
    [
        AugmentationSettings(patch_size=(20, 28, 20), mirror_axes=(0, 1, 2)),
        AugmentationSettings(patch_size=(8, 32, 32), mirror_axes=(0, 1, 2), masked_channels=(0,)),
        AugmentationSettings(patch_size=(32, 28), mirror_axes=(0, 1)),
        AugmentationSettings(patch_size=(20, 28, 20), preset="none"),
    ],
    ids=["volume", "flat", "slice", "plain"],
)
def test_soft_labels_follow_the_augmentation(settings: AugmentationSettings) -> None:
    """One-hot soft labels stay the one-hot labels, but for voxels between two classes."""
    augment = Augmentation(settings)
    size = settings.initial_size
    turned = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        image = rng.normal(size=(1, *size)).astype(np.float32)
        label = rng.integers(-1, 3, size=tuple((n + 6) // 7 for n in size)).astype(np.int16)
        for axis in range(label.ndim):
            label = np.repeat(label, 7, axis)
        label = label[tuple(slice(0, n) for n in size)]
        flat = one_hot_logits(label if label.ndim == 3 else label[None])
        stored = encode(flat, IDENTITY).astype(np.float32)
        stored = stored if label.ndim == 3 else stored[:, 0]
        image_t, target, soft = augment.with_soft(image.copy(), label, stored, seed)
        alone = augment(image, label, seed)
        assert torch.equal(alone[0], image_t)
        assert torch.equal(alone[1], target)
        values = decode(soft, IDENTITY)
        assert values.shape == (3, *settings.patch_size)
        torch.testing.assert_close(values.sum(0), torch.ones(settings.patch_size), atol=1e-4, rtol=0)
        assert values.min() > -1e-5
        # Of 2/3 background half at least is of one kind, 0 or -1, which the label counts apart.
        certain = values.max(0).values > 0.67
        assert certain.float().mean() > 0.5
        assert torch.equal(values.argmax(0)[certain], target[0].long()[certain])
        turned += int(not bool((values.max(0).values > 1 - 1e-4).all()))
    assert turned > 0 or settings.preset == "none"


def test_samples_carry_the_teacher(tmp_path: Path) -> None:
    request = request_of(tmp_path, 0.5)
    assert request.distillation is not None
    request.distillation.label(SilentReporter())
    configuration = request.plan.configuration("3d_student")
    config = config_of(configuration)
    source = PatchSource(source_settings(request, request.plan, configuration, config, 0))
    plain = PatchSource(
        source_settings(replace(request, distillation=None), request.plan, configuration, config, 0)
    )
    for stream in (TRAIN, VAL):
        for number in range(6):
            key = SampleKey(stream, 0, number, number % 2 == 1)
            sample, without = source.sample(key), plain.sample(key)
            assert torch.equal(sample["image"], without["image"])
            assert torch.equal(sample["target"], without["target"])
            assert sample["soft"].shape == (3, *configuration.patch_size)
            assert bool(sample["labelled"])
            certain = sample["soft"].float().max(0).values > 0.67
            chosen = sample["soft"].float().argmax(0)
            assert torch.equal(chosen[certain], sample["target"][0].long()[certain])


# What the loss counts


def test_ignored_voxels_have_no_error() -> None:
    logits, soft = torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 3, 4, 4, 4)
    soft[:, 0, 2:], soft[:, :, :2] = 1.0, 1 / 3
    target = torch.zeros(1, 1, 4, 4, 4, dtype=torch.int16)
    every = LossSettings(ignore_index=None)
    some = LossSettings(ignore_index=3)
    expected = (1 - 1 / 3) ** 2 + 2 / 9
    assert soft_label_error(logits, soft, target, IDENTITY, every).item() == pytest.approx(expected / 2)
    target[:, :, 2:] = 3
    assert soft_label_error(logits, soft, target, IDENTITY, some).item() == pytest.approx(0, abs=1e-6)
    regions = torch.zeros(1, 4, 4, 4, 4, dtype=torch.bool)
    regions[:, 3, :2] = True
    found = soft_label_error(
        logits, soft, regions, replace(IDENTITY, regions=True), LossSettings(regions=True, ignore_index=3)
    )
    assert found.item() == pytest.approx(3 * 0.25)


def test_logits_are_compared_without_their_mean() -> None:
    identity = replace(IDENTITY, target="logits")
    logits = torch.randn(2, 3, 4, 4, 4)
    target = torch.zeros(2, 1, 4, 4, 4)
    shifted = logits + 5
    soft = output_of(logits, identity)
    assert soft_label_error(shifted, soft, target, identity, LossSettings()).item() < 1e-10


def trained(root: Path, weight: float | None, **changes: Any) -> dict[str, Tensor]:
    request = request_of(root, weight, **changes)
    train_fold(request, SilentReporter())
    return load_checkpoint(request.folder / FINAL).network


def test_lambda_0_is_the_training_without_a_teacher(tmp_path: Path) -> None:
    without = trained(tmp_path / "a", None)
    assert_same(without, trained(tmp_path / "b", 0.0))
    half, alone = trained(tmp_path / "c", 0.5), trained(tmp_path / "d", 1.0)
    key = next(name for name, value in without.items() if value.ndim == 5)
    assert not torch.equal(without[key], half[key])
    assert not torch.equal(alone[key], half[key])


def test_lambda_1_does_not_look_at_the_labels(tmp_path: Path) -> None:
    first = trained(tmp_path / "a", 1.0)
    root = tmp_path / "b"
    store = write_cases(root / "cases")
    write_soft_labels(root / "soft", IDENTITY, root / "cases")
    request = request_of(root, 1.0)
    assert request.distillation is not None
    request = replace(request, distillation=replace(request.distillation, label=lambda reporter: None))
    for name in NAMES:  # the same cases with labels that say nothing, drawn from the same places
        case = store.open(name)
        blank = PreprocessedCase(image=case.image[:], label=np.zeros(SHAPE, np.int16), record=case.record)
        where = Locations(classes=case.locations, annotated=None)
        # Outside the nonzero mask the first channel is set to 0 after the augmentation.
        blank.label[case.label[:] < 0] = -1
        store.write(name, blank, where, key=case.entry.key)
    train_fold(request, SilentReporter())
    assert_same(first, load_checkpoint(request.folder / FINAL).network)


def distilled_batch(patch: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Two samples, the second one without a label."""
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(2, 2, *patch, generator=generator),
        "target": torch.randint(0, 3, (2, 1, *patch), generator=generator).short(),
        "soft": torch.softmax(torch.randn(2, 3, *patch, generator=generator), 1).half(),
        "labelled": torch.tensor([True, False]),
    }


@knows_cuda
def test_a_step_on_a_gpu(tmp_path: Path) -> None:
    request = request_of(tmp_path, 0.5)
    assert request.distillation is not None
    configuration, trainer = request.plan.configuration("3d_student"), get_trainer("3d_student")
    network = trainer.build_network(request.plan, configuration)
    student = trainer.build_training(network, request.plan, configuration)
    module = distilled(student, "3d_student", request.distillation)
    check_steps(module, distilled_batch(configuration.patch_size), "fp16")


def test_unlabelled_cases_count_for_the_teacher_alone(tmp_path: Path) -> None:
    request = request_of(tmp_path, 0.5, unlabelled_folder=tmp_path / "more", unlabelled=("x",))
    assert request.distillation is not None
    configuration = request.plan.configuration("3d_student")
    trainer = get_trainer("3d_student")
    network = trainer.build_network(request.plan, configuration)
    step = trainer.build_training(network, request.plan, configuration).train()
    module = distilled(step, "3d_student", request.distillation).train()
    batch = distilled_batch(configuration.patch_size)
    found = module(batch)
    alone = step({"image": batch["image"][:1], "target": batch["target"][:1]})
    torch.testing.assert_close(found["dice"], alone["dice"])
    torch.testing.assert_close(found["ce"], alone["ce"])
    torch.testing.assert_close(found["loss"], 0.5 * found["mse"] + 0.5 * (alone["dice"] + alone["ce"]))
    nothing = module({**batch, "labelled": torch.tensor([False, False])})
    assert nothing["dice"].item() == nothing["ce"].item() == 0
    nothing["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_unlabelled_cases_are_drawn_for_training_alone(tmp_path: Path) -> None:
    more = write_cases(tmp_path / "more")
    for name in more.names():
        for path in (tmp_path / "more").glob(f"{name}.*"):
            path.rename(path.with_name(path.name.replace("case", "new")))
    names = tuple(name.replace("case", "new") for name in NAMES)
    request = request_of(tmp_path, 0.5, unlabelled_folder=tmp_path / "more", unlabelled=names)
    train_fold(request, SilentReporter())
    record = read_run(request.folder)
    assert record is not None
    assert record.distillation is not None
    assert record.distillation["unlabelled"] == list(names)
    configuration = request.plan.configuration("3d_student")
    source = PatchSource(source_settings(request, request.plan, configuration, config_of(configuration), 0))
    drawn = [source.sample(SampleKey(stream, 0, n, True)) for stream in (TRAIN, VAL) for n in range(12)]
    kinds = [bool(sample["labelled"]) for sample in drawn]
    assert 0 < sum(kinds[:12]) < 12
    assert all(kinds[12:])


# A distilled run is a run


def test_resume_equals_uninterrupted(tmp_path: Path) -> None:
    whole = request_of(tmp_path, 0.5)
    train_fold(whole, SilentReporter())
    parts = replace(whole, folder=tmp_path / "parts" / "fold_0")
    with pytest.raises(KeyboardInterrupt):
        train_fold(parts, _StopAfter(1))
    train_fold(replace(parts, resume=True, settings={}), SilentReporter())
    expected, found = load_checkpoint(whole.folder / FINAL), load_checkpoint(parts.folder / FINAL)
    assert_same(expected.network, found.network)
    assert expected.overrides["distillation"]["weight"] == 0.5
    assert expected.overrides["distillation"] == found.overrides["distillation"]


def test_another_teacher_is_refused_by_name(tmp_path: Path) -> None:
    request = request_of(tmp_path, 0.5)
    train_fold(request, SilentReporter())
    (request.folder / FINAL).unlink()
    continued = replace(request, resume=True)
    assert request.distillation is not None
    identity = replace(IDENTITY, checkpoints_sha256=("b" * 64,))
    other = replace(request.distillation, labels=SoftSource(folder=tmp_path / "other", identity=identity))
    for changed, told in (
        (replace(request.distillation, weight=0.25), "weight of the distillation: 0.5 there, 0.25 now"),
        (other, "checkpoints_sha256 of the distillation"),
        (None, "distilled from 3d_unet__tinyPlans there, no teacher now"),
    ):
        with pytest.raises(SamunetError, match=told):
            train_fold(replace(continued, distillation=changed), SilentReporter())
    with pytest.raises(SamunetError, match="--tag"):
        train_fold(replace(request, distillation=None), SilentReporter())
    moved = replace(request.distillation, teacher_folder="elsewhere")
    assert train_fold(replace(continued, distillation=moved), SilentReporter()).status == "finished"


def test_cases_without_soft_labels_are_named(tmp_path: Path) -> None:
    request = request_of(tmp_path, 0.5)
    assert request.distillation is not None
    lazy = replace(request.distillation, label=lambda reporter: None)
    with pytest.raises(SamunetError, match=r"4 cases have no soft labels.*case_0"):
        train_fold(replace(request, distillation=lazy), SilentReporter())


def test_methods_that_train_from_a_cache_cannot_be_students(tmp_path: Path) -> None:
    request = make_request(tmp_path, "2d_cnn", settings=SHORT)
    with pytest.raises(SamunetError, match="cached embeddings"):
        train_fold(replace(request, distillation=make_distillation(tmp_path)), SilentReporter())


@pytest.mark.parametrize("identity", KINDS[1:], ids=lambda i: f"{i.target}-{i.regions}")
def test_other_targets_and_regions_train(identity: SoftLabelIdentity, tmp_path: Path) -> None:
    request = request_of(tmp_path, 0.5, REGIONS if identity.regions else CLASSES)
    logits = torch.randn(identity.outputs, *SHAPE)
    write_soft_labels(tmp_path / "soft", identity, tmp_path / "cases", lambda case: logits)
    assert request.distillation is not None
    labels = SoftSource(folder=tmp_path / "soft", identity=identity)
    ready = replace(request.distillation, labels=labels, label=lambda reporter: None)
    assert train_fold(replace(request, distillation=ready), SilentReporter()).status == "finished"


def test_a_2d_network_can_be_a_student_too(tmp_path: Path) -> None:
    request = make_request(tmp_path, "2d_unet", settings=SHORT)
    request = replace(request, distillation=make_distillation(tmp_path))
    assert train_fold(request, SilentReporter()).status == "finished"


def test_folds_that_learned_differently_are_not_averaged(tmp_path: Path) -> None:
    stored: dict[int | str, Any] = {}
    for fold, weight in enumerate((0.5, 0.25)):
        root = tmp_path / str(fold)
        request = request_of(root, weight)
        train_fold(request, SilentReporter())
        stored[fold] = load_checkpoint(request.folder / FINAL)
    with pytest.raises(SamunetError, match=r"lambda 0\.5.*lambda 0\.25"):
        check_alike(tmp_path, stored)
    check_alike(tmp_path, {0: stored[0], 1: stored[0]})
