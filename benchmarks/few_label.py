"""Few labels: do pretrained weights help? Frozen, trained too, random, and U-Nets, in equal time.

    python benchmarks/few_label.py --data FOLDER --work FOLDER --weights FILE --peer-bin VENV/bin
    python benchmarks/few_label.py --data FOLDER --work FOLDER --report

Primary: Dataset002 with 1 and 5 labelled volumes. Secondary: five cases of Dataset001 and of Dataset008.
Remedies on request: other inputs and recipes (what an embedding alone tells: linear_probe.py). Test cases are
those of held_out.json. Each seed draws its own labelled volumes (never two of one patient), the same for all
systems; every training has `--minutes`, and all predict without mirroring. Finished steps stand in
WORK/few_label.json; start again to go on where it stopped. A results file is of one set of weights; what does
not depend on them (random starts, U-Nets) is taken over from one of others with --take.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measured_commands import ResultsFile, hardware, machine_load
from real_runs import Bench, Training, seed_difference, setting_words
from subsets import dice_scores, held_out_cases, patient_of

from samunet.networks.sam.weight_files import (
    ENCODER_ENDING,
    decoder_file,
    shipped_weights,
    weights_sha256,
)

ENCODER = "vit_tiny"
PEER = "nnunetv2"
SMALL_BATCH = 2
"""Slices a step of the U-Nets: planned are dozens, which on a CPU leaves some ten steps in ten minutes."""
PREDICTING = ("--disable_tta",)
"""Of every prediction, theirs too: mirroring takes four times as long on a CPU."""


SIZE, SEEING = setting_words("input_size=224"), setting_words("image_skip=true")
"""All at the size that the encoder learnt at, which is planned for trained ones here; frozen ones are planned
larger, which leaves half the steps in ten minutes."""
RANDOM = setting_words("encoder_weights=random")
FROZEN_AS_SAM = (*setting_words("encoder=frozen", "learning_rate=0.0005", "weight_decay=0.01"), *SIZE)
"""At the rate and decay that the heads have on SAM's own encoders."""
KEPT, VIEWS = (*FROZEN_AS_SAM, *SEEING), setting_words("views=48")
SIX_VIEWS, FROZEN = (*KEPT, *setting_words("views=6")), (*KEPT, *VIEWS)
"""The stored views of before, and about as many as are planned for so few slices."""
FAST = (*setting_words("encoder=frozen", "learning_rate=0.001", "weight_decay=0.05"), *SIZE, *SEEING, *VIEWS)
"""At the rate and decay of encoders that are trained too, as a kept one is planned."""


def trained(learning_rate: str, encoder_factor: str, weight_decay: str) -> tuple[str, ...]:
    """Words for an encoder that is trained with its head."""
    rates = (f"learning_rate={learning_rate}", f"encoder_learning_rate_factor={encoder_factor}")
    return (*setting_words("encoder=full", *rates, f"weight_decay={weight_decay}"), *SIZE, *SEEING)


def larger(words: tuple[str, ...]) -> tuple[str, ...]:
    """The same at 448 pixels."""
    return tuple(word.replace("input_size=224", "input_size=448") for word in words)


