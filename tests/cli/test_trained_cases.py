"""A trained fold is validated, or counted as done, only on the cases that it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import SHORT

from samunet.cli import train
from samunet.pipeline import train_folds
from samunet.pipeline.train import TrainOptions, TrainOutcome, _planning_overrides
from samunet.trainers.claim import claimed
from samunet.trainers.identity import read_run, settle_all_replaced

NAME = "Dataset901_Tiny3D"
GROUPS = {f"tiny_{i:03d}": "north" if i % 2 else "south" for i in range(6)}
WORDS = ("901", "2d", "0")
"""Two groups, so that folds by group are others than the default ones."""


@pytest.fixture
def grouped(workspace: Path) -> Path:
    lines = ["case,group", *(f"{case},{group}" for case, group in GROUPS.items())]
    (workspace / "raw" / NAME / "groups.csv").write_text("\n".join(lines) + "\n")
    return workspace


def model_folder(root: Path, tag: str = "") -> Path:
    return root / "results" / NAME / f"2d_unet__samunetPlans{tag and '__' + tag}"


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def validated(folder: Path) -> list[str]:
    summary = json.loads((folder / "validation/summary.json").read_text())
    return [case["case"] for case in summary["metric_per_case"]]


def exchange_folds(root: Path) -> None:
    """The folds in the splits file change places."""
    file = root / "preprocessed" / NAME / "splits_final.json"
    file.write_text(json.dumps(json.loads(file.read_text())[::-1]))


def test_a_split_that_is_not_given_again_is_that_of_the_run(
    grouped: Path, capsys: pytest.CaptureFixture[str], refused
) -> None:
    where, tagged = ["--workspace", str(grouped)], ["--tag", "g"]
    model = model_folder(grouped, "g")
    assert train.main([*WORDS, "--splits", "group_kfold", *tagged, *SHORT, *where]) == 0
    (model / "fold_0/validation/summary.json").unlink()
    assert train.main([*WORDS, "--val", *tagged, "-device", "cpu", *where]) == 0
    assert sorted(validated(model / "fold_0")) == record_of(model / "fold_0")["val"]
    assert "split by group_kfold, as in 2d_unet__samunetPlans__g" in capsys.readouterr().out

    told = refused(train.main, grouped, *WORDS, "--val", *tagged, "--splits", "kfold")
    assert "trained on other cases than fold 0 of the split kfold" in told
    assert "Give --splits group_kfold, as it was trained" in told
    told = refused(train.main, grouped, *WORDS, "1", "--c", *tagged, "--splits", "kfold")
    assert "Give --splits group_kfold, as it was trained" in told

    assert train.main([*WORDS, "1", "--c", *tagged, *where]) == 0
    first, second = (record_of(model / f"fold_{number}") for number in (0, 1))
    assert (second["train"], second["val"]) == (first["val"], first["train"])
    assert second["overrides"] == first["overrides"]


def test_folds_that_were_exchanged_since_are_not_scored(grouped: Path, refused) -> None:
    model = model_folder(grouped)
    before = (model / "fold_0/validation/summary.json").read_bytes()
    exchange_folds(grouped)
    leaked = set(record_of(model / "fold_0")["train"])
    for words in ((*WORDS, "--val"), (*WORDS, "1", "--val"), (*WORDS, "1", "--c")):
        told = refused(train.main, grouped, *words)
        assert "splits_final.json) has now: of the 1 to be validated it was trained on 1 case (" in told
        assert any(f"({case})" in told for case in leaked)
        assert "splits_final.json back as it was" in told
        assert "--overwrite" in told
    assert (model / "fold_0/validation/summary.json").read_bytes() == before
    assert not (model / "fold_1").exists()


def test_a_setting_given_with_c_leaves_the_others_in_planning(workspace: Path) -> None:
    found = read_run(model_folder(workspace) / "fold_0")
    assert found is not None
    options = TrainOptions(
        dataset=NAME, configuration="2d_unet", fold=0, resume=True, settings={"iterations": 3}
    )
    planned = _planning_overrides(options, found).settings
    assert planned == {"epochs": 1, "iterations": 3, "val_iterations": 1, "batch_size": 2}


def test_one_fold_can_be_continued_again_and_again(
    workspace: Path, capsys: pytest.CaptureFixture[str], refused
) -> None:
    """As a job script does, which does not know how far it came."""
    words, fold = [*WORDS, "--c", "--workspace", str(workspace)], model_folder(workspace) / "fold_0"
    before = {file: file.stat().st_mtime_ns for file in fold.rglob("*")}
    assert train.main(words) == 0
    assert "Fold 0 is trained and validated already." in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in fold.rglob("*")} == before
    assert train.main([*words, "--set", "momentum=0.99"]) == 0  # the default, said aloud
    told = refused(train.main, workspace, *WORDS, "--c", "--epochs", "7")
    assert "epochs: 1 there, 7 now" in told

    (fold / "validation/summary.json").unlink()
    checkpoint = (fold / "checkpoint_final.pth").stat().st_mtime_ns
    assert train.main([*words, "--epochs", "1", "-device", "cpu"]) == 0
    assert sorted(validated(fold)) == record_of(fold)["val"]
    assert (fold / "checkpoint_final.pth").stat().st_mtime_ns == checkpoint

    exchange_folds(workspace)
    assert "it was trained on" in refused(train.main, workspace, *WORDS, "--c")


def test_c_begins_a_fold_that_was_never_started(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As nnU-Net does, with a warning; a job script need not know whether it is the first time."""
    words = ["901", "2d", "1", "--c", "-np", "1", "-device", "cpu", "--workspace", str(workspace)]
    assert train.main(words) == 0
    told, fold = capsys.readouterr().out, model_folder(workspace) / "fold_1"
    assert f"nothing to continue in {fold}: no checkpoint_latest.pth. Fold 1 is started" in told
    assert "begins with the settings of fold 0" in told
    assert record_of(fold)["overrides"] == record_of(model_folder(workspace) / "fold_0")["overrides"]
    assert train.main(words) == 0
    assert "Fold 1 is trained and validated already." in capsys.readouterr().out


