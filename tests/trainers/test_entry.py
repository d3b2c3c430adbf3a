from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import NAMES, Listener, SilentReporter, make_configuration, make_plan, make_request

from samunet.data.splits import Split
from samunet.errors import SamunetError
from samunet.networks.sam.adapters import add_adapters
from samunet.networks.sam.variants import VARIANTS
from samunet.networks.sam.weights import build_parts
from samunet.planning.methods.unet import UNetConfig
from samunet.preprocessing import open_cases
from samunet.preprocessing.case import PreprocessedCase
from samunet.preprocessing.locations import Locations
from samunet.preprocessing.store import CaseStore
from samunet.trainers import budget
from samunet.trainers.budget import given_settings
from samunet.trainers.checkpoint import load_checkpoint
from samunet.trainers.entry import train_fold
from samunet.trainers.history import EpochRecord, read_history
from samunet.trainers.identity import _plain_keys, read_run
from samunet.trainers.run import RunRequest
from samunet.trainers.schedule import Timing
from samunet.trainers.settings import apply_overrides
from samunet.trainers.unet import UNetTrainer
from samunet.workspace import FINAL, LATEST

METHOD = "examples.small_fcn"
SETTINGS = {"epochs": 1, "iterations": 2, "val_iterations": 1, "width": 8}


@pytest.fixture
def request_fcn(tmp_path: Path) -> RunRequest:
    return make_request(tmp_path, METHOD, settings=SETTINGS)


@pytest.fixture
def trained(request_fcn: RunRequest) -> RunRequest:
    train_fold(request_fcn, SilentReporter())
    return request_fcn


def test_run_json_says_what_was_trained(trained: RunRequest) -> None:
    record = read_run(trained.folder)
    assert record is not None
    assert record.train == NAMES[:3]
    assert record.overrides == {"settings": SETTINGS}
    assert record.configuration["settings"]["width"] == 8
    assert record.phases[0].iterations == 2
    assert record.versions["torch"]
    assert record.hardware["device"] == "cpu"
    assert load_checkpoint(trained.folder / FINAL).plan.configuration(METHOD).settings["width"] == 8


def test_a_finished_run_is_not_replaced_in_silence(trained: RunRequest) -> None:
    with pytest.raises(SamunetError, match="already holds a finished training"):
        train_fold(trained, SilentReporter())
    with pytest.raises(SamunetError, match=r"is finished.*nothing to continue"):
        train_fold(replace(trained, resume=True), SilentReporter())
    assert train_fold(replace(trained, overwrite=True), SilentReporter()).status == "finished"


@pytest.mark.parametrize(
    "changes", [{"device": "nowhere"}, {"settings": {**SETTINGS, "learning_rate": -1.0}}]
)
def test_a_refused_overwrite_leaves_the_run(trained: RunRequest, changes: dict[str, object]) -> None:
    before = {file: file.stat().st_mtime_ns for file in trained.folder.rglob("*")}
    with pytest.raises(SamunetError):
        train_fold(replace(trained, overwrite=True, **changes), SilentReporter())
    assert {file: file.stat().st_mtime_ns for file in trained.folder.rglob("*")} == before


def test_settings_that_share_a_name_with_the_configuration_are_told_apart() -> None:
    """Which encoder, and whether it is frozen."""
    there = {"encoder": "vit_tiny", "settings": {"encoder": "full", "views": 6}}
    assert _plain_keys(there) == {"encoder": "vit_tiny", "--set encoder": "full", "views": 6}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"settings": {**SETTINGS, "width": 4}}, "width: 8 there, 4 now"),
        ({"settings": {**SETTINGS, "batch_size": 3}}, "batch_size: 2 there, 3 now"),
        ({"split": Split(train=NAMES[1:], val=NAMES[:1])}, "the split"),
        ({"seed": 5}, "seed: 0 there, 5 now"),
    ],
)
def test_a_folder_of_another_run_is_refused(
    trained: RunRequest, changes: dict[str, object], told: str
) -> None:
    other = replace(trained, **changes)
    with pytest.raises(SamunetError, match=told):
        train_fold(other, SilentReporter())
    (trained.folder / FINAL).unlink()
    with pytest.raises(SamunetError, match=f"cannot be continued.*{told}"):
        train_fold(replace(other, resume=True), SilentReporter())
    assert train_fold(replace(other, overwrite=True), SilentReporter()).status == "finished"


