"""The benchmarks' own choices: who is trained on, and who must never be."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samunet.data.dataset import RawDataset
from samunet.planning.methods import get_method, settings_of

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a script of the benchmarks by name."""
    pytest.importorskip("psutil")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def few_label(load: Callable[[str], Any]) -> Any:
    return load("few_label")


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    """Empty label files of 100 patients with two frames each."""
    folder = tmp_path / "Dataset002_ACDC"
    (folder / "labelsTr").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    for patient in range(1, 101):
        for frame in (1, 12):
            (folder / "labelsTr" / f"patient{patient:03d}_frame{frame:02d}.nii.gz").touch()
    return folder


def test_labelled_cases_are_of_different_patients_and_none_is_held_out(few_label: Any, acdc: Path) -> None:
    held_out = set(json.loads((BENCHMARKS / "held_out.json").read_text())["datasets"][acdc.name]["held_out"])
    for seed in range(20):
        cases = few_label.labelled_cases(acdc, acdc.name, 5, seed)
        assert len({case.split("_")[0] for case in cases}) == 5
        assert not held_out & set(cases)
        # With one volume it is the first of the five: more labels, not other ones.
        assert few_label.labelled_cases(acdc, acdc.name, 1, seed) == cases[:1]
    draws = {tuple(few_label.labelled_cases(acdc, acdc.name, 5, seed)) for seed in range(3)}
    assert len(draws) == 3


def test_a_pair_is_placed_under_the_name_that_is_looked_for(few_label: Any, tmp_path: Path) -> None:
    for part in ("encoder", "decoder"):
        (tmp_path / f"trial_{part}.safetensors").write_text(part)
    few_label.place_weights(tmp_path / "trial_encoder.safetensors", tmp_path / "weights")
    found = sorted(file.name for file in (tmp_path / "weights").iterdir())
    assert found == ["samunet_vit_tiny_decoder.safetensors", "samunet_vit_tiny_encoder.safetensors"]
    (tmp_path / "whole.pth").write_text("x")
    few_label.place_weights(tmp_path / "whole.pth", tmp_path / "other")
    assert (tmp_path / "other" / "samunet_vit_tiny.pth").is_file()


