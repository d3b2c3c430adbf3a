"""How often the lower bounds of qc.json hold on held-out cases, with Clopper-Pearson intervals.

    python benchmarks/qc_coverage.py --labels LABELS --predictions OUT [OUT ...] --work FOLDER
    python benchmarks/qc_coverage.py --labels LABELS --predictions OUT --work FOLDER --images IMAGES \
        --words -d 101 -c 2d_cnn --workspace WORKSPACE

Each OUT is a folder that samunet_predict wrote, with its qc.json; with --images it is predicted first (or
continued), by `samunet_predict` with the --words. Several folders compare, for instance, all folds and one
alone. The interval counts patients: with --groups (a groups.csv with the columns case and group) a patient
is covered when all of its cases are, without it every case is a patient. Cases whose input is flagged are
shown once more by themselves: for them the bound promises nothing. Scores and figures are in
WORK/qc_coverage.json; start again to go on.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measured_commands import ResultsFile, hardware, machine_load
from real_runs import Bench
from scipy.stats import beta, spearmanr

from samunet.data.labels import LabelSet
from samunet.evaluation.folder import evaluate_folder
from samunet.pipeline.qc.predictions import CaseVerdict, QCReport
from samunet.records import read_json, read_record

RESULT_TOPICS = ("class", "volume")
"""Flags of the segmentation; leaving these cases out would flatter the bound."""
Dice = dict[str, dict[str, float]]
"""Case -> class -> Dice, without undefined ones."""


def clopper_pearson(covered: int, number: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share of `number` independent patients."""
    rest = (1 - level) / 2
    low = 0.0 if covered == 0 else float(beta.ppf(rest, covered, number - covered + 1))
    high = 1.0 if covered == number else float(beta.ppf(1 - rest, covered + 1, number - covered))
    return low, high


def true_dice(labels: Path, predictions: Path) -> Dice:
    """Dice of every predicted case that has a label."""
    content = read_json(predictions / "dataset.json")
    classes = LabelSet.from_dataset_json(content, str(predictions / "dataset.json"))
    scores = evaluate_folder(labels, predictions, classes, content["file_ending"], chill=True, workers=1)
    return {
        case.name: {name: m["Dice"] for name, m in case.metrics.items() if not math.isnan(m["Dice"])}
        for case in scores.cases
    }


def coverage(cases: Sequence[CaseVerdict], dice: Dice, patients: Mapping[str, str]) -> dict[str, Any]:
    """Coverage per class, and of all classes of a patient at once (which is not promised)."""
    names = list(cases[0].classes) if cases else []
    result = {name: _of_classes(cases, dice, patients, [name]) for name in names}
    return {**result, "all classes at once": _of_classes(cases, dice, patients, names)}


def _of_classes(
    cases: Sequence[CaseVerdict], dice: Dice, patients: Mapping[str, str], names: Sequence[str]
) -> dict[str, Any]:
    kept: dict[str, bool] = {}
    predicted, true, widths = [], [], []
    for case in cases:
        for name in names:
            verdict, value = case.classes[name], dice.get(case.case, {}).get(name)
            if value is None or verdict.lower_bound is None or verdict.predicted_dice is None:
                continue
            patient = patients.get(case.case, case.case)
            kept[patient] = kept.get(patient, True) and value >= verdict.lower_bound
            predicted.append(verdict.predicted_dice)
            true.append(value)
            widths.append(verdict.predicted_dice - verdict.lower_bound)
    if not kept:
        return {"patients": 0}
    covered = sum(kept.values())
    related = spearmanr(predicted, true).statistic if len(set(predicted)) > 1 < len(set(true)) else math.nan
    return {
        "patients": len(kept),
        "covered": covered,
        "share": covered / len(kept),
        "interval_95": clopper_pearson(covered, len(kept)),
        "mean_width": float(np.mean(widths)),
        "mean_error": float(np.mean(np.abs(np.subtract(predicted, true)))),
        "mean_dice": float(np.mean(true)),
        "spearman": None if math.isnan(related) else float(related),
    }


def measure(folder: Path, dice: Dice, patients: Mapping[str, str]) -> dict[str, Any]:
    """The figures of one folder of predictions, of all cases and of those whose input is flagged."""
    report = read_record(QCReport, folder / "qc.json")
    flagged = [case for case in report.cases if any(f.topic not in RESULT_TOPICS for f in case.flags)]
    return {
        "model": report.model,
        "folds": report.folds,
        "coverage_aimed_at": report.coverage,
        "calibration": report.calibration,
        "all": coverage(report.cases, dice, patients),
        "input flagged": coverage(flagged, dice, patients),
    }


def show(name: str, figures: dict[str, Any]) -> None:
    print(f"{name}: {figures['model']}, folds {', '.join(figures['folds'])}; {figures['calibration']}")
    for part in ("all", "input flagged"):
        for scope, found in figures[part].items():
            if not found["patients"]:
                continue
            low, high = found["interval_95"]
            related = "-" if found["spearman"] is None else f"{found['spearman']:.2f}"
            print(
                f"  {part:13} {scope:22} {found['covered']:3d} of {found['patients']:3d} covered: "
                f"{found['share']:.3f} [{low:.3f}, {high:.3f}]  bound {found['mean_width']:.3f} below  "
                f"mean error {found['mean_error']:.3f}  Spearman {related}"
            )


def read_patients(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    with open(file, newline="", encoding="utf-8") as stream:
        return {row["case"]: row["group"] for row in csv.DictReader(stream)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Coverage of qc.json's lower bounds on held-out cases.")
    parser.add_argument("--labels", type=Path, required=True, help="reference label maps")
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="folders with qc.json")
    parser.add_argument("--work", type=Path, required=True, help="where the results file goes")
    parser.add_argument("--groups", type=Path, help="groups.csv of the held-out cases")
    parser.add_argument("--images", type=Path, help="predict these first; needs --words")
    parser.add_argument("--bin", type=Path, default=Bench.own_bin(), help="folder of samunet_predict")
    parser.add_argument("--words", nargs=argparse.REMAINDER, default=[], help="of samunet_predict; last")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    header = {"hardware": hardware(), "load_at_start": machine_load()}
    results = ResultsFile(arguments.work / "qc_coverage.json", header)
    patients = read_patients(arguments.groups)
    for folder in arguments.predictions:
        if arguments.images is not None:
            words = ["-i", arguments.images, "-o", folder, "--continue_prediction", *arguments.words]
            command = [arguments.bin / "samunet_predict", *words]
            results.measure(f"{folder.name} predict", command, arguments.work / f"{folder.name}.txt")
        if f"{folder.name} dice" not in results.steps:
            results.save(f"{folder.name} dice", true_dice(arguments.labels, folder))
        figures = measure(folder, results.steps[f"{folder.name} dice"], patients)
        results.save(f"{folder.name} coverage", figures)
        show(folder.name, figures)


if __name__ == "__main__":
    main()
