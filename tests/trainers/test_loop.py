from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import SilentReporter, make_request
from torch import Tensor, nn

from samunet.errors import SamunetError
from samunet.trainers import import_trainer, loop, step
from samunet.trainers.base import Phase, TrainingModule, build_optimizer, decayed_apart
from samunet.trainers.checkpoint import load_checkpoint
from samunet.trainers.devices import Precision
from samunet.trainers.entry import train_fold
from samunet.trainers.history import cut_history, read_history
from samunet.trainers.reporter import StepReport
from samunet.trainers.run import RunRequest
from samunet.trainers.signals import stop_signals
from samunet.workspace import BEST, FINAL, LATEST

METHOD = "examples.small_fcn"
SETTINGS = {"epochs": 3, "iterations": 4, "val_iterations": 2, "width": 8}


@pytest.fixture
def request_fcn(tmp_path: Path) -> RunRequest:
    return make_request(tmp_path, METHOD, settings=SETTINGS)


class _SignalAt(SilentReporter):
    """Sends a signal to this process after some step."""

    def __init__(self, number: signal.Signals, step: int) -> None:
        self.number, self.left = number, step

    def step(self, report: StepReport) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path).network


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_its_files(request_fcn: RunRequest) -> None:
    outcome = train_fold(request_fcn, SilentReporter())
    assert outcome.status == "finished"
    names = {path.name for path in outcome.folder.iterdir()}
    assert names == {BEST, FINAL, "run.json", "history.jsonl", "progress.png"}
    records = read_history(outcome.folder)
    assert [record.epoch for record in records] == [0, 1, 2]
    assert records[0].train.keys() == {"loss", "dice", "ce"}
    assert records[0].patch_dice.keys() == {"organ", "lesion"}
    assert all(record.seconds >= record.waiting_seconds > 0 for record in records)
    assert records[0].learning_rate > records[-1].learning_rate
    assert (outcome.folder / "progress.png").read_bytes()[:4] == b"\x89PNG"


