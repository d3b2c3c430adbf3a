"""Trained on one site, tested on another: `2d_desam` in both modes, `2d_cnn`, U-Nets, three seeds.

    python benchmarks/generalization_runs.py --data FOLDER --work FOLDER --minutes 30
    python benchmarks/generalization_runs.py --data FOLDER --work FOLDER --weights sam_vit_b_01ec64.pth
    python benchmarks/generalization_runs.py --data FOLDER --work FOLDER --augmentation full generalize

`prostate` trains on RUNMC and tests on UCL (Dataset008); `heart` trains on Dataset002 without its held-out
cases and tests on Dataset003 (another sequence) and on those held-out cases (the same site, for
comparison). Every training is on fold `all` under one time budget. `2d_desam` with points predicts with
grids of 1, 9 and 25 points a side from one training (the paper's ablation); nobody mirrors. Dice is of whole
volumes; the DeSAM paper's protocol is scored beside it, for points on a prediction of its own that drops
prompts of a predicted IoU below 0.5, as the paper does.

Of a small encoder `2d_desam` trains all, as planned, and `2d_cnn` sees the picture beside the embedding: the
arms `desam_frozen` (DeSAM's own premise) and `cnn_plain` (what `2d_desam` sees) tell both apart. They are run
when they are named.

Without --weights the plan's encoder is used, `vit_tiny` with the weights that ship where the weights folder
is empty; the weights of each training stand beside its scores, and a results file made with other weights or
on another device is not continued.

First the schedules: `samunet_train --time_budget` is begun ROUNDS times for every arm, on a machine that
does nothing else, until it has decided how many epochs and steps fit; the longest counts, since other
programs only ever slow a step down. Then every seed is trained with those epochs and steps. A training with a
time budget is the one with the epochs, steps and cached views that it decides for, so this changes nothing
but what a busy or another machine would: all seeds of an arm are equally long, and the trainings may be made
side by side, anywhere. (The time of a cache is in the schedule, though the trainings then share it.)

    python benchmarks/generalization_runs.py --data FOLDER --work FOLDER --only_schedules
    OMP_NUM_THREADS=1 python benchmarks/generalization_runs.py --data FOLDER --work FOLDER --tasks prostate &
    OMP_NUM_THREADS=1 python benchmarks/generalization_runs.py --data FOLDER --work FOLDER --tasks heart &

Finished steps are in WORK/generalization_runs_TASK.json, a file a task; start again to go on, with copies of
those files on another machine too: a training whose weights did not come along and that still has something
to predict is made again. Seeds are the outer loop, so that an interrupted benchmark has all methods of the
first seeds; --report prints what there is. A training that fails is named at the end, after the others.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generalization_report import report
from measured_commands import CommandFailed, ResultsFile, hardware, machine_load, run_facts, run_until
from real_runs import Bench, Training, setting_words
from subsets import dice_scores

from samunet.networks.sam.weight_files import shipped_weights, weights_sha256
from samunet.trainers.unet import SHORT_MOMENTUM, SHORT_RATE

GRIDS = (1, 9, 25)
PROTOCOL_WORDS = ("grid_side=9", "top_prompts=1", "min_iou=0.5")
"""How the paper predicts: the best of 81 points, and nothing where none is trusted."""
ENCODER = "vit_tiny"
"""Without --weights."""
PROSTATE, CINE, LATE = "Dataset008_Prostate", "Dataset002_ACDC", "Dataset003_MSCMR_LGE"
TASKS = {"prostate": (PROSTATE, (PROSTATE,)), "heart": (CINE, (LATE, CINE))}
"""Dataset trained on (without held-out cases), and datasets whose held-out cases are tested on."""
CPU_UNETS = ("batch_size=2", f"learning_rate={SHORT_RATE}", f"momentum={SHORT_MOMENTUM}")
"""Of the U-Nets on a CPU: planned are up to 12 slices a step, which leaves some dozens in half an hour. Rate
and momentum are those of short trainings, so that no seed has others by a few steps more."""
ROUNDS = 2
"""How often a time budget is asked for its schedule."""
LENGTH = ("epochs", "iterations", "val_iterations")
"""What a time budget decides; the rest of a phase follows from the settings."""


@dataclass(frozen=True)
class Arm:
    """A method of the comparison: its name in the table and what it sets."""

    name: str
    method: str
    settings: tuple[str, ...] = ()
    grids: tuple[int, ...] = GRIDS

    @property
    def predictions(self) -> dict[str, tuple[str, ...]]:
        """Name -> settings of each prediction; one without a name where there is no grid."""
        if "mode=grid_points" not in self.settings:
            return {"": ()}
        grids = {f"{side}": (f"grid_side={side}",) for side in self.grids}
        return {**grids, "protocol": PROTOCOL_WORDS}


ARMS = (
    Arm("desam_grid", "2d_desam", ("mode=grid_points",)),
    Arm("desam_box", "2d_desam", ("mode=whole_box",)),
    Arm("cnn", "2d_cnn"),
    Arm("unet2d", "2d_unet"),
    Arm("unet3d", "3d_unet"),
)
MORE_ARMS = (
    Arm("desam_frozen", "2d_desam", ("mode=grid_points", "encoder=frozen"), grids=(9,)),
    Arm("cnn_plain", "2d_cnn", ("image_skip=false",)),
)


@dataclass(frozen=True)
class Run:
    """One training: task, arm, seed, augmentation."""

    task: str
    arm: Arm
    seed: int
    augmentation: str
    minutes: float

    @property
    def name(self) -> str:
        return f"{self.task} {self.arm.name} {self.augmentation} seed{self.seed} {self.minutes:g}min"

    @property
    def tag(self) -> str:
        return f"{self.arm.name}-{self.augmentation.replace('_', '-')}-{self.seed}-{self.minutes:g}min"

    @property
    def dataset(self) -> str:
        return TASKS[self.task][0]

    @property
    def schedule(self) -> str:
        """Name of the step that keeps what the time budget decided for all seeds."""
        return f"{self.task} {self.arm.name} {self.augmentation} {self.minutes:g}min schedule"

    @property
    def facts(self) -> str:
        """Name of the step that keeps what the training was."""
        return f"{self.name} facts"

    def step(self, target: str, prediction: str) -> str:
        """Name of a prediction's steps."""
        return f"{self.name} on {target} {prediction}".rstrip()


