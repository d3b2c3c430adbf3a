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
is empty; the weights of each training stand beside its scores, and a results file made with other weights, on
another device, or with caches that trainings shared is not continued. Finished steps are in
WORK/generalization_runs.json; start again to go on, on the same machine. Seeds are the outer loop, so that an
interrupted benchmark has all methods of the first seeds; --report prints what there is. A training that fails
is named at the end, after the others.

The time of a training has the building of a frozen encoder's cache in it. Trainings on one encoder would
share the cache, and the first alone would pay for it; so every one starts without a cache.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measured_commands import CommandFailed, ResultsFile, code_commit, hardware, machine_load
from real_runs import Bench, Training, interval, mean_scores, seed_differences, setting_words
from subsets import dice_scores, patient_of

from samunet.evaluation.bootstrap import FEWEST_UNITS
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import shipped_weights, weights_sha256
from samunet.planning.methods import get_method
from samunet.trainers.checkpoint import checkpoints_in
from samunet.trainers.unet import SHORT_MOMENTUM, SHORT_RATE

GRIDS = (1, 9, 25)
REFERENCE = "desam_grid 9"
"""The row that all others are compared with."""
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
MACHINE = ("processor", "cores_allowed", "torch", "omp_num_threads")
"""What of the hardware decides how much is learnt in the time."""
PATIENCE = 0.1
"""Share by which a training may miss its minutes before the report marks it."""


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
    training = training_of(bench, run, arguments)
    forget_caches(bench, training)
    load = machine_load()
    bench.train(training)
    if run.facts not in bench.results.steps:
        facts = facts_of(bench, training)
        bench.results.save(run.facts, {"load_before": load, "load_after": machine_load(), **facts})
    for step, (target, settings) in steps.items():
        if not bench.is_scored(step):
            predict(bench, training, step, target, settings)


def forget_caches(bench: Bench, training: Training) -> None:
    """Remove the embeddings that trainings before this one left, unless it has begun and paid for its own."""
    if not checkpoints_in(bench.run_folder(training)):
        for folder in (bench.workspace() / "preprocessed" / training.dataset).glob("*_embeddings"):
            shutil.rmtree(folder)


def training_of(bench: Bench, run: Run, arguments: argparse.Namespace) -> Training:
    """The training with its words: augmentation, the arm's settings, weights or batch, seed, budget."""
    settings = [f"augmentation={run.augmentation}", *run.arm.settings]
    words = [*setting_words(*settings)]
    if run.arm.method.endswith("_unet"):
        words += cpu_words(bench, run) if bench.device == "cpu" else ()
    else:
        words += weights_words(arguments)
    words += ["--seed", str(run.seed), "--time_budget", f"{run.minutes:g}"]
    return Training(run.name, run.dataset, run.arm.method, run.tag, words=tuple(words))


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
    """What a training was, from its own records: settings, schedule, weights, cache, length, versions."""
    record = json.loads((bench.run_folder(training) / "run.json").read_text())
    kept = ("configuration", "phases", "weights", "cache", "precision", "hardware", "versions")
    length = bench.length(training)
    return {**{name: record[name] for name in kept}, "length": length, "commit": code_commit()}


Seeds = dict[int, dict[str, Any]]
"""Seed -> scores of one row."""


def rows_of(steps: dict[str, Any]) -> dict[str, dict[str, Seeds]]:
    """`task: target, augmentation, minutes` -> `arm prediction` -> seeds: scores and the training's facts."""
    tables: dict[str, dict[str, Seeds]] = {}
    for step, scores in steps.items():
        if step.endswith(" scores"):
            training, _, place = step.removesuffix(" scores").partition(" on ")
            task, arm, augmentation, seed, minutes = training.split(" ")
            target, *name = place.split(" ")
            table = tables.setdefault(f"{task}: {target}, augmentation {augmentation}, {minutes}", {})
            facts = {"facts": steps[f"{training} facts"], "minutes": float(minutes.removesuffix("min"))}
            table.setdefault(" ".join([arm, *name]), {})[int(seed.removeprefix("seed"))] = {**scores, **facts}
    return tables


