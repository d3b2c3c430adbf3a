"""Choose, once and for all, the cases that are kept out of every training whose figures we quote.

    python benchmarks/make_held_out.py --data FOLDER            # writes benchmarks/held_out.json
    python benchmarks/make_held_out.py --data FOLDER --check    # fails where the file differs

The draw is seeded per dataset, so that adding a dataset changes no other one. Rules: patients stay together
(two frames of a heart are one patient), groups are held out in proportion, a declared foreign site is held
out whole, and a set too small to give any case away is named as a target that nothing trains on.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

SEED = 20260711
NUM_PARITY_TRAINING = 5
HELD_OUT_FILE = Path(__file__).with_name("held_out.json")


def case_names(dataset: Path) -> list[str]:
    """Names of the labelled cases, sorted."""
    ending = json.loads((dataset / "dataset.json").read_text())["file_ending"]
    return sorted(file.name.removesuffix(ending) for file in (dataset / "labelsTr").glob(f"*{ending}"))


def case_groups(dataset: Path) -> dict[str, str]:
    """Case -> group, from groups.csv."""
    with open(dataset / "groups.csv", newline="") as file:
        return {row["case"]: row["group"] for row in csv.DictReader(file)}


def _draw(items: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
    return sorted(generator.choice(sorted(items), size=count, replace=False).tolist())


def draw_by_patient(names: Sequence[str], count: int, generator: np.random.Generator) -> list[str]:
    """All cases of randomly drawn patients (the name up to the first underscore), `count` cases in all."""
    patients = sorted({name.split("_")[0] for name in names})
    chosen: list[str] = []
    for patient in generator.permutation(patients):
        if len(chosen) >= count:
            break
        chosen += [name for name in names if name.startswith(f"{patient}_")]
    return sorted(chosen)


def draw_by_group(
    names: Sequence[str], groups: dict[str, str], share: float, generator: np.random.Generator
) -> list[str]:
    """The same share of every group, at least one case of each."""
    chosen: list[str] = []
    for group in sorted(set(groups.values())):
        members = [name for name in names if groups[name] == group]
        chosen += _draw(members, max(1, round(share * len(members))), generator)
    return sorted(chosen)


def build(data: Path) -> dict[str, object]:
    """The whole content of held_out.json."""

    def entry(name: str, rule: str, choose: Callable[[list[str], np.random.Generator], list[str]]) -> dict:
        names = case_names(data / name)
        held_out = choose(names, np.random.default_rng([SEED, int(name[7:10])]))
        return {"rule": rule, "cases": len(names), "held_out": held_out}

    def groups(name: str) -> dict[str, str]:
        return case_groups(data / name)

    head_neck, nuclei, prostate = "Dataset004_HaN_CT", "Dataset005_Nuclei", "Dataset008_Prostate"
    datasets = {
        "Dataset001_Hippocampus": entry(
            "Dataset001_Hippocampus", "60 cases at random", lambda names, rng: _draw(names, 60, rng)
        ),
        "Dataset002_ACDC": entry(
            "Dataset002_ACDC",
            "12 patients at random with both frames: 24 cases, patients kept together",
            lambda names, rng: draw_by_patient(names, 24, rng),
        ),
        "Dataset003_MSCMR_LGE": entry(
            "Dataset003_MSCMR_LGE",
            "all five: too few to train on, an unseen-domain target for models of Dataset002; under 20 cases",
            lambda names, rng: names,
        ),
        head_neck: entry(
            head_neck,
            "27 % of each group of groups.csv at random",
            lambda names, rng: draw_by_group(names, groups(head_neck), 0.27, rng),
        ),
        nuclei: entry(
            nuclei,
            "20 % of each group (stain) of groups.csv at random",
            lambda names, rng: draw_by_group(names, groups(nuclei), 0.20, rng),
        ),
        prostate: entry(
            prostate,
            "the whole site UCL (training site RUNMC): 13 cases, under 20 because the set has no more",
            lambda names, rng: [name for name in names if groups(prostate)[name] == "UCL"],
        ),
    }
    rng = np.random.default_rng([SEED, 1, NUM_PARITY_TRAINING])
    hippocampus = datasets["Dataset001_Hippocampus"]["held_out"]
    rest = sorted(set(case_names(data / "Dataset001_Hippocampus")) - set(hippocampus))
    parity = {
        "dataset": "Dataset001_Hippocampus",
        "rule": "five training cases at random among those not held out; scored on the 60 held out",
        "training": _draw(rest, NUM_PARITY_TRAINING, rng),
    }
    return {"seed": SEED, "made_by": "benchmarks/make_held_out.py", "datasets": datasets, "parity": parity}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the DatasetXXX_Name folders")
    parser.add_argument("--check", action="store_true", help="compare with held_out.json, write nothing")
    arguments = parser.parse_args()
    content = build(arguments.data)
    if arguments.check:
        same = json.loads(HELD_OUT_FILE.read_text()) == content
        print(f"{HELD_OUT_FILE} {'is' if same else 'IS NOT'} what this script draws from {arguments.data}")
        raise SystemExit(0 if same else 1)
    if HELD_OUT_FILE.exists():
        raise SystemExit(f"{HELD_OUT_FILE} is fixed; figures refer to it. Delete it by hand if you must.")
    HELD_OUT_FILE.write_text(json.dumps(content, indent=1) + "\n")
    for name, row in content["datasets"].items():
        print(f"{name}: {len(row['held_out'])} of {row['cases']} held out ({row['rule']})")
    print("parity training:", ", ".join(content["parity"]["training"]))


if __name__ == "__main__":
    main()