def test_a_fold_that_does_not_go_with_those_beside_it_is_warned_of(trained: RunRequest) -> None:
    """Prediction would refuse to average them, when both are trained."""
    beside = replace(trained, fold=1, folder=trained.folder.with_name("fold_1"))
    listener = Listener()
    train_fold(beside, listener)
    assert not any("Folds of different settings" in text for text in listener.messages)
    other = replace(beside, settings={**SETTINGS, "width": 4, "batch_size": 3}, overwrite=True)
    train_fold(other, listener)
    (told,) = [text for text in listener.messages if "Folds of different settings" in text]
    assert "fold 0 (batch_size: 2 there, 3 now; width: 8 there, 4 now)" in told
    assert "--tag" in told
    (trained.folder / "run.json").write_text("{")
    train_fold(replace(other, settings=SETTINGS), SilentReporter())


@pytest.mark.parametrize("killed", [False, True], ids=["raised", "killed"])
def test_a_run_that_fails_before_its_first_checkpoint_replaces_nothing(
    killed: bool, trained: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed: the process had no time to put anything back, so the next one does."""
    before = (trained.folder / FINAL).read_bytes()

    def fail(run: object) -> None:
        raise SamunetError("The loss is not finite.")

    with monkeypatch.context() as patch:
        patch.setattr("samunet.trainers.entry.fit", fail)
        if killed:
            patch.setattr("samunet.trainers.entry.settle_replaced", lambda folder: None)
        with pytest.raises(SamunetError, match="not finite"):
            train_fold(replace(trained, overwrite=True, seed=4), SilentReporter())
    if killed:
        assert not (trained.folder / FINAL).exists()
        with pytest.raises(SamunetError, match="a finished training"):
            train_fold(trained, SilentReporter())
    assert (trained.folder / FINAL).read_bytes() == before
    assert train_fold(replace(trained, overwrite=True, seed=4), SilentReporter()).status == "finished"
    assert (trained.folder / FINAL).read_bytes() != before
    assert [f.name for f in trained.folder.parent.glob("*fold*replaced")] == []


HOLD = """
import sys, time
from pathlib import Path
from samunet.trainers.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_train_into_one_folder(trained: RunRequest) -> None:
    """A process that was killed holds nothing any more."""
    request = replace(trained, overwrite=True)
    before = (trained.folder / "run.json").read_bytes()
    other = subprocess.Popen([sys.executable, "-c", HOLD, trained.folder], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SamunetError, match="Another process is training into"):
            train_fold(request, SilentReporter())
        assert (trained.folder / "run.json").read_bytes() == before
    finally:
        other.kill()
        other.communicate()
    assert train_fold(request, SilentReporter()).status == "finished"
    assert train_fold(request, SilentReporter()).status == "finished"
    assert [file.name for file in trained.folder.parent.glob(".*")] == []


def test_nothing_to_continue(request_fcn: RunRequest) -> None:
    with pytest.raises(SamunetError, match=rf"nothing to continue.*{LATEST}"):
        train_fold(replace(request_fcn, resume=True), SilentReporter())
    assert not request_fcn.folder.exists()


def test_continuing_repeats_settings_that_are_not_given(trained: RunRequest) -> None:
    (trained.folder / FINAL).unlink()
    assert train_fold(replace(trained, resume=True, settings={}), SilentReporter()).status == "finished"
    assert load_checkpoint(trained.folder / FINAL).epoch == 1


def test_continuing_repeats_the_other_settings_where_one_is_given(trained: RunRequest) -> None:
    (trained.folder / FINAL).unlink()
    name, value = next(iter(trained.settings.items()))
    one = replace(trained, resume=True, settings={name: value})
    assert train_fold(one, SilentReporter()).status == "finished"


def test_cases_that_are_not_preprocessed_are_named(request_fcn: RunRequest) -> None:
    split = Split(train=("case_0", "case_8"), val=("case_9",))
    with pytest.raises(SamunetError, match=r"2 cases of the split.*case_8, case_9"):
        train_fold(replace(request_fcn, split=split), SilentReporter())
    assert not request_fcn.folder.exists()


def test_a_training_ends_where_its_cases_are_preprocessed_in_another_way(
    request_fcn: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PreprocessedMeanwhile(SilentReporter):
        def epoch(self, record: EpochRecord, epochs: int) -> None:
            store = CaseStore(request_fcn.case_folder)
            for name in NAMES:
                old = store.open_whole(name)
                case = PreprocessedCase(image=old.image[:] + 9, label=old.label[:], record=old.record)
                store.write(name, case, Locations(), key="another", content="other-bytes")

    monkeypatch.setattr(open_cases, "OPEN_CASES", 1)
    request = replace(request_fcn, settings={**request_fcn.settings, "epochs": 500})
    with pytest.raises(SamunetError, match=r"case_\d in .* was made anew by another plan .*Train again"):
        train_fold(request, PreprocessedMeanwhile())
    with pytest.raises(SamunetError, match=r"4 of 4 cases in .* were made by another plan"):
        train_fold(replace(request, resume=True, settings={}), SilentReporter())


def test_unknown_settings_and_wrong_values(request_fcn: RunRequest) -> None:
    plan = request_fcn.plan
    for settings, told in (
        ({"witdh": 3}, "width"),
        ({"width": "wide"}, "expected int"),
        ({"epochs": 0}, "epochs: 0 must be at least 1"),
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"oversample_foreground": 3}, "at most 1"),
        ({"batch_size": 0}, "--set batch_size: 0 must be at least 1"),
        ({"patch_size": [8, 8, 8]}, "needs 2 numbers"),
        ({"patch_size": [0, 8]}, r"--set patch_size\[0\]: 0 must be at least 1"),
        ({"mirror_axes": [2]}, "no axes"),
        ({"patch_size": "big"}, "--set patch_size: expected a list"),
    ):
        with pytest.raises(SamunetError, match=told):
            apply_overrides(plan, METHOD, settings)
    changed = apply_overrides(plan, METHOD, {"patch_size": [24, 16], "batch_size": 5, "width": 4})
    configuration = changed.configuration(METHOD)
    assert (configuration.patch_size, configuration.batch_size) == ((24, 16), 5)
    assert configuration.settings["width"] == 4