TUNED = trained("0.001", "1", "0.05")
"""The planner's recipe for a small encoder, whatever it knew before."""
KINDS = {
    "frozen": FROZEN,
    "frozen_random": (*FROZEN, *RANDOM),
    "tuned": TUNED,
    "scratch": (*TUNED, *RANDOM),
}
"""Shipped weights frozen, random ones frozen, shipped ones trained too, and the same from random ones: by
pairs nothing but the weights differs."""
LIVE = (*KEPT, *setting_words("cache=false"))
REMEDIES = {
    "2d_cnn_frozen_fast": FAST,
    "2d_cnn_frozen_fast_random": (*FAST, *RANDOM),
    "2d_cnn_frozen_blind": (*FROZEN_AS_SAM, *setting_words("image_skip=false")),
    "2d_cnn_frozen_live": LIVE,
    "2d_cnn_frozen_live_random": (*LIVE, *RANDOM),
    "2d_cnn_frozen_six": SIX_VIEWS,
    "2d_cnn_frozen_six_random": (*SIX_VIEWS, *RANDOM),
    "2d_cnn_frozen_448": larger(SIX_VIEWS),
    "2d_cnn_frozen_448_random": (*larger(SIX_VIEWS), *RANDOM),
    "2d_cnn_frozen_448_views": (*larger(KEPT), *setting_words("views=24")),
    "2d_autosam_frozen_448": larger(SIX_VIEWS),
    "2d_autosam_frozen_448_random": (*larger(SIX_VIEWS), *RANDOM),
    "2d_cnn_tuned_gentle": trained("0.0005", "0.1", "0.01"),
    "2d_cnn_tuned_third": trained("0.001", "0.3", "0.05"),
    "2d_cnn_tuned_448": larger(TUNED),
}
"""What may suit a small encoder better: a higher rate for the head, a head that sees the embedding only,
new augmentations in every step instead of stored views, six of these, a larger input, the rates of large
encoders, less in the encoder only."""
SYSTEMS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{
        f"{method}_{kind}": (method, ("-encoder", ENCODER, *words))
        for method in ("2d_cnn", "2d_autosam")
        for kind, words in KINDS.items()
    },
    **{
        name: ("_".join(name.split("_")[:2]), ("-encoder", ENCODER, *words))
        for name, words in REMEDIES.items()
    },
    "2d_unet": ("2d_unet", setting_words(f"batch_size={SMALL_BATCH}")),
    PEER: (PEER, ()),
}
"""Name -> (method, words of samunet_train)."""


@dataclass(frozen=True)
class Study:
    """A dataset with a number of labelled cases, and who is compared on it."""

    dataset: str
    labelled: int
    systems: tuple[str, ...]

    def name(self, seed: int) -> str:
        return f"{self.dataset} n{self.labelled} seed{seed}"


PRIMARY = tuple(system for system in SYSTEMS if system not in REMEDIES)
SECONDARY = ("2d_cnn_tuned", "2d_cnn_scratch", "2d_unet")
"""As planned, the same from random weights, and the baseline."""
STUDIES = {
    "primary": [Study("Dataset002_ACDC", number, PRIMARY) for number in (1, 5)],
    "secondary": [Study(name, 5, SECONDARY) for name in ("Dataset001_Hippocampus", "Dataset008_Prostate")],
    "remedies": [Study("Dataset002_ACDC", number, tuple(REMEDIES)) for number in (1, 5)],
}


def knows_no_weights(system: str) -> bool:
    """Whether a system gives the same whatever weights are compared."""
    method, words = SYSTEMS[system]
    return not method.startswith("2d_") or method == "2d_unet" or set(RANDOM) <= set(words)


def taken_over(steps: dict[str, Any]) -> dict[str, Any]:
    """Those steps of results with other weights that do not depend on them, and the draws of cases."""
    return {
        name: value
        for name, value in steps.items()
        if (words := name.split())[-1] == "cases" or (len(words) > 4 and knows_no_weights(words[3]))
    }


def labelled_cases(source: Path, dataset: str, number: int, seed: int) -> list[str]:
    """Cases to train on: drawn from those that are not held out, no two of one patient."""
    ending = json.loads((source / "dataset.json").read_text())["file_ending"]
    names = {file.name.removesuffix(ending) for file in (source / "labelsTr").glob(f"*{ending}")}
    pool = sorted(names - set(held_out_cases(dataset)))
    drawn = np.random.default_rng(seed).permutation(len(pool))
    chosen: dict[str, str] = {}
    for index in drawn:
        chosen.setdefault(patient_of(pool[index]), pool[index])
    return list(chosen.values())[:number]


def place_weights(weights: Path, folder: Path) -> None:
    """Copy weights (with a pair's decoder) to the name under which the encoder's are looked for."""
    folder.mkdir(parents=True, exist_ok=True)
    decoder = decoder_file(weights)
    if decoder is None:
        shutil.copyfile(weights, folder / f"samunet_{ENCODER}{weights.suffix}")
        return
    encoder = folder / f"samunet_{ENCODER}{ENCODER_ENDING}"
    shutil.copyfile(weights, encoder)
    other = decoder_file(encoder)
    assert other is not None
    shutil.copyfile(decoder, other)


