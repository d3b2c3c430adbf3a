"""Can a method learn two real cases by heart? A test of its whole path: it must reach a Dice of 0.85.

    python benchmarks/overfit.py --data FOLDER --work FOLDER --minutes 20 [--method 3d_adapter] [--set
        KEY=VALUE ...]

Two cases of Dataset004 (five organs on coarse voxels) are trained on (fold `all`, no augmentation), predicted
and scored. Nothing is held out: the figure says that network, loss, sampling, sliding window and export fit
together, and nothing about new cases.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from measured_commands import ResultsFile, hardware
from real_runs import Bench
from subsets import dice_scores, make_test_folders, make_training_dataset

DATASET = "Dataset004_HaN_CT"
BAR = 0.85


def main() -> None:
    parser = argparse.ArgumentParser(description="A method on two real cases, scored on the same.")
    parser.add_argument("--data", type=Path, required=True, help="folder with Dataset004_HaN_CT")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder and results")
    parser.add_argument("--method", default="3d_adapter")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--tag", default="overfit")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--bin", type=Path, default=Bench.own_bin(), help="folder of samunet_train")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    results = ResultsFile(work / "overfit.json", {"hardware": hardware()})
    bench = Bench(arguments.data, work / "overfit", arguments.bin, arguments.device, results)
    source = arguments.data / DATASET
    ending = json.loads((source / "dataset.json").read_text())["file_ending"]
    names = sorted(file.name.removesuffix(ending) for file in (source / "labelsTr").glob(f"*{ending}"))[:2]
    make_training_dataset(source, bench.workspace() / "raw" / DATASET, names)
    images, labels = bench.test(DATASET, "images"), bench.test(DATASET, "labels")
    make_test_folders(source, images, labels, names)
    number, name = bench.number(DATASET), f"{arguments.method} {arguments.tag}"
    planning = ["-d", number, "-c", arguments.method]
    bench.measure(f"{arguments.method} plan", "samunet_plan_and_preprocess", *planning)
    settings = ["augmentation=none", *arguments.settings]
    words = [word for setting in settings for word in ("--set", setting)]
    which = ["-device", arguments.device, "--tag", arguments.tag]
    train = [number, arguments.method, "all", "--overwrite", "--time_budget", f"{arguments.minutes:g}"]
    bench.measure(f"{name} train", "samunet_train", *train, *which, *words)
    output = bench.work / "predictions" / name.replace(" ", "_")
    folders = ["-i", images, "-o", output, "-d", number, "-c", arguments.method, "--disable_tta"]
    bench.measure(f"{name} predict", "samunet_predict", *folders, *which)
    scores = dice_scores(labels, output, source / "dataset.json")
    results.save(f"{name} scores", {**scores, "settings": settings})
    print(json.dumps(scores, indent=1))
    print(f"mean Dice {scores['dice']:.3f}, bar {BAR}: {'reached' if scores['dice'] >= BAR else 'MISSED'}")


if __name__ == "__main__":
    main()
