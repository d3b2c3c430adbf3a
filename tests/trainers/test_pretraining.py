"""Pretraining on the smallest encoder: it learns, it can be continued, and its result is a SAM."""

from __future__ import annotations

import errno
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from absent_gpu import check_steps, knows_cuda
from tiny_runs import SilentReporter

from samunet.data.scene import UNKNOWN, Scene
from samunet.errors import SamunetError
from samunet.networks.masked import hidden_patches
from samunet.networks.sam.adapters import is_adapter_key
from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weights import SamWeights, build_parts, expected_shapes
from samunet.networks.sam.weights_card import CardTeacher
from samunet.networks.token_tasks import partners, shifted_tokens
from samunet.pipeline.pretrain.run import with_settings
from samunet.trainers import pretrain_run
from samunet.trainers.continuing import load_latest
from samunet.trainers.history import read_history
from samunet.trainers.pretrain_run import PretrainRun, load_checkpoint
from samunet.trainers.pretrain_source import (
    Generated,
    PretrainSource,
    drawn,
    fitted,
    fitted_shape,
    real_tokens,
)
from samunet.trainers.pretrain_teacher import Teacher
from samunet.trainers.pretraining import TASKS, PretrainModule, PretrainNetwork, PretrainSettings
from samunet.trainers.sampling import TRAIN, VAL, SampleKey
from samunet.trainers.schedule import Timing, phase_seconds
from samunet.workspace import BEST, FINAL, LATEST

OWN_TASKS = tuple(task for task in TASKS if task != "teacher")
SMALL = PretrainSettings(
    encoder="vit_micro",
    tasks=OWN_TASKS,
    weights=(1.0, 0.5, 0.1, 0.1),
    steps=4,
    batch_size=2,
    objects=2,
    epoch_steps=2,
    val_batches=1,
    learning_rate=3e-3,
    self_share=1.0,
)


def source(settings: PretrainSettings = SMALL) -> PretrainSource:
    return PretrainSource([Generated(settings.seed, settings.variant.native_size)], [1.0], settings)


ADAPTED = replace(SMALL, adapters=True, adapter_width=4, input_size=48)
"""Adapters on weights that stay, on pictures of another size than the encoder's own."""


def some_weights() -> SamWeights:
    """A whole SAM that is not the start of a run."""
    torch.manual_seed(7)
    parts = {name: part.state_dict() for name, part in build_parts(get_variant("vit_micro")).items()}
    return SamWeights(variant=get_variant("vit_micro"), path=Path("base.pth"), sha256="7" * 64, **parts)


def make_run(folder: Path, settings: PretrainSettings = SMALL, reporter: Any = None) -> PretrainRun:
    return PretrainRun(
        start=some_weights() if settings.adapters else None,
        settings=settings,
        data=["synthetic"],
        source=source(settings),
        folder=folder,
        device=torch.device("cpu"),
        reporter=reporter or SilentReporter(),
    )


