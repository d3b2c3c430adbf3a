"""3D methods on real sets under one time budget: main comparison, ablations, students, anisotropic volumes.

    python benchmarks/volume_runs.py --data FOLDER --work FOLDER --minutes 60 --what main
    python benchmarks/volume_runs.py --data FOLDER --work FOLDER --minutes 20 --what ablation --only 001
    python benchmarks/volume_runs.py --data FOLDER --work FOLDER --minutes 20 --what student --only 001
    python benchmarks/volume_runs.py --data FOLDER --work FOLDER --minutes 20 --what anisotropic

Every training is on the cases outside held_out.json (fold `all`) and is scored on the held-out ones. The SAM
method is `vit_tiny` without pretrained weights. On a CPU the patches are chosen so that minutes suffice for
hundreds of steps: the plan's own ones are made for a GPU or for a day; PATCHES says what was changed. All
train in bf16 (`--precision fp32` on a processor without such instructions, where it crawls) and predict
without mirroring, which would take four times as long. The students learn from the adapter of the main
comparison, whose soft labels are made before their time counts; lambda 0 is the same network without a
teacher.
Finished steps are in WORK/volume_runs.json; start again to go on. `--only "001.* unet$"` takes the runs whose
name matches; two of these with folders of their own may run beside each other, a core each.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from measured_commands import ResultsFile, hardware
from real_runs import Bench, Training, interval

ADAPTER, UNET, STUDENT = "3d_adapter", "3d_unet", "3d_student"
PATCHES = {
    ("Dataset004_HaN_CT", ADAPTER): ("patch_size=[48,64,48]", "token_size=[4,4,4]", "batch_size=2"),
    ("Dataset004_HaN_CT", UNET): ("patch_size=[48,64,48]", "batch_size=2", "epochs=1000"),
    ("Dataset004_HaN_CT", STUDENT): ("patch_size=[48,64,48]", "batch_size=2", "epochs=300"),
    ("Dataset001_Hippocampus", ADAPTER): ("patch_size=[36,52,36]", "token_size=[4,4,4]", "batch_size=2"),
    ("Dataset001_Hippocampus", UNET): ("batch_size=2", "epochs=1000"),
    ("Dataset001_Hippocampus", STUDENT): ("batch_size=2", "epochs=1000"),
    ("Dataset002_ACDC", ADAPTER): ("patch_size=[8,64,64]", "token_size=[1,4,4]", "batch_size=2"),
}


@dataclass(frozen=True)
class Variant:
    """One training beside others: its name, what it changes, and the teacher's share of a student's loss."""

    name: str
    dataset: str
    method: str
    changes: tuple[str, ...] = ()
    share: float | None = None
    precision: str = "bf16"

    def words(self, teacher_minutes: float) -> tuple[str, ...]:
        """Of the command, besides time and place."""
        patches = PATCHES.get((self.dataset, self.method), ())
        settings = (f"precision={self.precision}", *patches, *self.changes)
        chosen = {setting.partition("=")[0]: setting for setting in settings}  # what changes comes last
        words = [word for setting in chosen.values() for word in ("--set", setting)]
        if self.share is not None:
            tag = adapter_of(self.dataset).training(teacher_minutes, teacher_minutes).tag
            words += ["--lambda", f"{self.share:g}", "--teacher_tag", tag, "--disable_tta"]
        return tuple(words)

    def training(self, minutes: float, teacher_minutes: float) -> Training:
        return Training(
            name=f"{self.dataset} {self.name} {minutes:g}min",
            dataset=self.dataset,
            method=self.method,
            tag=f"{self.name}_{minutes:g}min",
            words=("--time_budget", f"{minutes:g}", *self.words(teacher_minutes)),
            teacher=None if self.share is None else ADAPTER,
        )


def adapter_of(dataset: str) -> Variant:
    """The adapter of the main comparison, which teaches the students."""
    return Variant("adapter", dataset, ADAPTER)


CT, HIPPOCAMPUS, CINE = "Dataset004_HaN_CT", "Dataset001_Hippocampus", "Dataset002_ACDC"


def ablation(dataset: str) -> list[Variant]:
    """The adapter whole, and without one of its parts each."""
    return [
        adapter_of(dataset),
        Variant("no_generator", dataset, ADAPTER, ("generator=false",)),
        Variant("no_aggregation", dataset, ADAPTER, ("aggregation=false",)),
        Variant("one_stage", dataset, ADAPTER, ("stages=one",)),
        Variant("no_refinement", dataset, ADAPTER, ("refine=false",)),
        Variant("added_generator", dataset, ADAPTER, ("apg_residual=true",)),
    ]


def students(dataset: str) -> list[Variant]:
    """One network taught by labels alone, by labels and teacher, and by the teacher alone."""
    return [Variant(f"student_{share:g}", dataset, STUDENT, share=share) for share in (0.0, 0.5, 1.0)]


RUNS = {
    "main": [
        adapter_of(CT),
        Variant("unet", CT, UNET),
        adapter_of(HIPPOCAMPUS),
        Variant("unet", HIPPOCAMPUS, UNET),
    ],
    "ablation": [*ablation(HIPPOCAMPUS), *ablation(CT)],
    "tokens": [Variant("fine_tokens", CT, ADAPTER, ("patch_size=[40,80,40]", "token_size=[2,4,2]"))],
    "momentum": [Variant("unet_less_momentum", CT, UNET, ("learning_rate=0.05", "momentum=0.9"))],
    "student": [*students(HIPPOCAMPUS), *students(CT)],
    "anisotropic": [adapter_of(CINE)],
}


def run(bench: Bench, variants: list[Variant], minutes: float, teacher_minutes: float) -> None:
    """Plan, preprocess, train, predict and score every variant."""
    for dataset in dict.fromkeys(variant.dataset for variant in variants):
        bench.prepare(dataset)
        bench.plan(f"{dataset} plan", dataset, [ADAPTER])
    for variant in variants:
        training = variant.training(minutes, teacher_minutes)
        if training.teacher is not None and not bench.is_scored(training.name):
            teacher = replace(adapter_of(variant.dataset), precision=variant.precision)
            bench.train(teacher.training(teacher_minutes, teacher_minutes))
            make_soft_labels(bench, variant, teacher_minutes)
        bench.train_and_score(training)
        report(bench.results)


def make_soft_labels(bench: Bench, student: Variant, teacher_minutes: float) -> None:
    """Let one short run make the teacher's outputs, so that they do not count in the students' time."""
    which = [bench.number(student.dataset), ADAPTER, student.method, "all", "-device", bench.device]
    short = replace(student, changes=("epochs=1", "iterations=1")).words(teacher_minutes)
    which += ["--tag", "soft_labels", "--overwrite"]
    bench.measure(f"{student.dataset} soft labels", "samunet_distill", *which, *short)


def report(results: ResultsFile) -> None:
    """Print the table of everything that is finished."""
    for name in [step.removesuffix(" scores") for step in results.steps if step.endswith(" scores")]:
        scores, length = results.steps[f"{name} scores"], results.steps[f"{name} length"]
        low, high = interval(scores["cases"])
        seconds = results.steps[f"{name} predict"]["seconds"]
        surface = scores["samunet_foreground_mean"].get("SurfaceDice", float("nan"))
        shown = " ".join(f"{key} {value:.3f}" for key, value in scores["by_class"].items())
        print(
            f"{name:50} Dice {scores['dice']:.3f} [{low:.3f}, {high:.3f}] surface Dice {surface:.3f} "
            f"{length['seconds']:5d} s, predicted in {seconds:4.0f} s, "
            f"{length['parameters'] / 1e6:.2f} M parameters  {shown}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="3D methods on real sets under one time budget.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the DatasetXXX_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder and results")
    parser.add_argument("--minutes", type=float, default=60.0, help="time budget of each training")
    parser.add_argument("--what", nargs="+", choices=list(RUNS), default=["main"])
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="runs whose name matches one")
    parser.add_argument(
        "--teacher_minutes", type=float, default=60.0, help="--minutes of the adapter that teaches students"
    )
    parser.add_argument("--bin", type=Path, default=Bench.own_bin(), help="folder of samunet_train")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--keep", type=Path, help="copy the results file into this folder at the end")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    results = ResultsFile(work / "volume_runs.json", {"hardware": hardware()})
    folder, predicting = work / "volume_runs", ("--disable_tta",)
    bench = Bench(arguments.data, folder, arguments.bin, arguments.device, results, predicting)
    for what in arguments.what:
        named = [
            v for v in RUNS[what] if any(re.search(word, f"{v.dataset} {v.name}") for word in arguments.only)
        ]
        same = [replace(variant, precision=arguments.precision) for variant in named]
        run(bench, same, arguments.minutes, arguments.teacher_minutes)
    print(json.dumps(results.content["header"]))
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results.path, arguments.keep / "volume_runs.json")


if __name__ == "__main__":
    main()