@dataclass(frozen=True)
class Comparison:
    """What all studies share."""

    arguments: argparse.Namespace
    work: Path
    weights: Path
    results: ResultsFile

    def run(self, study: Study, seed: int) -> None:
        """All systems on one draw of labelled cases."""
        arguments, name = self.arguments, study.name(seed)
        folder = self.work / name.replace(" ", "_")
        bench = Bench(arguments.data, folder, arguments.bin, arguments.device, self.results, PREDICTING)
        cases = labelled_cases(arguments.data / study.dataset, study.dataset, study.labelled, seed)
        bench.prepare(study.dataset, training=cases)
        place_weights(self.weights, bench.workspace() / "weights")
        if f"{name} cases" not in self.results.steps:
            self.results.save(f"{name} cases", cases)
        systems = [system for system in study.systems if system in arguments.systems]
        if any(system != PEER and not bench.is_scored(f"{name} {system}") for system in systems):
            methods = {SYSTEMS[system][0] for system in study.systems if system != PEER}
            bench.plan(f"{name} plan", study.dataset, sorted(methods), "-encoder", ENCODER)
        for system in systems:
            if system == PEER:
                self._peer(bench, study, seed)
                continue
            method, words = SYSTEMS[system]
            budget = ("--time_budget", f"{arguments.minutes:g}", "--seed", str(seed))
            training = Training(
                f"{name} {system}", study.dataset, method, tag=system, words=(*budget, *words)
            )
            bench.train_and_score(training)

    def _peer(self, bench: Bench, study: Study, seed: int) -> None:
        """nnunetv2's 2d: own plan, recipe and prediction; TimedTrainer sets length, seed and batch."""
        name, bin_folder = f"{study.name(seed)} {PEER}", self.arguments.peer_bin
        if bin_folder is None:
            print(f"left out {name}: no --peer-bin", flush=True)
            return
        if bench.is_scored(name):
            return
        number, log = bench.number(study.dataset), bench.work / "logs"
        environment = self._peer_environment(bench, seed)
        chosen = [number, "2d", "all", "-tr", "TimedTrainer", "-device", self.arguments.device]
        output, images = bench.work / "predictions" / PEER, bench.test(study.dataset, "images")
        which = ["-d", number, "-c", "2d", "-f", "all", "-tr", "TimedTrainer", "-npp", "1", "-nps", "1"]
        commands: dict[str, list[str | Path]] = {
            "plan": ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "-np", "1", "-npfp", "1"],
            "train": ["nnUNetv2_train", *chosen],
            "predict": [
                *("nnUNetv2_predict", "-i", images, "-o", output),
                *(*which, "-device", self.arguments.device, *PREDICTING),
            ],
        }
        made = {"plan": environment["nnUNet_preprocessed"], "train": environment["nnUNet_results"]}
        for step, (script, *words) in commands.items():
            command, file = [bin_folder / script, *words], log / f"{PEER}_{step}.txt"
            product = Path(made.get(step, output))
            self.results.measure(f"{name} {step}", command, file, environment, product)
        labels = bench.test(study.dataset, "labels")
        description = self.arguments.data / study.dataset / "dataset.json"
        self.results.save(f"{name} scores", dice_scores(labels, output, description))

    def _peer_environment(self, bench: Bench, seed: int) -> dict[str, str]:
        return {
            "nnUNet_raw": str(bench.workspace() / "raw"),
            "nnUNet_preprocessed": str(bench.work / "peer" / "preprocessed"),
            "nnUNet_results": str(bench.work / "peer" / "results"),
            "nnUNet_extTrainer": str(Path(__file__).with_name("nnunet_peer").resolve()),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "2",
            "PEER_MINUTES": f"{self.arguments.minutes:g}",
            "PEER_SEED": str(seed),
            "PEER_BATCH": str(SMALL_BATCH),
            # On a busy machine its threads must wait asleep, not spinning.
            "OMP_WAIT_POLICY": "passive",
            "GOMP_SPINCOUNT": "0",
        }


