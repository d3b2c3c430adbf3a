"""samunet_run_all: each step once, going on after a stop, a fair rival, no mixing of runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from commands import SHORT
from tiny_runs import WEIGHTS_FILE, make_configuration, make_plan, write_weights

from samunet.cli import plan_and_preprocess, train
from samunet.cli import run_all as command
from samunet.errors import SamunetError
from samunet.pipeline.run_all import run as run_all
from samunet.pipeline.run_all.folds import (
    DONE,
    HALFWAY,
    NEW,
    UNSCORED,
    Training,
    WantedRun,
    start_or_go_on,
)
from samunet.pipeline.run_all.run import chosen_methods
from samunet.pipeline.said_once import Say
from samunet.pipeline.train import TrainOptions, TrainOutcome, prepare_run
from samunet.planning.plan import Plan, Verdict
from samunet.records import read_json, write_json
from samunet.workspace import Workspace

NAME = "Dataset901_Tiny3D"


def plan_with(recommended: str, fitting: tuple[str, ...]) -> Plan:
    names = (recommended, *fitting)
    made = make_plan(make_configuration(recommended))
    verdicts = tuple(
        Verdict(method=name, status="recommended" if name == recommended else "fits", reasons=("why",))
        for name in names
    )
    configurations = {name: make_configuration(name) for name in names}
    return replace(made, recommended=recommended, configurations=configurations, verdicts=verdicts)


@pytest.mark.parametrize(
    ("recommended", "fitting", "chosen"),
    [
        ("3d_unet", ("2d_linear", "2d_cnn"), ("3d_unet", "2d_cnn")),
        ("3d_unet", ("2d_linear", "2d_unet"), ("3d_unet", "2d_linear")),
        ("3d_unet", ("2d_unet",), ("3d_unet",)),
        ("2d_cnn", ("3d_unet",), ("2d_cnn", "2d_unet")),
        ("3d_adapter", ("2d_unet",), ("3d_adapter", "3d_unet")),
    ],
)
def test_the_recommended_method_meets_its_rival(
    recommended: str, fitting: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    assert chosen_methods(plan_with(recommended, fitting), None) == chosen


def test_names_are_taken_as_given_and_once() -> None:
    made = plan_with("2d_cnn", ())
    assert chosen_methods(made, ["auto", "2d", "2d_unet"]) == ("2d_cnn", "2d_unet")
    with pytest.raises(SamunetError, match="2d_cn"):
        chosen_methods(made, ["2d_cn"])


def test_state_is_read_from_the_files(tmp_path: Path) -> None:
    training = Training(configuration="2d_unet", fold=0, model_folder=tmp_path, hours=1.0)
    assert training.state == NEW
    validation = tmp_path / "fold_0" / "validation"
    validation.mkdir(parents=True)
    (tmp_path / "fold_0" / "checkpoint_latest.pth").touch()
    assert training.state == HALFWAY
    (tmp_path / "fold_0" / "checkpoint_final.pth").touch()
    assert training.state == UNSCORED
    (validation / "summary.json").touch()
    assert training.state == DONE
    everything = Training(configuration="2d_unet", fold="all", model_folder=tmp_path, hours=1.0)
    (tmp_path / "fold_all").mkdir()
    (tmp_path / "fold_all" / "checkpoint_final.pth").touch()
    assert everything.state == DONE


def test_what_a_killed_overwrite_put_aside_counts(tiny_copy: Path) -> None:
    training = Training(configuration="2d_unet", fold=0, model_folder=tiny_copy / "model", hours=1.0)
    (training.model_folder / "fold_0").mkdir(parents=True)
    (training.model_folder / ".fold_0.replaced").mkdir()
    (training.model_folder / ".fold_0.replaced/checkpoint_final.pth").touch()
    run = WantedRun(
        dataset=NAME,
        plans="plans",
        tag=None,
        splits="kfold",
        asked={},
        methods={},
        cases={},
        time_budget_minutes=None,
        seed=None,
    )
    start_or_go_on(Workspace.find(tiny_copy, {}), run, [training])
    assert training.state == UNSCORED


def test_from_raw_data_to_a_report_and_on_from_a_stop(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["901", "-c", "2d", "-f", "0", "1", *SHORT, "--workspace", str(tiny_copy)]
    genuine, trained = run_all.train, []

    def train_one(workspace: object, options: object, **told: object) -> object:
        if trained:
            raise KeyboardInterrupt
        trained.append(options)
        return genuine(workspace, options, **told)  # type: ignore[arg-type]

    with monkeypatch.context() as stopped:
        stopped.setattr(run_all, "train", train_one)
        assert command.main(flags) == 130
    assert "[1 of 2] 2d_unet, fold 0" in capsys.readouterr().out
    file = tiny_copy / "results" / NAME / "report.html"
    assert not file.exists()

    assert command.main(flags) == 0
    told = capsys.readouterr().out
    assert "[1 of 2] 2d_unet, fold 0: done before" in told
    assert "[2 of 2] 2d_unet, fold 1; about" in told
    assert str(file) in told
    page = file.read_text()
    assert "2d_unet" in page

    words = ["901", "-c", "2d", "-f", "1", "9", *SHORT, "--tag", "other", "--workspace", str(tiny_copy)]
    assert command.main(words) == 2  # before fold 1 is trained for nothing
    assert "Fold 9 does not exist" in capsys.readouterr().err
    assert not list((tiny_copy / "results" / NAME).glob("*__other"))

    assert command.main([*flags, "--seed", "4"]) == 2
    assert "seed was None, is 4" in capsys.readouterr().err
    assert_folds_trained_otherwise_are_refused(tiny_copy, flags, capsys, monkeypatch)


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def assert_folds_trained_otherwise_are_refused(
    root: Path, flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folds of 2d_unet are done with `flags`; the file of options knows nothing of them any more."""
    monkeypatch.setattr(run_all, "preprocess", stop)
    options = root / "results" / NAME / "run_all_samunetPlans.json"
    options.unlink()
    assert command.main(flags) == 130  # let in
    assert read_json(options)["folds"] == [0, 1]
    options.unlink()

    run = root / "results" / NAME / "2d_unet__samunetPlans/fold_1/run.json"
    trained = read_json(run)
    write_json(run, {**trained, "time_budget_minutes": 5.0})
    assert command.main(flags) == 2
    told = capsys.readouterr().err
    assert "2d_unet, fold 1: time budget: 5 minutes there, none now" in told
    assert "fold 0" not in told
    again = "samunet_train 901 2d_unet 1 --set val_iterations=1 --set batch_size=2 --epochs 1 --iterations 2"
    assert f"{again} --npz --overwrite" in told
    assert "--tag NAME" in told
    assert not options.exists()

    write_json(run, trained)
    assert command.main([*flags, "--set", "learning_rate=0.5", "--time_budget", "7"]) == 2
    told = capsys.readouterr().err
    for fold in (0, 1):
        assert f"2d_unet, fold {fold}: learning_rate: the default there, 0.5 now; time budget" in told
    assert "samunet_train 901 2d_unet 0 1 --set val_iterations=1" in told
    assert "--set learning_rate=0.5 --epochs 1 --iterations 2 --time_budget 7 --npz --overwrite" in told


