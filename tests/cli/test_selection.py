"""The two commands of the selection, as typed."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from out_of_fold_runs import DATASET, MadeUp, missing

from samunet.cli import apply_postprocessing, find_best_configuration
from samunet.errors import SamunetError
from samunet.inference.finished import features_file, prediction_hash
from samunet.inference.postprocessing import Postprocessing, Rule
from samunet.pipeline.selection import load_selection
from samunet.records import read_json, write_json


@pytest.fixture
def made(tmp_path: Path) -> MadeUp:
    made = MadeUp(root=tmp_path, num_cases=6)
    made.add("2d_unet", missing(0.1), seed=1)
    made.add("2d_cnn", missing(0.5), seed=2, folds=[0, 1, 2, 4])
    return made


def test_find_best_configuration(made: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["950", "--workspace", str(made.root), "-np", "1"]
    assert find_best_configuration.main([*words, "-f", "0", "1", "2", "4"]) == 0
    told = capsys.readouterr().out
    assert "Below 6 cases" in told
    assert "selection.json" in told
    assert find_best_configuration.main(words) == 0
    told = capsys.readouterr().out
    assert "Left out: 2d_cnn: fold 3 not trained: samunet_train 950 2d_cnn 3." in told
    assert load_selection(made.workspace, DATASET).folds == (0, 1, 2, 3, 4)


def test_a_stale_selection_names_the_command_that_made_it(made: MadeUp) -> None:
    words = "950 -c 2d_unet -f 0 1 --metric SurfaceDice --no_ensembles --disable_postprocessing"
    words += " --ignore_groups --seed 3"
    where = ["--workspace", str(made.root), "-np", "1"]
    assert find_best_configuration.main([*words.split(), *where]) == 0
    found = load_selection(made.workspace, DATASET)
    assert found.command() == f"samunet_find_best_configuration {words}"
    made.add("2d_unet", missing(0.1), seed=9, folds=[1])
    with pytest.raises(SamunetError, match=f"Run samunet_find_best_configuration {words} again"):
        load_selection(made.workspace, DATASET)
    elsewhere = replace(found, splits="single_source:south side", plans="mine").command()
    read = find_best_configuration.build_parser().parse_args(shlex.split(elsewhere)[1:])
    assert (read.splits, read.plans) == ("single_source:south side", "mine")


def test_the_help_says_what_is_drawn_without_groups() -> None:
    told = " ".join(find_best_configuration.build_parser().format_help().split())
    assert "draw patients (cases, where none are declared) in the bootstrap" in told


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-c", "2d_cnn"], "fold 3 not trained: samunet_train 950 2d_cnn 3."),
        (["-c", "3d_adapter"], "Unknown trained model of Dataset950_Made '3d_adapter'"),
        (["-f", "all"], "'all' is not a fold that holds out cases"),
        (["--metric", "HD95"], "invalid choice: 'HD95'"),
    ],
)
def test_refusals(made: MadeUp, more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_best_configuration.main(["950", "--workspace", str(made.root), *more]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_apply_postprocessing(made: MadeUp, capsys: pytest.CaptureFixture[str]) -> None:
    source = made.workspace.model_folder(DATASET, "2d_unet") / "fold_0" / "validation"
    (source / "dataset.json").write_bytes((made.raw / "dataset.json").read_bytes())
    finished = {"arguments_hash": prediction_hash(read_json(source / "predict_args.json"))}
    for file in source.glob("*.nii.gz"):
        write_json(features_file(source, file.name.removesuffix(".nii.gz")), finished)
    rules = Postprocessing(
        labels=made.labels, rules=(Rule(kind="minimum_size", target="organ", minimum_mm3=1e6),)
    )
    rules.save(made.root / "rules.json")
    words = ["-i", str(source), "-o", str(made.root / "out"), "-np", "1"]
    assert apply_postprocessing.main([*words, "-pp_file", str(made.root / "rules.json")]) == 0
    told = capsys.readouterr().out
    assert "Rules: remove components of organ smaller than 1e+06 mm3." in told
    assert "2 of 2 cases changed" in told
    assert apply_postprocessing.main([*words, "-pp_file", str(made.root / "none.json")]) == 2
    assert "There is no file" in capsys.readouterr().err