def test_every_system_is_reported_against_the_weights_that_ship(
    few_label: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = few_label.STUDIES["primary"][0].name(0)
    scores = {"2d_cnn_tuned": 0.5, "2d_cnn_scratch": 0.375, "2d_unet": 0.625}
    steps = {
        f"{name} {system} scores": {"dice": dice, "cases": {case: {"LV": dice} for case in "ab"}}
        for system, dice in scores.items()
    }
    few_label.report(steps)
    printed = capsys.readouterr().out
    assert "2d_cnn_tuned - 2d_cnn_scratch: +12.5 points [+12.5, +12.5] over patients (1 seed)" in printed
    assert "2d_cnn_tuned - 2d_unet: -12.5 points [-12.5, -12.5] over patients (1 seed)" in printed


def test_the_studys_pairs_differ_by_the_weights_only(few_label: Any) -> None:
    control = set(few_label.RANDOM)
    for method in ("2d_cnn", "2d_autosam"):
        for kind, without in (("frozen", "frozen_random"), ("tuned", "scratch")):
            ours, theirs = (few_label.SYSTEMS[f"{method}_{name}"] for name in (kind, without))
            assert set(theirs[1]) - set(ours[1]) == control - {"--set"}


def test_what_needs_no_weights_is_taken_over_from_results_with_others(few_label: Any) -> None:
    draw = "Dataset002_ACDC n5 seed0"
    kept = [
        f"{draw} {system} scores" for system in ("2d_cnn_scratch", "2d_autosam_frozen_random", "nnunetv2")
    ]
    kept += [f"{draw} 2d_unet train", f"{draw} cases"]
    left = [f"{draw} {system} scores" for system in ("2d_cnn_frozen", "2d_autosam_tuned")]
    left += [f"{draw} plan"]  # it names the weights
    assert set(few_label.taken_over(dict.fromkeys([*kept, *left], 1))) == set(kept)


def test_the_long_run_notices_a_held_out_case(load: Callable[[str], Any], tmp_path: Path) -> None:
    script = load("pretrain_vit_tiny")
    for dataset in script.DATASETS:
        index = tmp_path / "slices" / dataset / "index.json"
        index.parent.mkdir(parents=True)
        index.write_text(json.dumps({"cases": [{"name": "of_nobody"}]}))
    script.check_sources(tmp_path)
    held_out = script.held_out_cases(script.DATASETS[1])[0]
    index.write_text(json.dumps({"cases": [{"name": held_out}]}))
    with pytest.raises(AssertionError):
        script.check_sources(tmp_path)


def test_a_stage_of_the_long_run_begins_with_the_one_before(
    load: Callable[[str], Any], tmp_path: Path
) -> None:
    script = load("pretrain_vit_tiny")
    first, second = script.STAGES
    assert script.start(tmp_path, first) == ()
    with pytest.raises(SystemExit, match="stage 1"):
        script.start(tmp_path, second)
    file = (
        script.half_weights(script.stage_workspace(tmp_path, first)) / "samunet_vit_tiny_encoder.safetensors"
    )
    file.parent.mkdir(parents=True)
    file.touch()
    assert script.start(tmp_path, second) == ("-w", str(file))
    seeds = [words[words.index("--seed") + 1] for words in script.STAGES.values()]
    assert len(set(seeds)) == len(seeds)  # the same seed would show the same pictures again


def test_what_a_command_prints_is_kept(
    load: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("pretrain_vit_tiny")
    code = script.call([sys.executable, "-c", "print('step 1'); raise SystemExit(3)"], tmp_path / "log.txt")
    assert code == 3
    assert (tmp_path / "log.txt").read_text() == "step 1\n"
    assert capsys.readouterr().out == "step 1\n"
    (tmp_path / "log.txt").write_text(f"Workspace: {tmp_path}\n")
    script.keep_record(tmp_path, tmp_path, tmp_path / "kept")
    assert (tmp_path / "kept" / "log.txt").read_text() == "Workspace: WORKSPACE\n"


def test_a_carried_results_file_repeats_only_what_is_gone(load: Callable[[str], Any], tmp_path: Path) -> None:
    script = load("measured_commands")
    file, product = tmp_path / "results.json", tmp_path / "product"
    command = [sys.executable, "-c", f"open({str(product)!r}, 'a').write('x')"]
    script.ResultsFile(file, {}).measure("step", command, tmp_path / "log.txt", product=product)
    carried = script.ResultsFile(file, {})
    carried.measure("step", command, tmp_path / "log.txt", product=product)
    assert product.read_text() == "x"
    product.unlink()
    carried.measure("step", command, tmp_path / "log.txt")  # without a product the record suffices
    assert not product.exists()
    carried.measure("step", command, tmp_path / "log.txt", product=product)
    assert product.read_text() == "x"


def test_both_frames_of_a_patient_are_one_draw_of_the_interval(load: Callable[[str], Any]) -> None:
    script = load("real_runs")
    dice = {"patient001": 0.5, "patient002": 0.75, "patient003": 0.875}
    once = {name: {"LV": value} for name, value in dice.items()}
    twice = {f"{name}_frame{k:02d}": {"LV": value} for name, value in dice.items() for k in (1, 9)}
    assert script.interval(twice) == pytest.approx(script.interval(once))
    assert script.interval(once, once) == pytest.approx(script.interval(once))


def test_the_systems_set_what_their_methods_know(few_label: Any) -> None:
    of_the_plan = {"encoder_weights", "input_size", "batch_size"}
    for method, words in few_label.SYSTEMS.values():
        if method != few_label.PEER:
            named = {pair.split("=")[0] for key, pair in pairwise(words) if key == "--set"} - of_the_plan
            assert named == set(settings_of(get_method(method).config, dict.fromkeys(named)))


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    """Empty cases of the three sets of generalization_runs; all of Dataset003 are held out."""
    held_out = json.loads((BENCHMARKS / "held_out.json").read_text())["datasets"]
    trained = {"Dataset002_ACDC": "patient999_frame01", "Dataset008_Prostate": "RUNMC_99"}
    for dataset in (*trained, "Dataset003_MSCMR_LGE"):
        folder = tmp_path / "data" / dataset
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
        for case in [*held_out[dataset]["held_out"], *filter(None, [trained.get(dataset)])]:
            (folder / "imagesTr" / f"{case}_0000.nii.gz").touch()
            (folder / "labelsTr" / f"{case}.nii.gz").touch()
    return tmp_path / "data"


def test_generalization_runs_keeps_the_targets_out_of_training(
    load: Callable[[str], Any], sites: Path, tmp_path: Path
) -> None:
    """A set of which every case is held out is only tested on."""
    runs, measured = load("generalization_runs"), load("measured_commands")
    results = measured.ResultsFile(tmp_path / "results.json", {})
    for task, (source, targets) in runs.TASKS.items():
        bench = runs.Bench(sites, tmp_path / task, Path(), "cpu", results)
        results.save(f"{task} plan", {})  # as if planned
        plan = bench.workspace() / "preprocessed" / source / "samunetPlans.json"
        plan.parent.mkdir(parents=True)
        plan.touch()
        runs.prepare(bench, task, runs.parse(["--data", str(sites), "--work", str(tmp_path)]))
        raw = bench.workspace() / "raw"
        assert [folder.name for folder in raw.iterdir()] == [source]
        assert len(list((raw / source / "labelsTr").iterdir())) == 1
        for target in targets:
            held_out = set(load("subsets").held_out_cases(target))
            names = {file.name.removesuffix(".nii.gz") for file in bench.test(target, "labels").iterdir()}
            assert names == held_out


@pytest.fixture
def asked(load: Callable[[str], Any], sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bench whose time budgets decide for 40, then for 50 steps an epoch; `caches` are those they met."""
    runs, measured = load("generalization_runs"), load("measured_commands")
    results = measured.ResultsFile(tmp_path / "results.json", {})
    bench = runs.Bench(sites, tmp_path, Path("bin"), "cpu", results)
    preprocessed = bench.workspace() / "preprocessed" / "Dataset008_Prostate"
    iterations, commands, caches = iter((40, 50)), [], []

    def run_until(words: list[Any], log: Path, product: Path) -> None:
        commands.append([str(word) for word in words])
        caches.append([folder.name for folder in preprocessed.glob("*_embeddings")])
        (preprocessed / "samunetPlans_2d_embeddings").mkdir(parents=True, exist_ok=True)
        phase = {"epochs": 10, "iterations": next(iterations), "val_iterations": 3}
        product.parent.mkdir(parents=True)
        product.write_text(json.dumps({"phases": [phase], "cache": {"views": 6, "items_per_case": None}}))

    monkeypatch.setattr(runs, "run_until", run_until)
    arguments = runs.parse(["--data", str(sites), "--work", str(tmp_path)])
    run = runs.Run("prostate", runs.ARMS[1], 1, "full", 30.0)
    return SimpleNamespace(
        runs=runs, bench=bench, arguments=arguments, run=run, commands=commands, caches=caches
    )


def test_the_longest_of_two_schedules_counts_and_none_met_a_cache(asked: Any) -> None:
    """Two arms on one encoder would share the cache, and the second would have more time for training."""
    for _ in range(asked.runs.ROUNDS):
        asked.runs.decide_schedule(asked.bench, asked.run, asked.arguments)
    assert asked.caches == [[], []]
    assert asked.runs.chosen_schedule(asked.bench, asked.run)["phases"][0]["iterations"] == 50
    for words in asked.commands:
        assert words[words.index("--time_budget") + 1] == "30"
    assert not (asked.bench.workspace() / "results" / "Dataset008_Prostate").exists() or not list(
        (asked.bench.workspace() / "results" / "Dataset008_Prostate").iterdir()
    )


def test_a_training_has_the_chosen_length_and_none_of_the_time(
    asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is refused where it was not that long, so that no seed is compared with a shorter one."""
    for _ in range(asked.runs.ROUNDS):
        asked.runs.decide_schedule(asked.bench, asked.run, asked.arguments)
    trained: list[Any] = []
    monkeypatch.setattr(asked.runs.Bench, "train", lambda bench, training: trained.append(training))
    monkeypatch.setattr(asked.runs, "facts_of", lambda *of: {"phases": [{"epochs": 9}]})
    with pytest.raises(AssertionError, match="not the schedule"):
        asked.runs.perform(asked.bench, asked.run, asked.arguments)
    words = trained[0].words
    assert {"epochs=10", "iterations=50", "val_iterations=3", "views=6"} <= set(words)
    assert "--time_budget" not in words


def test_a_training_without_its_weights_is_made_again_with_all_predictions(asked: Any) -> None:
    """As where only the results file came to another machine: its predictions would be of two networks."""
    run, bench = asked.run, asked.bench
    other = asked.runs.Run("prostate", asked.runs.ARMS[2], 1, "full", 30.0)
    training = asked.runs.training_of(bench, run, asked.arguments)
    kept = f"{other.name} train"
    for step in (f"{run.name} train", run.facts, f"{run.step('Dataset008_Prostate', '9')} scores", kept):
        bench.results.save(step, {})
    final = bench.run_folder(training) / "checkpoint_final.pth"
    final.parent.mkdir(parents=True)
    final.touch()
    asked.runs.forget_lost_training(bench, run, training)
    assert len(bench.results.steps) == 4
    final.unlink()
    asked.runs.forget_lost_training(bench, run, training)
    assert list(bench.results.steps) == [kept]


def test_a_command_is_ended_when_its_file_is_there(load: Callable[[str], Any], tmp_path: Path) -> None:
    measured, product = load("measured_commands"), tmp_path / "product"
    program = f"import pathlib, time; pathlib.Path({str(product)!r}).touch(); time.sleep(600)"
    measured.run_until([sys.executable, "-c", program], tmp_path / "log.txt", product, pause=0.05)
    assert product.exists()
    with pytest.raises(measured.CommandFailed, match="ended without"):
        measured.run_until([sys.executable, "-c", "1"], tmp_path / "log.txt", tmp_path / "none", pause=0.05)


def test_generalization_runs_reports_pairs(
    load: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = load("generalization_runs")
    steps: dict[str, Any] = {}
    for arm, least in (("desam_grid", 0.5), ("cnn", 0.4), ("unet3d", 0.3)):
        for seed in (0, 1):
            run = next(r for r in runs.ARMS if r.name == arm)
            run = runs.Run("prostate", run, seed, "full", 30.0)
            for number, prediction in enumerate(run.arm.predictions):
                dice = least + 0.01 * seed + 0.02 * number
                steps[run.step("Dataset008_Prostate", prediction) + " scores"] = {
                    "dice": dice,
                    "cases": {f"UCL_{case:02d}": {"prostate": dice + 0.001 * case} for case in range(5)},
                    "protocol": {
                        "dice": 0.7,
                        "cases": {f"UCL_{case:02d}": {"prostate": 0.7} for case in range(5)},
                    },
                }
            steps[run.facts] = {
                "configuration": {
                    "method": run.arm.method,
                    "encoder": None if arm == "unet3d" else "vit_tiny",
                    "encoder_weights": "shipped",
                    "input_size": 224,
                    "batch_size": 2,
                    "patch_size": [16, 128, 128],
                    "settings": {} if arm == "unet3d" else {"encoder": "full"},
                },
                "phases": [{"epochs": 10, "iterations": 10}],
            }
    runs.report(steps)
    words = capsys.readouterr().out
    assert "prostate: Dataset008_Prostate, augmentation full, 30min (5 patients: too few" in words
    told = "100 steps; vit_tiny shipped at 224 px, trained too"
    assert f"{told}, sees the picture, batch 2" in words
    assert "vit_tiny shipped at 224 px, trained too, batch 2" in words
    assert "batch 2, patch 16 x 128 x 128" in words
    assert "scored as the paper does 0.700 [0.700, 0.700]" in words
    assert "desam_grid 9 - cnn: +12.0 points" in words
    assert "(seeds +12.0, +12.0)" in words
    assert "desam_grid protocol" in words


def test_a_training_that_fails_is_named_after_the_others_were_made(
    load: Callable[[str], Any], sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, tried = load("generalization_runs"), []

    def perform(bench: Any, run: Any, arguments: Any) -> None:
        tried.append(run.arm.name)
        if run.arm.name == "cnn":
            raise runs.CommandFailed("no memory")

    monkeypatch.setattr(runs, "perform", perform)
    monkeypatch.setattr(runs, "prepare", lambda *arguments: None)
    monkeypatch.setattr(runs, "decide_schedule", lambda *arguments: None)
    words = ["--data", str(sites), "--work", str(tmp_path), "--tasks", "heart", "--seeds", "0"]
    monkeypatch.setattr("sys.argv", ["generalization_runs.py", *words])
    with pytest.raises(SystemExit, match="heart cnn full seed0 30min: no memory"):
        runs.main()
    assert tried == [arm.name for arm in runs.ARMS]


def test_a_tensor_under_two_names_counts_once(load: Callable[[str], Any]) -> None:
    shared, own = torch.zeros(3, 4), torch.zeros(5)
    state = {"encoder.w": shared, "decoder.encoder.w": shared, "decoder.b": own}
    assert load("real_runs").num_values(state) == 17


def test_results_of_another_setup_are_not_continued(load: Callable[[str], Any], tmp_path: Path) -> None:
    measured, setup = load("measured_commands"), {"weights_sha256": "a"}
    measured.ResultsFile(tmp_path / "r.json", setup).save("step", 1)
    measured.ResultsFile(tmp_path / "r.json", {}).require(setup)
    with pytest.raises(SystemExit, match="was made with"):
        measured.ResultsFile(tmp_path / "r.json", {}).require({"weights_sha256": "b"})


@pytest.fixture
def probe(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    module = load("linear_probe")
    monkeypatch.setattr(module, "PENALTIES", (1e-4, 1e-2))
    monkeypatch.setattr(module, "ITERATIONS", 30)
    return module


CASES = [f"tiny_00{number}" for number in range(5)]


def test_a_linear_reading_finds_what_the_features_hold(probe: Any, tiny_dataset: Path) -> None:
    """Features that are the shares themselves, mixed, are read nearly as well as the oracle reads them."""
    raw = RawDataset.load(tiny_dataset)
    eye = probe.Eye(raw, 160, probe.own_pixels)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(3, 7, generator=generator)
    for name in CASES:
        case = eye.see(name)
        assert case.shares.sum(-1) == pytest.approx(torch.ones(case.shares.shape[:3]), abs=1e-5)
        assert case.features.shape == (*case.shares.shape[:3], 256)
        mixed = case.shares.clamp_min(probe.LEAST_SHARE).log() @ mixing
        eye._seen[name] = replace(case, features=mixed)

    found, best = probe.probe(eye, CASES[:3], CASES[3:]), probe.oracle(eye, CASES[3:])

    assert found["dice"] == pytest.approx(best["dice"], abs=0.05)  # the penalty pulls a little
    assert best["dice"] > 0.5
    assert found["explained"] > 0.5


def test_features_that_know_nothing_explain_nothing(probe: Any, tiny_dataset: Path) -> None:
    raw = RawDataset.load(tiny_dataset)
    generator = torch.Generator().manual_seed(0)
    eye = probe.Eye(raw, 64, lambda picture: torch.randn(len(picture), 5, 4, 4, generator=generator))
    found = probe.probe(eye, CASES[:3], CASES[3:])
    assert found["explained"] < 0.1
    assert found["penalty"] == max(probe.PENALTIES)  # nothing is to be learnt