def report(steps: dict[str, Any]) -> None:
    """Mean Dice over seeds of each system; what the weights bring, and the lead over other networks."""
    for kind, study in [(kind, study) for kind, studies in STUDIES.items() for study in studies]:
        rows = {}
        for system in study.systems:
            found = {
                seed: steps[f"{study.name(seed)} {system} scores"]
                for seed in range(100)
                if f"{study.name(seed)} {system} scores" in steps
            }
            if found:
                rows[system] = found
        if not rows:
            continue
        print(f"\n{kind}: {study.dataset}, {study.labelled} labelled")
        dices = {system: [scores["dice"] for scores in found.values()] for system, found in rows.items()}
        for system, values in sorted(dices.items(), key=lambda row: -float(np.mean(row[1]))):
            spread = f"+- {np.std(values, ddof=1):.3f}" if len(values) > 1 else "        "
            shown = " ".join(f"{value:.3f}" for value in values)
            print(f"  {system:20} {np.mean(values):.3f} {spread}  ({shown})")
        for system in rows:
            if system.endswith("_random"):
                _difference(rows, system.removesuffix("_random"), system)
        for method in ("2d_cnn", "2d_autosam"):
            for other in (
                f"{method}_frozen",
                f"{method}_frozen_random",
                f"{method}_scratch",
                "2d_unet",
                PEER,
            ):
                _difference(rows, f"{method}_tuned", other)


def _difference(rows: dict[str, dict[int, dict[str, Any]]], ours: str, other: str) -> None:
    """Mean difference over the seeds that both have, with its interval over patients."""
    found = seed_difference(rows.get(ours, {}), rows.get(other, {}))
    if found is not None:
        seeds = len(found.each)
        print(
            f"    {ours} - {other}: {found.mean:+.1f} points [{found.low:+.1f}, {found.high:+.1f}] over "
            f"patients ({seeds} seed{'s' * (seeds > 1)})"
        )


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Few labels: pretrained weights against none, in equal time."
    )
    parser.add_argument("--data", type=Path, help="folder with the DatasetXXX_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder and results")
    parser.add_argument("--weights", type=Path, help="of vit_tiny; default: those shipped with samunet")
    parser.add_argument("--minutes", type=float, default=10.0, help="time budget of each training")
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=["primary", "secondary"])
    parser.add_argument("--labelled", nargs="+", type=int, help="only studies with these numbers of cases")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bin", type=Path, default=Bench.own_bin(), help="folder of samunet_train")
    parser.add_argument("--peer-bin", type=Path, help="folder of nnUNetv2_train (an environment of its own)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--take", type=Path, help="results with other weights, for what needs none")
    parser.add_argument("--report", action="store_true", help="only print what there is")
    parser.add_argument("--keep", type=Path, help="copy the results file into this folder at the end")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    work: Path = arguments.work.resolve()
    file = work / "few_label.json"
    if arguments.report:
        report(json.loads(file.read_text())["steps"])
        return
    weights = arguments.weights or shipped_weights(ENCODER)
    if weights is None or arguments.data is None:
        raise SystemExit(f"Give --data, and --weights FILE: this samunet ships no weights of {ENCODER}.")
    setup = {"minutes": arguments.minutes, "weights_sha256": weights_sha256(weights)}
    results = ResultsFile(file, {"hardware": hardware(), "load_at_start": machine_load(), **setup})
    results.require(setup, advice=f", and --take {file} for what needs no weights")
    if arguments.take is not None:
        for name, value in taken_over(json.loads(arguments.take.read_text())["steps"]).items():
            if name not in results.steps:
                results.save(name, value)
    comparison = Comparison(arguments, work / "few_label", weights, results)
    # Seed by seed, so that an interrupted comparison has all systems on the same draws.
    for seed in arguments.seeds:
        for study in [study for kind in arguments.studies for study in STUDIES[kind]]:
            if arguments.labelled is None or study.labelled in arguments.labelled:
                comparison.run(study, seed)
    report(results.steps)
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, arguments.keep / f"{hardware()['date']}_few_label.json")


if __name__ == "__main__":
    main()