def test_an_unknown_setting_lists_every_name_once() -> None:
    plan = make_plan(make_configuration("2d_cnn"))
    with pytest.raises(SamunetError, match=r"Known: .*\bencoder, encoder_") as told:
        apply_overrides(plan, "2d_cnn", {"views_": 3})
    assert str(told.value).count(" encoder,") == 1  # a setting and a field of the plan


def test_fields_of_an_encoder_are_refused_where_nothing_reads_them() -> None:
    """They would change the identity of a run, and nothing else."""
    for method in ("2d_unet", "3d_student"):
        plan = make_plan(make_configuration(method))
        for key, value in (("encoder", "frozen"), ("input_size", 224)):
            with pytest.raises(SamunetError, match=rf"--set {key}={value}: {method} has no encoder"):
                apply_overrides(plan, method, {key: value})
        with pytest.raises(SamunetError, match="Unknown setting") as told:
            apply_overrides(plan, method, {"inputsize": 224})
        assert "input_size" not in str(told.value)
    adapter = make_plan(make_configuration("3d_adapter"))
    with pytest.raises(SamunetError, match="sees patches as they are"):
        apply_overrides(adapter, "3d_adapter", {"input_size": 224})
    changed = apply_overrides(adapter, "3d_adapter", {"encoder": "full"}).configuration("3d_adapter")
    assert (changed.encoder, changed.settings["encoder"]) == ("vit_micro", "full")