def planned(arguments: argparse.Namespace) -> Iterator[Run]:
    arms = [arm for arm in (*ARMS, *MORE_ARMS) if arm.name in arguments.arms]
    for seed in arguments.seeds:
        for augmentation in arguments.augmentation:
            for task in arguments.tasks:
                for arm in arms:
                    yield Run(task, arm, seed, augmentation, arguments.minutes)


def prepare(bench: Bench, task: str, arguments: argparse.Namespace) -> None:
    """Raw data of the source without held-out cases, test folders of every target, plan, preprocessed cases.

    Nothing of another target is in the workspace, so that neither plan nor training can know it.
    """
    source, targets = TASKS[task]
    bench.prepare(source)
    for target in targets:
        bench.prepare_test(target)
    methods = sorted({arm.method for arm in ARMS})
    bench.plan(f"{task} plan", source, methods, *weights_words(arguments))


def weights_words(arguments: argparse.Namespace) -> list[str]:
    """Of planning and training: the weights given, else the small encoder whose weights ship."""
    if arguments.weights is None:
        return ["-encoder", ENCODER]
    return ["-w", str(arguments.weights.resolve())]


def perform(bench: Bench, run: Run, arguments: argparse.Namespace) -> None:
    """Train, then predict and score every target, grid by grid."""
    steps = {
        run.step(target, name): (target, settings)
        for target in TASKS[run.task][1]
        for name, settings in run.arm.predictions.items()
    }
    if all(bench.is_scored(step) for step in steps):
        print(f"have  {run.name}", flush=True)
        return
    chosen = chosen_schedule(bench, run)
    length = setting_words(*(f"{name}={chosen['phases'][0][name]}" for name in LENGTH), *cache_words(chosen))
    training = training_of(bench, run, arguments, *length)
    forget_lost_training(bench, run, training)
    bench.train(training)
    if run.facts not in bench.results.steps:
        facts = facts_of(bench, training)
        assert facts["phases"] == chosen["phases"], "not the schedule that the budget decided for"
        assert facts["cache"] == chosen["cache"], "not the cache that the budget paid for"
        bench.results.save(run.facts, facts)
    for step, (target, settings) in steps.items():
        if not bench.is_scored(step):
            predict(bench, training, step, target, settings)