def report(steps: dict[str, Any]) -> None:
    """For each task and target: a row an arm and grid, and how far each is from points on a grid of 9."""
    for title, rows in sorted(rows_of(steps).items()):
        patients = {
            patient_of(case) for seeds in rows.values() for run in seeds.values() for case in run["cases"]
        }
        few = ": too few, intervals are too narrow" if len(patients) < FEWEST_UNITS else ""
        print(f"\n{title} ({len(patients)} patients{few})")
        ranked = sorted(rows.items(), key=lambda row: -_mean_dice(row[1].values()))
        for name, seeds in ranked:
            print(f"  {name:20} {_row(list(seeds.values()))}")
        others = {name: seeds for name, seeds in ranked if name != REFERENCE}
        for name, found in seed_differences(rows.get(REFERENCE, {}), others).items():
            print(
                f"    {REFERENCE} - {name}: {found.mean:+.1f} points [{found.low:+.1f}, {found.high:+.1f}] "
                f"(seeds {', '.join(f'{points:+.1f}' for points in found.each)})"
            )
    print("\nIntervals draw patients, not seeds; those of the differences under a title hold all at once.")


def _row(seeds: list[dict[str, Any]]) -> str:
    """Mean over the seeds, interval over patients, the seeds; the same masks by the paper's protocol; how
    long each training was (! where it missed its minutes), and on what."""
    each = " ".join(f"{scores['dice']:.3f}" for scores in seeds)
    plain = _with_interval(_mean_dice(seeds), [scores["cases"] for scores in seeds])
    protocol = [scores["protocol"] for scores in seeds]
    by_paper = _with_interval(_mean_dice(protocol), [scores["cases"] for scores in protocol])
    return f"{plain} ({each}); scored as the paper does {by_paper}; {_length(seeds)}; {_encoder(seeds[0])}"


def _with_interval(mean: float, cases: list[dict[str, Any]]) -> str:
    low, high = interval(mean_scores(cases))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _length(seeds: list[dict[str, Any]]) -> str:
    words = []
    for scores in seeds:
        facts, planned_minutes = scores["facts"], scores["minutes"]
        minutes = facts["length"]["seconds"] / 60
        steps = sum(phase["epochs"] * phase["iterations"] for phase in facts["phases"])
        mark = "!" if abs(minutes - planned_minutes) > PATIENCE * planned_minutes else ""
        words.append(f"{steps} steps in {minutes:.0f}{mark} min")
    return ", ".join(words)


def _encoder(scores: dict[str, Any]) -> str:
    """What was trained: encoder, what the head sees, batch, patch."""
    used = scores["facts"]["configuration"]
    batch = f"batch {used['batch_size']}"
    if not used["encoder"]:
        return f"{batch}, patch {' x '.join(map(str, used['patch_size']))}"
    trained = "trained too" if used["settings"].get("encoder") == "full" else "kept"
    config = get_method(used["method"]).config(**used["settings"])
    beside = ", sees the picture" if config.sees_picture(get_variant(used["encoder"])) else ""
    encoder = f"{used['encoder']} {used['encoder_weights']} at {used['input_size']} px, {trained}"
    return f"{encoder}{beside}, {batch}"


def _mean_dice(seeds: Iterable[dict[str, Any]]) -> float:
    return float(np.mean([scores["dice"] for scores in seeds]))


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
    parser.add_argument("--report", action="store_true", help="only print what there is")
    parser.add_argument("--keep", type=Path, help="copy the results file into this folder at the end")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse()
    work: Path = arguments.work.resolve()
    weights = arguments.weights or shipped_weights(ENCODER)
    here = hardware()
    setup = {
        "device": arguments.device,
        "machine": {name: here[name] for name in MACHINE},
        "weights_sha256": None if weights is None else weights_sha256(weights),
    }
    if arguments.weights:  # the small encoder is trained along, so that there is nothing to cache
        setup["caches"] = "built by every training"
    header = {"hardware": here, "load_at_start": machine_load(), **setup}
    results = ResultsFile(work / "generalization_runs.json", header)
    if arguments.report:
        report(results.steps)
        return
    results.require(setup)
    folder, predicting = work / "generalization_runs", ("--disable_tta",)
    bench = Bench(arguments.data, folder, arguments.bin, arguments.device, results, predicting)
    for task in arguments.tasks:
        prepare(bench, task, arguments)
    faults = []
    for run in planned(arguments):
        try:
            perform(bench, run, arguments)
        except CommandFailed as fault:
            faults.append(f"{run.name}: {fault}")
        report(results.steps)
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results.path, arguments.keep / "generalization_runs.json")
    if faults:
        raise SystemExit("\n\n".join(["Not finished; start again to try once more:", *faults]))


if __name__ == "__main__":
    main()