def test_a_mistyped_flag_can_be_corrected_until_something_is_trained(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_all, "preprocess", stop)
    words = ["901", "-c", "2d", "-np", "1", "-device", "cpu", "--workspace", str(tiny_copy)]
    file = tiny_copy / "results" / NAME / "run_all_samunetPlans.json"
    assert command.main([*words, "-f", "0", "--time_budget", "3"]) == 130
    assert command.main([*words, "-f", "0", "--time_budget", "30"]) == 130
    assert (read_json(file)["time_budget_minutes"], read_json(file)["folds"]) == (30.0, [0])
    assert command.main([*words, "-f", "1", "--time_budget", "30"]) == 130
    assert read_json(file)["folds"] == [0, 1]

    fold = tiny_copy / "results" / NAME / "2d_unet__samunetPlans/fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    for number in ("0", "1"):
        assert command.main([*words, "-f", number, "--time_budget", "3"]) == 2
        assert "time_budget_minutes was 30.0, is 3.0" in capsys.readouterr().err
    assert command.main([*words, "-f", "1", "--time_budget", "30"]) == 130


def test_a_fold_on_other_weights_is_refused(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights(tiny_copy / "weights")
    place = ["--workspace", str(tiny_copy)]
    encoder = ["-encoder", "vit_micro"]
    planning = ["-d", "901", "-c", "2d_cnn", "-np", "1", "-device", "cpu", *encoder, *place]
    assert plan_and_preprocess.main(planning) == 0
    assert train.main(["901", "2d_cnn", "0", *SHORT, *place]) == 0
    monkeypatch.setattr(run_all, "preprocess", stop)
    words = ["901", "-c", "2d_cnn", "-f", "0", *SHORT, *place]
    assert command.main(words) == 130
    assert command.main([*words, *encoder]) == 130  # what the plan says anyway
    capsys.readouterr()
    write_weights(tiny_copy / "weights", seed=1)
    assert command.main(words) == 2
    told = capsys.readouterr().err
    assert "2d_cnn, fold 0: weights: " in told
    (tiny_copy / "weights" / WEIGHTS_FILE).unlink()
    assert command.main(words) == 130  # nothing is left to train on them


def test_flags_of_sam_methods_do_not_meet_the_u_nets(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights(tiny_copy / "weights")
    trained: dict[str, TrainOptions] = {}

    def pretend(workspace: Workspace, options: TrainOptions, *, say: Say) -> TrainOutcome:
        prepare_run(workspace, options, say)
        trained[options.configuration] = options
        return TrainOutcome(folder=tiny_copy, interrupted=len(trained) == 2)

    monkeypatch.setattr(run_all, "train", pretend)
    words = [
        "901",
        "-c",
        "2d",
        "2d_cnn",
        "-f",
        "0",
        "-np",
        "1",
        "-device",
        "cpu",
        "--workspace",
        str(tiny_copy),
    ]
    only_sam = ["-encoder", "vit_micro", "--set", "image_skip=true"]
    told_before = tiny_copy / "results" / NAME / "run_all_samunetPlans.json"

    assert command.main([*words, *only_sam, "--set", "image_skp=true"]) == 2
    assert "image_skp" in capsys.readouterr().err
    assert command.main([*words, *only_sam, "--set", "head_width=x"]) == 2
    assert "head_width" in capsys.readouterr().err
    assert command.main(["901", "-c", "2d", *words[4:], *only_sam[:2]]) == 2
    assert "none of 2d_unet has an encoder" in capsys.readouterr().err
    assert not told_before.exists()

    assert command.main([*words, *only_sam, "--epochs", "1"]) == 130
    told = capsys.readouterr().out
    assert "-encoder and -w concern 2d_cnn only" in told
    assert told.count("2d_cnn is planned again") == 1  # met when checked and when trained
    assert told_before.exists()
    unet, cnn = trained["2d_unet"], trained["2d_cnn"]
    assert (unet.encoder, unet.settings) == (None, {"epochs": 1})
    assert (cnn.encoder, cnn.settings) == ("vit_micro", {"image_skip": True, "epochs": 1})


def test_a_setting_of_other_heads_does_not_meet_desam(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_all, "preprocess", stop)
    rest = ["-f", "0", "-np", "1", "-device", "cpu", "--workspace", str(tiny_copy), "--set", "head_width=8"]
    assert command.main(["901", "-c", "2d_desam", *rest]) == 2
    assert "Unknown setting of 2d_desam 'head_width'" in capsys.readouterr().err
    assert command.main(["901", "-c", "2d_desam", "2d_cnn", *rest]) == 130
    assert "--set head_width concerns 2d_cnn only" in capsys.readouterr().out


def test_cases_that_no_fold_has_are_said_once(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Met when the folds are read, and again when each of two is trained."""
    folds = [{"train": ["tiny_000", "tiny_001"], "val": [f"tiny_00{k}"]} for k in (2, 3)]
    write_json(tiny_copy / "raw" / NAME / "splits_final.json", folds)

    def pretend(workspace: Workspace, options: TrainOptions, *, say: Say) -> TrainOutcome:
        prepare_run(workspace, options, say)
        return TrainOutcome(folder=tiny_copy, interrupted=options.fold == 1)

    monkeypatch.setattr(run_all, "train", pretend)
    words = ["901", "-c", "2d", "-f", "0", "1", *SHORT, "--workspace", str(tiny_copy)]
    assert command.main(words) == 130
    told = capsys.readouterr().out
    assert "[2 of 2] 2d_unet, fold 1" in told
    assert told.count("leaves out 2 case(s): tiny_004, tiny_005.") == 1


def test_a_plan_that_is_there_does_not_swallow_planning_flags(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_all, "train", lambda *_, **__: TrainOutcome(folder=tiny_copy, interrupted=True))
    words = ["901", "-c", "2d", "-f", "0", "-np", "1", "-device", "cpu", "--workspace", str(tiny_copy)]
    first = ["--goal", "speed", "--hours", "3", "-gpu_memory_target", "5.04"]
    first += ["-overwrite_target_spacing", "4", "1.2", "1.2"]
    assert command.main([*words, *first]) == 130
    assert command.main([*words, *first]) == 130
    assert command.main(words) == 130
    assert "goal speed, 3 h a fold, 5 GB" in capsys.readouterr().out
    others = ["--goal", "generalize", "--hours", "4", "-gpu_memory_target", "6"]
    others += ["-overwrite_target_spacing", "4", "1", "1"]
    assert command.main([*words, *others]) == 2
    told = capsys.readouterr().err
    assert all(flag in told for flag in others if flag.startswith("-"))
    assert "-p" in told


def declare_groups(root: Path, *, all_of_one: bool = True) -> None:
    cases = [f"tiny_{number:03d}" for number in range(6 if all_of_one else 5)]
    rows = [f"{case},{'north' if number < 3 else 'south'}" for number, case in enumerate(cases)]
    (root / "raw" / NAME / "groups.csv").write_text("\n".join(["case,group", *rows]))


def test_methods_for_other_sites_are_compared_on_groups_that_training_never_saw(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declare_groups(tiny_copy)
    flags = [
        "901",
        "-c",
        "2d",
        *SHORT,
        "--goal",
        "generalize",
        "--no_ensembles",
        "--workspace",
        str(tiny_copy),
    ]
    assert command.main(flags) == 0
    told = capsys.readouterr().out
    assert "the folds are by group (leave_one_group_out)" in told
    assert "Goal generalize: --set augmentation=generalize" in told
    model = tiny_copy / "results" / NAME / "2d_unet__samunetPlans__leave_one_group_out"
    runs = [read_json(model / f"fold_{fold}" / "run.json") for fold in (0, 1)]
    assert [run["val"] for run in runs] == [
        [f"tiny_{k:03d}" for k in part] for part in ((0, 1, 2), (3, 4, 5))
    ]
    assert runs[0]["configuration"]["settings"]["augmentation"] == "generalize"
    assert "Dice by group" in (tiny_copy / "results" / NAME / "report.html").read_text()
    selection = read_json(tiny_copy / "results" / NAME / "selection.json")
    assert (selection["splits"], selection["num_cases"], selection["unit"]) == (
        "leave_one_group_out",
        6,
        "group",
    )
    assert command.main(flags) == 0  # nothing is left to do
    assert "[2 of 2] 2d_unet, fold 1: done before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "all_of_one", "tag", "told"),
    [
        (["--splits", "kfold"], True, None, "--set augmentation=generalize"),
        ([], False, None, "1 case has no group: tiny_005"),
        (["--splits", "group_kfold", "--tag", "mine"], True, "mine", ""),
    ],
)
def test_the_split_is_the_users_where_there_is_one(
    words: list[str],
    all_of_one: bool,
    tag: str | None,
    told: str,
    tiny_copy: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declare_groups(tiny_copy, all_of_one=all_of_one)
    asked: list[TrainOptions] = []

    def pretend(workspace: Workspace, options: TrainOptions, *, say: Say) -> TrainOutcome:
        asked.append(options)
        return TrainOutcome(folder=tiny_copy, interrupted=True)

    monkeypatch.setattr(run_all, "train", pretend)
    flags = ["901", "-c", "2d", "-f", "0", *SHORT, "--goal", "generalize", "--workspace", str(tiny_copy)]
    assert command.main([*flags, *words]) == 130
    assert (asked[0].splits, asked[0].tag) == ("group_kfold" if tag else None, tag)
    assert asked[0].settings["augmentation"] == "generalize"
    assert told in capsys.readouterr().out
    assert command.main([*flags, "--splits", "single_source:north"]) == 2
    assert "samunet_group_matrix" in capsys.readouterr().err