def test_what_a_fold_under_c_begins_with(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given alone, or what it was started with before it was killed without a checkpoint."""
    begun: list[TrainOptions] = []

    def pretend(_: object, options: TrainOptions, *__: object, **___: object) -> TrainOutcome:
        begun.append(options)
        return TrainOutcome(folder=workspace)

    monkeypatch.setattr(train_folds, "train", pretend)
    where = ["--workspace", str(workspace)]
    assert train.main([*WORDS, "--c", "--tag", "new", *SHORT, *where]) == 0
    told = capsys.readouterr().out
    assert "Warning: There is nothing to continue" in told
    assert "correct --tag, -p or --workspace" in told
    assert "begins with" not in told
    folds = [model_folder(workspace) / f"fold_{number}" for number in (0, 1)]
    folds[1].mkdir()
    record = record_of(folds[0])
    record |= {"fold": 1, "overrides": {"settings": {"epochs": 9}}, "seed": 5}
    (folds[1] / "run.json").write_text(json.dumps(record))
    for named in (["1"], ["0", "1"]):
        assert train.main(["901", "2d", *named, "--c", *where]) == 0
        assert "begins with what it was started with before" in capsys.readouterr().out
    new, *again = begun
    assert (new.resume, new.settings["epochs"], new.like) == (False, 1, None)
    assert [(o.resume, o.settings, o.seed) for o in again] == [(False, {"epochs": 9}, 5)] * 2


def test_a_killed_overwrite_gives_the_run_back_before_c_looks_for_it(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed before the first checkpoint of the new run; the old one lies aside."""
    fold = model_folder(workspace) / "fold_0"
    checkpoint, aside = (fold / "checkpoint_final.pth").read_bytes(), fold.with_name(".fold_0.replaced")
    fold.rename(aside)
    fold.mkdir()
    (fold / "run.json").write_bytes((aside / "run.json").read_bytes())
    with claimed(fold):  # as long as the process lives
        settle_all_replaced(fold.parent)
    assert aside.is_dir()
    assert train.main([*WORDS, "--c", "--workspace", str(workspace)]) == 0
    told = capsys.readouterr().out
    assert f"is back in {fold}" in told
    assert "Fold 0 is trained and validated already." in told
    assert (fold / "checkpoint_final.pth").read_bytes() == checkpoint
    assert not aside.exists()