def test_a_validation_that_overflows_once_ends_nothing(
    request_fcn: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = step.TrainingStep.validate

    def overflowing(self: step.TrainingStep, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**validate(self, batch), "loss": torch.tensor(float("inf"))}

    monkeypatch.setattr(step.TrainingStep, "validate", overflowing)
    outcome = train_fold(request_fcn, SilentReporter())
    records = cut_history(outcome.folder, 2)
    assert [record.val["loss"] for record in records] == [None, None]
    assert math.isnan(records[0].val_loss)
    assert records[0].val["dice"] is not None
    assert (outcome.folder / "progress.png").exists()


def test_curves_that_cannot_be_drawn_end_no_training(
    request_fcn: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "draw_progress", refused)
    outcome = train_fold(request_fcn, SilentReporter())
    assert outcome.status == "finished"
    assert not (outcome.folder / "progress.png").exists()


@pytest.mark.parametrize(
    ("step", "number"),
    [(2, signal.SIGINT), (5, signal.SIGTERM), (8, signal.SIGINT), (14, signal.SIGTERM)],
)
def test_a_signal_stops_at_a_step_and_the_run_continues_exactly(
    request_fcn: RunRequest, tmp_path: Path, step: int, number: signal.Signals
) -> None:
    whole = train_fold(replace(request_fcn, folder=tmp_path / "whole"), SilentReporter())
    stopped = train_fold(request_fcn, _SignalAt(number, step))
    assert stopped.status == "interrupted"
    assert not (stopped.folder / FINAL).exists()
    assert train_fold(replace(request_fcn, resume=True), SilentReporter()).status == "finished"
    assert_equal(weights(whole.folder / FINAL), weights(stopped.folder / FINAL))
    expected, found = read_history(whole.folder), read_history(stopped.folder)
    assert [record.train for record in found] == [record.train for record in expected]
    assert [record.patch_dice for record in found] == [record.patch_dice for record in expected]


@pytest.mark.parametrize("step", [2, 4], ids=["training", "validation"])
def test_draws_of_the_method_continue_exactly(tmp_path: Path, step: int) -> None:
    """Points of `2d_desam`: what validation draws is none of the training's business."""
    settings = {**SETTINGS, "epochs": 2, "iterations": 3}
    del settings["width"]
    request = make_request(tmp_path, "2d_desam", settings=settings)
    whole = train_fold(replace(request, folder=tmp_path / "whole"), SilentReporter())
    train_fold(request, _SignalAt(signal.SIGINT, step))
    assert train_fold(replace(request, resume=True), SilentReporter()).status == "finished"
    assert_equal(weights(whole.folder / FINAL), weights(request.folder / FINAL))


def test_a_run_goes_on_with_scaled_losses(request_fcn: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun in fp32, as on a CPU, and continued in fp16, as the same setting means on CUDA."""
    train_fold(request_fcn, _SignalAt(signal.SIGINT, 2))
    monkeypatch.setattr(Precision, "choose", classmethod(lambda cls, *a: cls(name="fp16")))
    assert train_fold(replace(request_fcn, resume=True), SilentReporter()).status == "finished"
    assert load_checkpoint(request_fcn.folder / FINAL).training["scaler"]


def test_an_end_between_the_first_two_checkpoints(request_fcn: RunRequest, tmp_path: Path) -> None:
    """The best one is there and the latest is not yet: it is gone on from, not asked for `--c` in circles."""
    whole = train_fold(replace(request_fcn, folder=tmp_path / "whole"), SilentReporter())
    train_fold(request_fcn, _SignalAt(signal.SIGINT, 8))
    (request_fcn.folder / LATEST).unlink()
    assert load_checkpoint(request_fcn.folder / BEST).epoch == 1
    assert train_fold(replace(request_fcn, resume=True), SilentReporter()).status == "finished"
    assert_equal(weights(whole.folder / FINAL), weights(request_fcn.folder / FINAL))


def test_continuing_drops_history_that_the_checkpoint_does_not_know(request_fcn: RunRequest) -> None:
    train_fold(request_fcn, _SignalAt(signal.SIGINT, 8))
    history = request_fcn.folder / "history.jsonl"
    line = json.loads(history.read_text().splitlines()[0])
    with open(history, "a") as file:
        file.write(json.dumps({**line, "epoch": 1}) + '\n{"epoch": 2, "cut o')
    train_fold(replace(request_fcn, resume=True), SilentReporter())
    assert [record.epoch for record in read_history(request_fcn.folder)] == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"PK cut off"])
def test_where_the_latest_checkpoint_is_damaged_the_best_is_named(
    request_fcn: RunRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """Copied over the other it continues exactly, and the history with it."""
    whole = train_fold(replace(request_fcn, folder=tmp_path / "whole"), SilentReporter())
    best_of_first = iter([0.5, 0.1, 0.1, 0.1])
    monkeypatch.setattr(loop, "moving_average", lambda *_: next(best_of_first))
    folder = train_fold(request_fcn, _SignalAt(signal.SIGTERM, 14)).folder
    monkeypatch.undo()
    assert [load_checkpoint(folder / name).epoch for name in (BEST, LATEST)] == [1, 2]
    history = (folder / "history.jsonl").read_bytes()
    (folder / LATEST).write_bytes(content)
    with pytest.raises(SamunetError, match=rf"{LATEST} cannot be read.*{BEST}.*after epoch 1\b"):
        train_fold(replace(request_fcn, resume=True), SilentReporter())
    assert (folder / LATEST).read_bytes() == content
    assert (folder / "history.jsonl").read_bytes() == history
    shutil.copy(folder / BEST, folder / LATEST)
    assert train_fold(replace(request_fcn, resume=True), SilentReporter()).status == "finished"
    assert_equal(weights(whole.folder / FINAL), weights(folder / FINAL))
    expected, found = read_history(whole.folder), read_history(folder)
    assert [(r.epoch, r.train) for r in found] == [(r.epoch, r.train) for r in expected]


def test_a_damaged_checkpoint_without_a_whole_one_beside_it(request_fcn: RunRequest) -> None:
    folder = train_fold(request_fcn, _SignalAt(signal.SIGTERM, 14)).folder
    for name in (LATEST, BEST):
        (folder / name).write_bytes(b"")
    with pytest.raises(
        SamunetError, match=rf"{LATEST} cannot be read.*Copy it again, or train again"
    ) as told:
        train_fold(replace(request_fcn, resume=True), SilentReporter())
    assert BEST not in str(told.value)


def test_the_same_request_gives_the_same_weights(request_fcn: RunRequest, tmp_path: Path) -> None:
    first = train_fold(request_fcn, SilentReporter())
    torch.rand(3)
    second = train_fold(replace(request_fcn, folder=tmp_path / "again"), SilentReporter())
    other = train_fold(replace(request_fcn, folder=tmp_path / "other", seed=1), SilentReporter())
    assert_equal(weights(first.folder / FINAL), weights(second.folder / FINAL))
    a, b = weights(first.folder / FINAL), weights(other.folder / FINAL)
    assert not all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_result(request_fcn: RunRequest, tmp_path: Path, workers: int) -> None:
    alone = train_fold(request_fcn, SilentReporter())
    threads = torch.get_num_threads()
    helped = train_fold(replace(request_fcn, folder=tmp_path / "helped", workers=workers), SilentReporter())
    assert torch.get_num_threads() == threads
    assert_equal(weights(alone.folder / FINAL), weights(helped.folder / FINAL))


def test_accumulation_sees_as_many_samples_as_a_larger_batch(tmp_path: Path) -> None:
    small = make_request(tmp_path, METHOD, settings={**SETTINGS, "accumulate": 3})
    outcome = train_fold(small, SilentReporter())
    record = read_history(outcome.folder)[0]
    samples = 4 * 3 * 2
    assert samples / record.samples_per_second < record.seconds  # which is training and validation


class _Speeds(SilentReporter):
    """Keeps the speed that the screen shows at each step."""

    def __init__(self) -> None:
        self.shown: list[float] = []

    def step(self, report: StepReport) -> None:
        self.shown.append(report.samples_per_second)


def test_the_speed_is_that_of_training(request_fcn: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    validate, pause = step.TrainingStep.validate, 0.3

    def slowly(self: step.TrainingStep, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        time.sleep(pause)
        return validate(self, batch)

    monkeypatch.setattr(step.TrainingStep, "validate", slowly)
    speeds = _Speeds()
    train_fold(request_fcn, speeds)
    steps, validations, samples = 4, 2, 4 * 2
    for number, record in enumerate(read_history(request_fcn.folder)):
        assert samples / record.samples_per_second < record.seconds - validations * pause
        epoch = speeds.shown[number * (steps + validations) :][: steps + validations]
        assert epoch[steps:] == [record.samples_per_second] * validations


def test_time_before_an_interruption_counts(request_fcn: RunRequest) -> None:
    train_fold(request_fcn, _SignalAt(signal.SIGINT, 2))
    kept = load_checkpoint(request_fcn.folder / LATEST).training
    assert 0 < kept["training_seconds"] <= kept["seconds"]


class _Broken(TrainingModule):
    """Losses are NaN at some steps from one on."""

    def __init__(self, inner: TrainingModule, at: int, steps: int = 1) -> None:
        super().__init__(inner.network)
        self.inner, self.at, self.steps = inner, at, steps

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        losses = self.inner(batch)
        if self.training:
            self.at -= 1
            if -self.steps < self.at <= 0:
                losses["loss"] = losses["loss"] * float("nan")
        return losses


def test_a_loss_that_is_not_finite_stops_the_run(
    request_fcn: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = import_trainer("examples.small_fcn:SmallFcnTrainer")
    build = trainer.build_training
    monkeypatch.setattr(trainer, "build_training", lambda *a: _Broken(build(*a), 6))
    with pytest.raises(SamunetError, match=r"nan in step 2 of epoch 2.*checkpoint_latest\.pth"):
        train_fold(request_fcn, SilentReporter())
    assert load_checkpoint(request_fcn.folder / LATEST).epoch == 1


def test_an_overflow_in_fp16_ends_nothing(request_fcn: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler passes such a step over; continuing would meet it again, for samples do not depend on it."""
    trainer = import_trainer("examples.small_fcn:SmallFcnTrainer")
    build, said = trainer.build_training, []
    monkeypatch.setattr(trainer, "build_training", lambda *a: _Broken(build(*a), 6))
    monkeypatch.setattr(Precision, "choose", classmethod(lambda cls, *a: cls(name="fp16")))
    reporter = SilentReporter()
    monkeypatch.setattr(reporter, "message", said.append)
    assert train_fold(request_fcn, reporter).status == "finished"
    records = read_history(request_fcn.folder)
    assert len(records) == 3
    assert all(math.isfinite(record.train["loss"]) for record in records)
    assert abs(records[1].train["loss"] / records[0].train["loss"]) > 0.5  # mean of the three that count
    (told,) = (text for text in said if "not finite" in text)
    assert "the loss of 1 step(s) of epoch 2" in told
    monkeypatch.setattr(trainer, "build_training", lambda *a: _Broken(build(*a), 5, steps=4))
    with pytest.raises(SamunetError, match=r"nan in step 4 of epoch 2.*precision=fp32"):
        train_fold(replace(request_fcn, overwrite=True), SilentReporter())


class _Steep(_Broken):
    """Losses are finite, and a gradient is not, at a step."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        losses = self.inner(batch)
        if self.training:
            self.at -= 1
            if self.at == 0:
                losses["loss"].register_hook(lambda gradient: gradient * float("inf"))
        return losses


@pytest.mark.parametrize(("step", "epochs"), [(4, 0), (8, 1), (12, 2)])
def test_weights_that_are_not_finite_are_never_written(
    request_fcn: RunRequest, monkeypatch: pytest.MonkeyPatch, step: int, epochs: int
) -> None:
    """In the last step of an epoch no further training loss shows it."""
    trainer = import_trainer("examples.small_fcn:SmallFcnTrainer")
    build = trainer.build_training
    monkeypatch.setattr(trainer, "build_training", lambda *a: _Steep(build(*a), step))
    with pytest.raises(
        SamunetError, match=f"Weights became infinite or NaN at the end of epoch {epochs + 1}"
    ):
        train_fold(request_fcn, SilentReporter())
    assert not (request_fcn.folder / FINAL).exists()
    assert (request_fcn.folder / LATEST).exists() == bool(epochs)
    if epochs:
        latest = load_checkpoint(request_fcn.folder / LATEST)
        assert latest.epoch == epochs
        assert all(value.isfinite().all() for value in latest.network.values())


def test_phases_follow_each_other(request_fcn: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second phase trains the last layer alone, with an optimizer of its own; continuing knows it."""
    trainer = import_trainer("examples.small_fcn:SmallFcnTrainer")
    first = trainer.phases

    def last_layer(network: nn.Module) -> list[dict[str, object]]:
        return [{"params": list(network.layers[-1].parameters()), "lr_factor": 0.5}]

    def two(config: object) -> tuple[Phase, ...]:
        (phase,) = first(config)  # type: ignore[arg-type]
        return (
            replace(phase, epochs=1),
            replace(phase, name="last", epochs=2, optimizer="sgd", groups=last_layer),
        )

    monkeypatch.setattr(trainer, "phases", two)
    outcome = train_fold(request_fcn, _SignalAt(signal.SIGINT, 6))
    before = weights(outcome.folder / LATEST)
    train_fold(replace(request_fcn, resume=True), _SignalAt(signal.SIGINT, 6))
    train_fold(replace(request_fcn, resume=True), SilentReporter())
    after = weights(outcome.folder / FINAL)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"layers.12.weight", "layers.12.bias"}
    assert [record.phase for record in read_history(outcome.folder)] == ["training", "last", "last"]


def test_optimizers_and_groups() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    phase = Phase(
        name="p",
        optimizer="adamw",
        learning_rate=1.0,
        weight_decay=0.1,
        epochs=1,
        iterations=1,
        val_iterations=1,
        schedule="constant",
        groups=lambda n: decayed_apart(list(n[0].named_parameters()), lr_factor=0.2),
    )
    optimizer = build_optimizer(phase, network)
    assert [(len(g["params"]), g["weight_decay"], g["lr_factor"]) for g in optimizer.param_groups] == [
        (1, 0.1, 0.2),
        (1, 0.0, 0.2),
    ]
    assert [p.requires_grad for p in network.parameters()] == [True, True, False, False]
    sgd = build_optimizer(replace(phase, optimizer="sgd", momentum=0.9), network)
    assert sgd.defaults["nesterov"]
    assert sgd.defaults["momentum"] == 0.9


def test_signals_outside_the_main_thread_are_left_alone() -> None:
    seen, before = [], signal.getsignal(signal.SIGINT)  # a background shell ignores it

    def work() -> None:
        with stop_signals() as flag:
            seen.append(flag.name)
            seen.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None, True]
    assert signal.getsignal(signal.SIGINT) is before