def forget_lost_training(bench: Bench, run: Run, training: Training) -> None:
    """Forget a training whose weights are gone, and its predictions, so that all are made of one network."""
    if (bench.run_folder(training) / "checkpoint_final.pth").exists():
        return
    for step in [step for step in bench.results.steps if step.startswith(f"{run.name} ")]:
        del bench.results.steps[step]


def decide_schedule(bench: Bench, run: Run, arguments: argparse.Namespace) -> None:
    """Ask the time budget, once more where it was asked too seldom; the run is not kept.

    Trainings on one frozen encoder would share its cache, and the first alone would pay for it; so every one
    is asked without a cache.
    """
    rounds = list(bench.results.steps.get(run.schedule, ()))
    budget = ("--time_budget", f"{run.minutes:g}")
    training = training_of(bench, run, arguments, *budget, tag=f"schedule-{run.arm.name}")
    folder = bench.run_folder(training)
    for folder_of_cache in (bench.workspace() / "preprocessed" / run.dataset).glob("*_embeddings"):
        shutil.rmtree(folder_of_cache)
    load = machine_load()
    print(f"start {run.schedule}, round {len(rounds) + 1}", flush=True)
    log = bench.work / "logs" / f"{run.schedule.replace(' ', '_')}_{len(rounds)}.txt"
    words = [bench.bin / "samunet_train", *bench.train_words(training), "--workspace", bench.workspace()]
    shutil.rmtree(folder.parent, ignore_errors=True)
    run_until(words, log, folder / "run.json")
    record = json.loads((folder / "run.json").read_text())
    shutil.rmtree(folder.parent)
    if record["cache"]["items_per_case"] is not None:
        raise SystemExit(f"{run.schedule}: only a part of the slices can be encoded. Take more --minutes.")
    kept = {name: record[name] for name in ("phases", "cache")}
    found = {**kept, "load_before": load, "hardware": hardware()}
    bench.results.save(run.schedule, [*rounds, found])


def chosen_schedule(bench: Bench, run: Run) -> dict[str, Any]:
    """The longest that the budget had room for: what other programs took from a round is not in it."""
    rounds = bench.results.steps[run.schedule]
    assert all(len(found["phases"]) == 1 for found in rounds), "of several phases each would need its length"
    return max(rounds, key=lambda found: found["phases"][0]["epochs"] * found["phases"][0]["iterations"])


def cache_words(chosen: dict[str, Any]) -> list[str]:
    """Views of a cache, which a time budget may have made fewer."""
    return [f"views={chosen['cache']['views']}"] if chosen["cache"]["views"] else []


def training_of(
    bench: Bench, run: Run, arguments: argparse.Namespace, *length: str, tag: str | None = None
) -> Training:
    """The training with its words: augmentation, the arm's settings, weights or batch, seed, its length."""
    settings = [f"augmentation={run.augmentation}", *run.arm.settings]
    words = [*setting_words(*settings)]
    if run.arm.method.endswith("_unet"):
        words += cpu_words(bench, run) if bench.device == "cpu" else ()
    else:
        words += weights_words(arguments)
    words += ["--seed", str(run.seed), *length]
    return Training(run.name, run.dataset, run.arm.method, tag or run.tag, words=tuple(words))


def cpu_words(bench: Bench, run: Run) -> tuple[str, ...]:
    """Smaller batches, and for the 3D U-Net patches of half the sides in plane: as planned a step takes about
    a minute on two cores."""
    if run.arm.method == "2d_unet":
        return setting_words(*CPU_UNETS)
    plan = bench.workspace() / "preprocessed" / run.dataset / "samunetPlans.json"
    depth, *plane = json.loads(plan.read_text())["configurations"][run.arm.method]["patch_size"]
    return setting_words(*CPU_UNETS, f"patch_size={[depth, *(side // 2 for side in plane)]}".replace(" ", ""))