def test_a_time_budget_replaces_nothing_where_nothing_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Timing writes a checkpoint into the new run's folder, and removes it."""
    monkeypatch.setattr("samunet.trainers.budget.LEAST_SECONDS", 0.0)
    request = make_request(
        tmp_path, METHOD, settings=SETTINGS, time_budget_minutes=0.1, overwrite=True, device="cpu"
    )
    with caplog.at_level("INFO"):
        assert train_fold(request, SilentReporter()).status == "finished"
        assert "Replacing" not in caplog.text
        assert train_fold(request, SilentReporter()).status == "finished"
    assert f"Replacing the run in {request.folder}" in caplog.text


def test_a_time_budget_fixes_a_schedule_that_continuing_keeps(
    request_fcn: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timed steps are run; how long they take is made up."""
    measure, timing = budget.measure, Timing(train_step=0.01, val_step=0.005, epoch_overhead=0.001)
    monkeypatch.setattr(budget, "measure", lambda *given: measure(*given) and timing)
    long = replace(
        request_fcn,
        settings={"epochs": 500, "iterations": 100, "val_iterations": 10, "width": 8},
        time_budget_minutes=0.1,
    )
    listener = Listener()
    train_fold(long, listener)
    record = read_run(long.folder)
    assert record is not None
    (length,) = record.phases
    assert length.epochs >= 10
    assert length.epochs * (0.01 * length.iterations + 0.005 * length.val_iterations + 0.001) <= 6.0
    assert any("Time budget 0.1 min" in text and "shortened" in text for text in listener.messages)
    assert len(read_history(long.folder)) == length.epochs
    # The timed steps are undone: the same schedule without a budget gives the same weights.
    fixed = {
        "epochs": length.epochs,
        "iterations": length.iterations,
        "val_iterations": length.val_iterations,
    }
    again = replace(
        long, settings={**fixed, "width": 8}, time_budget_minutes=None, folder=long.folder.parent / "again"
    )
    train_fold(again, SilentReporter())
    first, second = load_checkpoint(long.folder / FINAL), load_checkpoint(again.folder / FINAL)
    assert all((first.network[name] == second.network[name]).all() for name in first.network)
    (long.folder / FINAL).unlink()
    with pytest.raises(SamunetError, match="Leave out --time_budget"):
        train_fold(replace(long, resume=True, time_budget_minutes=1.0), SilentReporter())
    assert train_fold(replace(long, resume=True), SilentReporter()).status == "finished"


@pytest.mark.parametrize(("given", "epochs"), [({}, 24), ({"epochs": 4}, 4), ({"epochs": 500}, 24)])
def test_a_time_budget_takes_the_place_of_the_plans_hours(
    given: dict[str, int], epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of three epochs, because its patch is dear or its hours few, does not hold a budget down."""
    monkeypatch.setattr(
        "samunet.trainers.budget.measure", lambda run, seconds: Timing(train_step=1.0, val_step=1.0)
    )
    fixed = {"iterations": 1, "val_iterations": 1}
    request = make_request(
        tmp_path,
        METHOD,
        configuration_changes={"settings": {"epochs": 3, **fixed}},
        settings={"width": 8, **given},
        time_budget_minutes=0.87,  # 52 s, of which 95 % are planned for, at 2 s an epoch
    )
    train_fold(request, SilentReporter())
    record = read_run(request.folder)
    assert record is not None
    assert [length.epochs for length in record.phases] == [epochs]


@pytest.mark.parametrize("rate", [None, 0.02, 0.01])
def test_a_short_unet_trains_with_less_momentum(
    rate: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the user chose the rate, be it the usual one; a continued run keeps what was decided."""
    monkeypatch.setattr(
        "samunet.trainers.budget.measure", lambda run, seconds: Timing(train_step=2.0, val_step=1.0)
    )
    settings = {"epochs": 300, "iterations": 250, "val_iterations": 1, "batch_size": 2}
    settings |= {} if rate is None else {"learning_rate": rate}
    listener = Listener()
    request = make_request(tmp_path, "2d_unet", settings=settings, time_budget_minutes=0.5)
    train_fold(request, listener)
    record = read_run(request.folder)
    assert record is not None
    (phase,) = record.phases
    assert phase.epochs * phase.iterations < 20
    assert (phase.learning_rate, phase.momentum) == ((0.05, 0.9) if rate is None else (rate, 0.99))
    assert any("momentum 0.9 instead of 0.01 and 0.99" in text for text in listener.messages) == (
        rate is None
    )
    (request.folder / FINAL).unlink()
    assert train_fold(replace(request, resume=True), SilentReporter()).status == "finished"
    last = load_checkpoint(request.folder / FINAL).training["optimizer"]["param_groups"][0]
    assert last["momentum"] == phase.momentum


def test_a_short_unet_keeps_the_momentum_that_it_was_planned_with(tmp_path: Path) -> None:
    """A plan does not store settings that equal the defaults, but it records that the user gave them."""
    request = make_request(tmp_path, "2d_unet")
    config, few = UNetConfig(), UNetTrainer.phases(UNetConfig(epochs=10, iterations=2))
    (short,) = UNetTrainer.shortened(config, few, given=frozenset({"epochs"}))
    assert (short.learning_rate, short.momentum) == (0.05, 0.9)
    assert UNetTrainer.shortened(config, few, given=frozenset({"momentum"})) == few
    planned = replace(request.plan, overrides={"settings": {"momentum": 0.99}})
    assert given_settings(planned, {"settings": {"epochs": 3}}) == {"momentum", "epochs"}


def test_a_budget_for_a_handful_of_steps_is_called_pointless(
    request_fcn: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 3D patch made for a GPU takes a minute a step on two cores."""
    slow = Timing(train_step=60.0, val_step=20.0)
    monkeypatch.setattr("samunet.trainers.budget.measure", lambda run, seconds: slow)
    listener = Listener()
    settings = {"epochs": 500, "iterations": 100, "val_iterations": 10, "width": 8}
    train_fold(replace(request_fcn, settings=settings, time_budget_minutes=15.0), listener)
    (warning,) = [text for text in listener.messages if "next to nothing" in text]
    assert "-gpu_memory_target" in warning


def test_a_device_that_is_not_the_plans_is_warned_of(request_fcn: RunRequest) -> None:
    budget = replace(request_fcn.plan.budget, device="cuda")
    listener = Listener()
    train_fold(replace(request_fcn, plan=replace(request_fcn.plan, budget=budget)), listener)
    assert any("plan was made for cuda" in text for text in listener.messages)


def test_a_device_that_is_not_there(request_fcn: RunRequest) -> None:
    with pytest.raises(SamunetError, match="no device 'tpu'"):
        train_fold(replace(request_fcn, device="tpu"), SilentReporter())


def test_a_training_keeps_that_its_weights_have_adapters(tmp_path: Path) -> None:
    parts = build_parts(VARIANTS["vit_micro"])
    add_adapters(parts["image_encoder"])
    file = tmp_path / "adapted.pth"
    torch.save(
        {f"{part}.{k}": v for part, module in parts.items() for k, v in module.state_dict().items()}, file
    )
    short = {"epochs": 1, "iterations": 1, "val_iterations": 1}
    request = make_request(tmp_path, "2d_linear", weights=file, settings=short)
    train_fold(request, SilentReporter())
    record = read_run(request.folder)
    assert record is not None
    assert record.weights is not None
    assert record.weights.adapted
    assert load_checkpoint(request.folder / FINAL).plan.weights["vit_micro"] == record.weights


def test_weights_for_a_method_without_encoder(request_fcn: RunRequest, tmp_path: Path) -> None:
    with pytest.raises(SamunetError, match="no pretrained encoder"):
        train_fold(replace(request_fcn, weights=tmp_path / "sam.pth"), SilentReporter())


def test_fold_all_validates_on_its_training_cases(request_fcn: RunRequest) -> None:
    outcome = train_fold(
        replace(request_fcn, fold="all", split=Split(train=NAMES, val=NAMES)), SilentReporter()
    )
    assert load_checkpoint(outcome.folder / FINAL).fold == "all"
    assert json.loads((outcome.folder / "run.json").read_text())["fold"] == "all"