def batch_of(settings: PretrainSettings, count: int, stream: int = TRAIN) -> dict[str, torch.Tensor]:
    samples = [source(settings).sample(SampleKey(stream, 0, n, False)) for n in range(count)]
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def test_samples_are_repeatable_and_prompts_lie_on_their_objects() -> None:
    first, again = batch_of(SMALL, 6), batch_of(SMALL, 6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["image"].dtype == torch.uint8
    assert not torch.equal(first["image"], batch_of(SMALL, 6, VAL)["image"])
    points, labels = first["points_xy"], first["labels"]
    for picture, row in (labels[..., 0] == 1).nonzero().tolist():
        x, y = points[picture, row, 0].long().tolist()
        assert first["objects"][picture, row, y, x]


def test_all_objects_are_asked_for_before_one_comes_again_and_large_ones_come_first() -> None:
    parts, sides = np.array([3, 5, 9]), np.array([1.0, 1.0, 8.0])
    many = [drawn(parts, sides, 5, np.random.default_rng(seed)) for seed in range(100)]
    assert all(sorted(chosen[:3]) == [3, 5, 9] for chosen in many)
    assert sum(chosen[0] == 9 for chosen in many) > 65
    assert len(drawn(parts[:0], sides[:0], 5, np.random.default_rng(0))) == 0


def test_pictures_keep_their_aspect_and_labels_stay_on_them() -> None:
    labels = np.zeros((20, 40), np.int16)
    labels[5:15, 10:30] = 1
    picture = np.broadcast_to(labels * np.uint8(200), (3, 20, 40)).astype(np.uint8)
    image, resized = fitted(picture, labels, 64)
    assert image.shape == (3, 64, 64)
    assert (resized[32:] == 0).all()
    assert image[:, 40, 10].tolist() == [124, 116, 104]
    inside = torch.from_numpy(resized[:32] == 1)
    assert image[0, :32][inside].float().mean() > 185
    assert image[0, :32][~inside].float().mean() < 15


def test_without_labels_the_prompted_part_has_no_loss_but_is_finite() -> None:
    empty = Scene(np.zeros((64, 64), np.int16), np.zeros(1, np.int16), np.zeros(1, bool))
    sample = source().prepare(np.zeros((3, 64, 64), np.uint8), empty, np.random.default_rng(0))
    module = PretrainModule(PretrainNetwork(SMALL), SMALL)
    losses = module({name: torch.stack([value, value]) for name, value in sample.items()})
    assert losses["prompt"] == 0
    assert torch.isfinite(losses["loss"])


def test_what_nobody_annotated_changes_nothing() -> None:
    """Whatever the reference says there: no loss, no IoU, no count and no click looks at it."""
    labels = np.zeros((64, 64), np.int16)
    labels[8:40, 8:40] = 1
    labels[:, 30:] = UNKNOWN
    scene = Scene(labels, np.zeros(2, np.int16), np.array([False, True]))
    picture = np.random.default_rng(0).integers(0, 255, (3, 64, 64)).astype(np.uint8)
    sample = source().prepare(picture, scene, np.random.default_rng(0))
    assert not sample["known"].all()
    assert sample["objects"].flatten(1).any(1).all()
    other = {**sample, "objects": sample["objects"] ^ ~sample["known"]}
    module = PretrainModule(PretrainNetwork(SMALL), SMALL).eval()
    first, second = (
        module({name: torch.stack([value, value]) for name, value in found.items()})
        for found in (sample, other)
    )
    assert {"prompt", "iou_first", "iou_clicked", "tp"} <= set(first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    seen = module(
        {**{n: torch.stack([v, v]) for n, v in other.items()}, "known": torch.ones(2, 64, 64).bool()}
    )
    assert not torch.equal(first["prompt"], seen["prompt"])


def micro_teacher() -> Teacher:
    torch.manual_seed(7)
    encoder = SamImageEncoder(get_variant("vit_micro")).eval().requires_grad_(False)
    card = CardTeacher(name="x.pth", variant="vit_micro", sha256="0", input_size=64, licence="unknown")
    return Teacher(card, encoder)


@knows_cuda
def test_all_objectives_on_a_gpu() -> None:
    settings = replace(SMALL, tasks=TASKS, weights=(1.0,) * len(TASKS), checkpointing=True)
    teacher = micro_teacher()
    network = PretrainNetwork(settings, get_variant("vit_micro").prompt_dim)
    check_steps(PretrainModule(network, settings, teacher), batch_of(settings, 2), "bf16", teacher.encoder)


@pytest.mark.parametrize("task", TASKS)
def test_each_objective_learns_a_batch_and_trains_the_encoder(task: str) -> None:
    settings = replace(SMALL, tasks=(task,), weights=(1.0,), batch_size=4)
    teacher = micro_teacher()
    torch.manual_seed(0)
    network = PretrainNetwork(settings, teacher.channels)
    module, batch = PretrainModule(network, settings, teacher), batch_of(settings, 4)
    before = network.sam.image_encoder.blocks[0].mlp.lin1.weight.detach().clone()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = module(batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.93 * np.mean(losses[:2]), losses
    assert not torch.equal(before, network.sam.image_encoder.blocks[0].mlp.lin1.weight)


def test_prompts_train_prompt_encoder_and_mask_decoder() -> None:
    """Every tensor of both learns something in one step with a click (points, boxes, masks given back), but
    for those of a point's three masks that were never the best."""
    settings = replace(SMALL, tasks=("prompt",), weights=(1.0,), batch_size=8, clicks=1)
    torch.manual_seed(0)
    network = PretrainNetwork(settings)
    PretrainModule(network, settings)(batch_of(settings, 8))["loss"].backward()
    for part in (network.sam.prompt_encoder, network.sam.mask_decoder):
        idle = [name for name, p in part.named_parameters() if p.grad is None or not p.grad.any()]
        assert not [name for name in idle if not re.match(r"output_hypernetworks_mlps\.[123]", name)], idle


def test_prompted_masks_of_a_few_pictures_are_learnt_within_some_steps() -> None:
    settings = replace(SMALL, tasks=("prompt",), weights=(1.0,), clicks=2)
    torch.manual_seed(0)
    module, batch = PretrainModule(PretrainNetwork(settings), settings), batch_of(settings, 4)
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        module(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        found = module.eval()(batch)
    assert found["iou_first"] > 0.8
    assert found["iou_clicked"] > 0.8


def test_half_precision_fits_every_objective() -> None:
    module = PretrainModule(PretrainNetwork(SMALL), SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        losses = module(batch_of(SMALL, 2))
    losses["loss"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_box_is_answered_by_the_one_mask_and_a_point_by_the_best_of_three() -> None:
    settings = replace(SMALL, tasks=("prompt",), weights=(1.0,), clicks=0, objects=1)
    torch.manual_seed(0)
    network, batch = PretrainNetwork(settings), batch_of(settings, 2)
    trained = {}
    for kind, labels in (("point", [1, -1]), ("box", [2, 3])):
        batch["labels"][:] = torch.tensor(labels)
        network.zero_grad()
        PretrainModule(network, settings)(batch)["loss"].backward()
        heads = network.sam.mask_decoder.output_hypernetworks_mlps
        grads = [head.layers[-1].bias.grad for head in heads]
        trained[kind] = [grad is not None and bool(grad.any()) for grad in grads]
    assert trained["box"] == [True, False, False, False]
    assert not trained["point"][0]
    assert any(trained["point"][1:])


def test_fewer_pictures_serve_the_tasks_without_labels() -> None:
    settings = replace(SMALL, tasks=("mae",), weights=(1.0,), batch_size=4, self_share=0.5)
    module, batch = PretrainModule(PretrainNetwork(settings), settings).eval(), batch_of(settings, 4)
    halves = {name: value[:2] for name, value in batch.items()}
    with torch.no_grad():
        assert torch.equal(module(batch)["mae"], module(halves)["mae"])


def test_validation_counts_pixels_of_the_first_and_the_last_answer() -> None:
    module = PretrainModule(PretrainNetwork(SMALL), SMALL).eval()
    batch = batch_of(SMALL, 3)
    with torch.no_grad():
        first, again = module(batch), module(batch)
    assert first["tp"].shape == (2,)
    assert all(torch.equal(first[name], again[name]) for name in first)
    asked = batch["objects"][..., ::2, ::2].sum()
    assert (first["tp"] + first["fn"]).tolist() == [asked, asked]


class _StopAt(SilentReporter):
    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, report: object) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("settings", [SMALL, ADAPTED])
def test_stopped_and_continued_gives_the_same_as_uninterrupted(
    settings: PretrainSettings, tmp_path: Path
) -> None:
    whole = make_run(tmp_path / "whole", settings)
    assert whole.train() == "finished"
    stopped = make_run(tmp_path / "parts", settings, reporter=_StopAt(4))
    assert stopped.train() == "interrupted"
    continued = make_run(tmp_path / "parts", settings)
    continued.resume(load_checkpoint(tmp_path / "parts" / LATEST))
    assert continued.train() == "finished"
    expected, found = whole.sam_state(), continued.sam_state()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    losses = [[record.train for record in read_history(tmp_path / part)] for part in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert (tmp_path / "parts" / FINAL).is_file()


def test_another_pretraining_is_not_continued(tmp_path: Path) -> None:
    make_run(tmp_path).save(tmp_path / LATEST, 0, {})
    with pytest.raises(SamunetError, match="other settings"):
        make_run(tmp_path, replace(SMALL, seed=5)).resume(load_checkpoint(tmp_path / LATEST))
    with pytest.raises(SamunetError, match="without --c"):
        load_checkpoint(tmp_path / "absent.pth")


def test_a_damaged_checkpoint_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, path = make_run(tmp_path), tmp_path / LATEST
    run.save(path, 1, {})
    content = path.read_bytes()
    for cut in (content[: len(content) // 2], content[:3], b""):
        path.write_bytes(cut)
        with pytest.raises(SamunetError, match=r"cannot be read.*Delete the folder"):
            load_checkpoint(path)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")  # torch's word for some damages

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(SamunetError, match=r"cannot be read \(OSError\)"):
        load_checkpoint(path)


def test_the_best_checkpoint_is_named_where_it_can_be_continued(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / LATEST).write_bytes(b"")
    run.save(tmp_path / BEST, 1, {})
    with pytest.raises(SamunetError, match=rf"{LATEST} cannot be read.*Delete the folder"):
        load_latest(tmp_path, load_checkpoint)
    run.save(tmp_path / BEST, 1, {"iteration": 0})
    with pytest.raises(SamunetError, match=rf"{LATEST} cannot be read.*{BEST}.*after epoch 1\b") as told:
        load_latest(tmp_path, load_checkpoint)
    assert "Delete" not in str(told.value)
    (tmp_path / LATEST).unlink()
    assert load_latest(tmp_path, load_checkpoint).epoch == 1  # it ended between the first two
    (tmp_path / BEST).unlink()
    with pytest.raises(SamunetError, match="to continue"):
        load_latest(tmp_path, load_checkpoint)
    run.save(tmp_path / LATEST, 3, {})
    assert load_latest(tmp_path, load_checkpoint).epoch == 3


def test_a_full_disk_is_no_fault_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing its archive after a failed write, torch raises an error of its own."""

    def fail(content: object, target: IO[bytes]) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        make_run(tmp_path).save(tmp_path / LATEST, 1, {})


def test_the_result_is_a_whole_sam(tmp_path: Path) -> None:
    state = make_run(tmp_path).sam_state()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected_shapes("vit_micro")


def test_adapters_leave_the_encoder_and_change_what_it_says(tmp_path: Path) -> None:
    """The result has the file's own tensors, its position tables too, and adapters that were trained."""
    run, start = make_run(tmp_path, ADAPTED), some_weights()
    before = run.sam_state()
    assert run.train() == "finished"
    after = run.sam_state()
    assert set(after) == set(before)
    for key, value in start.image_encoder.items():
        assert torch.equal(after[f"image_encoder.{key}"], value), key
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    assert {key for key in after if is_adapter_key(key)} <= moved
    assert any(key.startswith("mask_decoder.") for key in moved)  # the task prompt trains it along
    trained = {name for name, _ in run.module.network.trained_parameters()}
    assert {name for name in trained if name.startswith("sam.image_encoder.")} == {
        f"sam.{key}" for key in after if is_adapter_key(key)
    }


def test_a_time_budget_shortens_the_run_and_leaves_the_weights(tmp_path: Path) -> None:
    run = make_run(tmp_path, replace(SMALL, steps=100_000, epoch_steps=100))
    before = run.sam_state()
    run.fit_to_budget(0.2)
    assert 1 <= run.steps < 5000
    assert all(torch.equal(before[name], value) for name, value in run.sam_state().items())


def test_a_time_budget_keeps_the_validation_that_it_counted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, replace(SMALL, steps=100_000, epoch_steps=100, val_batches=4))
    slow = Timing(train_step=2.0, val_step=1.5, epoch_overhead=0.5)
    monkeypatch.setattr(pretrain_run, "measure", lambda *a: slow)
    run.fit_to_budget(2)
    assert phase_seconds(run.phases[0], slow) <= 120
    run.save(run.folder / LATEST, 0, {})
    again = make_run(tmp_path, replace(SMALL, steps=100_000, epoch_steps=100, val_batches=4))
    again.resume(load_checkpoint(run.folder / LATEST))
    assert again.phases[0].val_iterations == run.phases[0].val_iterations


class _Told(SilentReporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.mark.parametrize(("step_seconds", "overruns"), [(0.2, False), (30.0, True)])
def test_a_time_budget_that_cannot_be_kept_is_said(
    step_seconds: float, overruns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = _Told()
    run = make_run(tmp_path, replace(SMALL, steps=1000, epoch_steps=100), reporter=told)
    timing = Timing(train_step=step_seconds, val_step=0.1)
    monkeypatch.setattr(pretrain_run, "measure", lambda *a: timing)
    run.fit_to_budget(1)
    assert any("Even the shortest schedule" in text for text in told.messages) == overruns
    minutes = phase_seconds(run.phases[0], timing) / 60
    assert f"about {minutes:.1f} min" in told.messages[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("prompts",), "weights": (1.0,)}, "Did you mean prompt"),
        ({"tasks": ("mae", "mae"), "weights": (1.0, 1.0)}, "once"),
        ({"weights": (1.0,)}, "one weight"),
        ({"weights": (1.0, 0.0, 1.0)}, r"weights\[1\]: 0.0 must be above 0"),
        ({"batch_size": 0}, "batch_size: 0 must be at least 1"),
        ({"clicks": -1}, "clicks: -1 must be at least 0"),
        ({"masked_share": 1.0}, "masked_share: 1.0 must be above 0 and below 1"),
        ({"learning_rate": float("nan")}, "learning_rate: nan must be a finite number"),
        ({"encoder": "vit_t"}, "MobileSAM"),
        ({"batch_size": 1}, "emix"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SamunetError, match=message):
        with_settings(SMALL, change)
    with pytest.raises(SamunetError, match=message):
        replace(SMALL, **change)


def test_shuffled_tokens_all_move_and_nothing_is_lost() -> None:
    tokens = torch.arange(2 * 49.0).view(2, 7, 7, 1)
    shuffled, moved = shifted_tokens(tokens, torch.rand(2, 7, 7))
    assert torch.equal((shuffled != tokens)[..., 0], moved)
    assert moved.flatten(1).sum(1).tolist() == [7, 7]
    assert torch.equal(shuffled.flatten(1).sort(1).values, tokens.flatten(1))


def test_padding_is_neither_hidden_nor_moved() -> None:
    real = torch.zeros(2, 7, 7, dtype=torch.bool)
    real[0, :3], real[1] = True, True
    order = torch.rand(2, 7, 7)
    hidden = hidden_patches(order, 0.75, real)
    assert hidden.flatten(1).sum(1).tolist() == [16, 37]
    assert not hidden[~real].any()
    assert torch.equal(hidden[1:], hidden_patches(order[1:], 0.75))
    tokens = torch.arange(2 * 49.0).view(2, 7, 7, 1)
    shuffled, moved = shifted_tokens(tokens, order, real)
    assert torch.equal((shuffled != tokens)[..., 0], moved)
    assert moved.flatten(1).sum(1).tolist() == [3, 7]
    assert not moved[~real].any()
    assert torch.equal(shuffled.flatten(1).sort(1).values, tokens.flatten(1))
    assert torch.equal(shuffled[1:], shifted_tokens(tokens[1:], order[1:])[0])


@pytest.mark.parametrize("task", ["mae", "emix", "shed", "teacher"])
def test_what_is_asked_of_padding_does_not_count(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the encoder says there, the loss is the same."""
    settings = replace(SMALL, tasks=(task,), weights=(1.0,))
    teacher = micro_teacher()
    torch.manual_seed(0)
    module = PretrainModule(PretrainNetwork(settings, teacher.channels), settings, teacher)
    scene = Scene(np.zeros((24, 60), np.int16), np.zeros(1, np.int16), np.zeros(1, bool))
    rng = np.random.default_rng(4)
    samples = [source().prepare(rng.integers(0, 255, (3, 24, 60), np.uint8), scene, rng) for _ in range(2)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    padded = ~batch["real"]
    assert padded.any()
    encoder = module.network.sam.image_encoder
    encode = encoder.encode_tokens
    expected = module(batch)[task]
    # Only where both pictures are padded: a mixture is a picture where either one is.
    nowhere = (padded if task != "emix" else padded.all(0, keepdim=True))[:, None]

    def elsewhere(tokens: torch.Tensor) -> torch.Tensor:
        return encode(tokens).masked_fill(nowhere, 7.0)

    monkeypatch.setattr(encoder, "encode_tokens", elsewhere)
    torch.testing.assert_close(module(batch)[task], expected)


def test_tokens_with_some_of_the_picture_are_real() -> None:
    assert real_tokens((17, 64), 64).sum(0).tolist() == [2, 2, 2, 2]
    assert real_tokens((64, 16), 64).sum(1).tolist() == [1, 1, 1, 1]
    assert real_tokens(fitted_shape((50, 50), 64), 64).all()


def test_nobody_is_mixed_with_himself() -> None:
    partner = partners(torch.rand(9))
    assert (partner != torch.arange(9)).all()
    assert partner.sort().values.tolist() == list(range(9))


def test_the_encoder_is_the_shipped_size() -> None:
    assert PretrainSettings().variant == get_variant("vit_tiny")