def predict(bench: Bench, training: Training, step: str, target: str, settings: tuple[str, ...]) -> None:
    """One prediction of a target, scored plainly, by our command, and by the paper's protocol."""
    output = bench.predict(step, training, target, *setting_words(*settings))
    labels = bench.test(target, "labels")
    described = ["-djfile", bench.workspace() / "raw" / training.dataset / "dataset.json"]
    protocol_file = output / "summary_desam_protocol.json"
    scored = [labels, output, *described, "--desam_protocol"]
    bench.measure(f"{step} evaluate", "samunet_evaluate_folder", *scored, product=protocol_file)
    scores = dice_scores(labels, output, bench.data / training.dataset / "dataset.json")
    own, protocol = (json.loads(file.read_text()) for file in (output / "summary.json", protocol_file))
    bench.results.save(
        f"{step} scores",
        {
            **scores,
            "samunet_foreground_mean": own["foreground_mean"],
            "hd95": _of_cases(own, "HD95"),
            "protocol": {"dice": protocol["foreground_mean"]["Dice"], "cases": _of_cases(protocol, "Dice")},
        },
    )


def _of_cases(summary: dict[str, Any], metric: str) -> dict[str, dict[str, float | None]]:
    """Case -> class -> a metric of a summary file."""
    return {
        case["case"]: {name: scores[metric] for name, scores in case["metrics"].items()}
        for case in summary["metric_per_case"]
    }


def facts_of(bench: Bench, training: Training) -> dict[str, Any]:
    """What a training was, from its own records, and how long it took."""
    return {**run_facts(bench.run_folder(training)), "length": bench.length(training)}


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trained on one site, tested on another.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the DatasetXXX_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder and results")
    parser.add_argument("--minutes", type=float, default=30.0, help="time budget of each training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument(
        "--arms", nargs="+", choices=[a.name for a in (*ARMS, *MORE_ARMS)], default=[a.name for a in ARMS]
    )
    parser.add_argument("--augmentation", nargs="+", choices=["full", "generalize"], default=["full"])
    parser.add_argument("--weights", type=Path, help="SAM weights for the methods on an encoder")
    parser.add_argument("--bin", type=Path, default=Bench.own_bin(), help="folder of samunet_train")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only_schedules", action="store_true", help="ask the time budgets, train nothing")
    parser.add_argument("--keep", type=Path, help="copy the results files into this folder at the end")
    parser.add_argument("--report", action="store_true", help="only print what there is")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse()
    work: Path = arguments.work.resolve()
    weights = arguments.weights or shipped_weights(ENCODER)
    setup = {
        "device": arguments.device,
        "weights_sha256": None if weights is None else weights_sha256(weights),
    }
    benches = {task: bench_of(task, work, arguments, setup) for task in arguments.tasks}
    if arguments.report:
        report(steps_of(benches))
        return
    for task, bench in benches.items():
        bench.results.require(setup)
        prepare(bench, task, arguments)
    for number in range(ROUNDS):  # one after the other: what slows a machine for minutes meets no arm twice
        for run in planned(arguments):
            if len(benches[run.task].results.steps.get(run.schedule, ())) <= number:
                decide_schedule(benches[run.task], run, arguments)
    if arguments.only_schedules:
        return
    faults = []
    for run in planned(arguments):
        try:
            perform(benches[run.task], run, arguments)
        except CommandFailed as fault:
            faults.append(f"{run.name}: {fault}")
        report(steps_of(benches))
    for bench in benches.values() if arguments.keep else ():
        arguments.keep.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bench.results.path, arguments.keep / bench.results.path.name)
    if faults:
        raise SystemExit("\n\n".join(["Not finished; start again to try once more:", *faults]))


def bench_of(task: str, work: Path, arguments: argparse.Namespace, setup: Mapping[str, Any]) -> Bench:
    """Folders and results file of a task; a process for each task may use the same folders."""
    results = ResultsFile(work / f"generalization_runs_{task}.json", {"hardware": hardware(), **setup})
    folder, predicting = work / "generalization_runs", ("--disable_tta",)
    return Bench(arguments.data, folder, arguments.bin, arguments.device, results, predicting)


def steps_of(benches: Mapping[str, Bench]) -> dict[str, Any]:
    """Steps of all results files."""
    return {name: step for bench in benches.values() for name, step in bench.results.steps.items()}


if __name__ == "__main__":
    main()
