"""Does samunet's evaluator agree with nnU-Net's on the shared keys?

Disturbs reference labels into predictions, scores them with both evaluators (nnU-Net's own
`compute_metrics_on_folder`, run by another Python that has nnunetv2) and compares all shared numbers: with
classes, with overlapping regions, and with an ignore label.

    python benchmarks/evaluator_parity.py --data DATASET_FOLDER --nnunet_python PYTHON_WITH_NNUNETV2
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from samunet.data.dataset import RawDataset
from samunet.data.labels import LabelSet
from samunet.data.readers import read_label, write_segmentation
from samunet.evaluation.folder import evaluate_folder
from samunet.evaluation.scores import OVERLAP_METRICS

TOLERANCE = 1e-6
THEIRS = """
import json, sys
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    regions = [tuple(r) if isinstance(r, list) else r for r in task["regions"]]
    reader = determine_reader_writer_from_file_ending(task["ending"], None, True, False)()
    compute_metrics_on_folder(
        task["references"], task["predictions"], task["output"], reader, task["ending"], regions,
        task["ignore"], num_processes=1, chill=False,
    )
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a raw dataset folder")
    parser.add_argument("--nnunet_python", required=True, help="a Python with nnunetv2 installed")
    parser.add_argument("--cases", type=int, default=12, help="number of cases")
    arguments = parser.parse_args()
    dataset = RawDataset.load(arguments.data)
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(dataset, arguments.cases, folder)
        for variant, labels in variants(dataset.labels).items():
            references = folder / ("ignored" if labels.ignore is not None else "references")
            ours, theirs = folder / "ours.json", folder / "theirs.json"
            ending = dataset.label_ending
            evaluate_folder(references, folder / "predictions", labels, ending).save(ours)
            run_theirs(arguments.nnunet_python, labels, (references, folder / "predictions", theirs), ending)
            largest, compared, undefined = compare(
                json.loads(ours.read_text()), json.loads(theirs.read_text())
            )
            worst = max(worst, largest)
            print(
                f"{dataset.name}, {variant}: {compared} numbers, largest difference {largest:.3g}; "
                f"{undefined} means are NaN with nnU-Net and defined here"
            )
    print("agree" if worst <= TOLERANCE else f"differ by more than {TOLERANCE}")
    return 0 if worst <= TOLERANCE else 1


def variants(labels: LabelSet) -> dict[str, LabelSet]:
    """The dataset's classes, the same with an ignore label, and nested regions of them."""
    values = [v for v in labels.values if v]
    classes = LabelSet(labels={"background": (0,), **{f"class {v}": (v,) for v in values}})
    nested = {f"from {v}": tuple(w for w in values if w >= v) for v in values}
    regions = LabelSet(
        labels={"background": (0,), "all": (*values, max(values) + 2), **nested},
        region_order=tuple([values[0], *values]),
        listed=tuple(nested),
    )
    ignored = LabelSet(labels=classes.labels, ignore=max(values) + 1)
    absent = LabelSet(labels={**classes.labels, "absent": (max(values) + 2,)})
    return {"classes": classes, "regions": regions, "ignore label": ignored, "an absent class": absent}


def write_files(dataset: RawDataset, num_cases: int, folder: Path) -> None:
    """References, references with an ignored part, and predictions disturbed by a smooth shift and holes."""
    rng = np.random.default_rng(0)
    ignore = max(dataset.labels.values) + 1
    for number, case in enumerate(dataset.cases[:num_cases]):
        assert case.label is not None
        label, geometry = read_label(case.label)
        shift = tuple(int(s) for s in rng.integers(-2, 3, 3) * (np.array(label.shape) > 1))
        prediction = np.roll(label, shift, (0, 1, 2))
        holes = gaussian_filter(rng.normal(size=label.shape), [min(2, n // 4) for n in label.shape])
        prediction[holes > 2 * holes.std()] = 0
        if number == 0:
            prediction[prediction == max(dataset.labels.values)] = 0  # a class that the prediction misses
        ignored = label.astype(np.int32)
        ignored[:, : label.shape[1] // 3] = ignore
        for part, array in (("references", label), ("predictions", prediction), ("ignored", ignored)):
            write_segmentation(array, geometry, folder / part / case.label.name)


def run_theirs(python: str, labels: LabelSet, files: tuple[Path, Path, Path], ending: str) -> None:
    regions = [
        list(values) if labels.has_regions and (len(values) > 1 or name in labels.listed) else values[0]
        for name, values in labels.labels.items()
        if values != (0,)
    ]
    names = dict(zip(("references", "predictions", "output"), map(str, files)))
    task = {**names, "regions": regions, "ignore": labels.ignore, "ending": ending}
    script = files[2].with_suffix(".py")
    script.write_text(THEIRS)
    subprocess.run([python, str(script), json.dumps(task)], check=True, stdout=subprocess.DEVNULL)


def compare(ours: dict, theirs: dict) -> tuple[float, int, int]:
    """Largest difference over all shared numbers, their count, and how many means only nnU-Net leaves NaN."""
    pairs, undefined = [], 0
    for key, scores in theirs["mean"].items():
        pairs += [(ours["mean"][key][metric], scores[metric]) for metric in OVERLAP_METRICS]
    for metric in OVERLAP_METRICS:
        mine, other = ours["foreground_mean"][metric], theirs["foreground_mean"][metric]
        undefined += math.isnan(other) and not math.isnan(mine)
        pairs += [] if math.isnan(other) else [(mine, other)]
    mine_by_file = {case["reference_file"]: case for case in ours["metric_per_case"]}
    for case in theirs["metric_per_case"]:
        mine = mine_by_file[case["reference_file"]]
        assert mine["prediction_file"] == case["prediction_file"]
        for key, scores in case["metrics"].items():
            pairs += [(mine["metrics"][key][metric], scores[metric]) for metric in OVERLAP_METRICS]
    return max(difference(one, two) for one, two in pairs), len(pairs), undefined


def difference(one: float, two: float) -> float:
    """Absolute difference; two NaN are equal, NaN and a number are infinitely apart."""
    if math.isnan(one) or math.isnan(two):
        return 0.0 if math.isnan(one) and math.isnan(two) else math.inf
    return abs(one - two)


if __name__ == "__main__":
    sys.exit(main())
