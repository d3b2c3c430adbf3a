"""Inputs of the golden plans, and the command that writes them anew: `python tests/planning/golden.py`.

With `--data RAW` the fingerprints are measured again from the raw datasets there; only statistics are kept.
Review the difference by eye before it is committed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from samunet.planning.fingerprint import Fingerprint
from samunet.planning.plan import Budget, Plan, Verdict
from samunet.planning.planner import PlanningRequest, make_plan
from samunet.records import from_data, to_data

HERE = Path(__file__).parent
FINGERPRINTS = HERE / "fingerprints"
RECOMMENDATIONS = HERE / "golden_recommendations.json"
OFFICIAL = {"vit_b": "official", "vit_l": "official", "vit_h": "official"}
WEIGHTS = {"none": {}, "official": OFFICIAL}
GPU_GFLOPS = {
    8: {"conv2d": 4e3, "conv3d": 4e3, "vit": 8e3},
    12: {"conv2d": 6e3, "conv3d": 6e3, "vit": 15e3},
    24: {"conv2d": 12e3, "conv3d": 12e3, "vit": 40e3},
    80: {"conv2d": 25e3, "conv3d": 25e3, "vit": 100e3},
}
BUDGETS = {
    "cpu": Budget(
        device="cpu",
        memory_gb=12.8,
        hours=24.0,
        disk_gb=100.0,
        gflops={"conv2d": 100.0, "conv3d": 80.0, "vit": 110.0},
    ),
    **{
        f"{memory} GB": Budget(
            device="cuda", memory_gb=float(memory), hours=24.0, disk_gb=100.0, gflops=gflops
        )
        for memory, gflops in GPU_GFLOPS.items()
    },
}


def stored_fingerprints() -> dict[str, Fingerprint]:
    """Fingerprints of the shared datasets by name."""
    files = sorted(FINGERPRINTS.glob("*.json"))
    return {file.stem: from_data(Fingerprint, json.loads(file.read_text())) for file in files}


def golden_plan(fingerprint: Fingerprint, budget: str, weights: str) -> Plan:
    return make_plan(fingerprint, PlanningRequest(budget=BUDGETS[budget], weights=WEIGHTS[weights]))


def summary(plan: Plan) -> dict[str, object]:
    """What of a plan is pinned: the recommendation, each method's row and its reasons."""
    return {
        "recommended": plan.recommended,
        "methods": {v.method: [_row(plan, v), *v.reasons] for v in plan.verdicts},
    }


def _row(plan: Plan, verdict: Verdict) -> str:
    if verdict.method not in plan.configurations:
        return verdict.status
    chosen = plan.configurations[verdict.method]
    seen = " x ".join(map(str, chosen.patch_size))
    if chosen.encoder:
        seen += f" -> {chosen.encoder} ({chosen.encoder_weights})"
    if chosen.input_size:
        seen += f" at {chosen.input_size}"
    settings = ", ".join(f"{key}={value}" for key, value in chosen.settings.items())
    return f"{verdict.status}: {seen}, batch {chosen.batch_size}" + (f"; {settings}" if settings else "")


def all_summaries() -> dict[str, dict[str, object]]:
    return {
        f"{name}, {budget}, weights {weights}": summary(golden_plan(fingerprint, budget, weights))
        for name, fingerprint in stored_fingerprints().items()
        for weights in WEIGHTS
        for budget in BUDGETS
    }


def measure(raw: Path) -> None:
    """Store the fingerprints of the raw datasets, one line a case, statistics with six digits."""
    from samunet.data.dataset import RawDataset
    from samunet.planning.fingerprint import extract_fingerprint

    FINGERPRINTS.mkdir(exist_ok=True)
    for folder in sorted(raw.glob("Dataset*")):
        data = to_data(extract_fingerprint(RawDataset.load(folder)))
        cases = [json.dumps(_rounded(case), separators=(",", ":")) for case in data.pop("cases")]
        head = json.dumps({**data, "stamp": ""}, separators=(",", ":"))
        text = head[:-1] + ',"cases":[\n' + ",\n".join(cases) + "\n]}\n"
        (FINGERPRINTS / f"{folder.name}.json").write_text(text)


def _rounded(case: dict[str, object]) -> dict[str, object]:
    for key in ("channels", "channels_in_mask"):
        case[key] = [{k: float(f"{v:.6g}") for k, v in channel.items()} for channel in case[key]]
    return case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of raw datasets; measure them again")
    arguments = parser.parse_args()
    if arguments.data is not None:
        measure(arguments.data)
    RECOMMENDATIONS.write_text(json.dumps(all_summaries(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
