"""Time and memory of `-h`, ours and nnU-Net's, in one run.

python benchmarks/startup.py [--peer FOLDER_WITH_NNUNET_PROGRAMS] [--repeats 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

PAIRS = {
    "samunet_train": "nnUNetv2_train",
    "samunet_predict": "nnUNetv2_predict",
    "samunet_plan_and_preprocess": "nnUNetv2_plan_and_preprocess",
    "samunet_evaluate_folder": "nnUNetv2_evaluate_folder",
}


def measure(program: Path, repeats: int) -> dict[str, float]:
    """Median wall seconds and largest resident megabytes of `program -h`."""
    seconds, megabytes = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        process = subprocess.Popen([str(program), "-h"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - start)
        megabytes.append(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6)
        if status != 0:
            raise SystemExit(f"{program} -h failed with status {status}")
    return {"seconds": round(statistics.median(seconds[1:]), 3), "megabytes": round(max(megabytes), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--own", type=Path, default=Path(sys.executable).parent, help="folder of our programs"
    )
    parser.add_argument("--peer", type=Path, help="folder of nnU-Net's programs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    figures = {}
    for own, peer in PAIRS.items():
        figures[own] = measure(arguments.own / own, arguments.repeats)
        if arguments.peer is not None and (arguments.peer / peer).exists():
            figures[peer] = measure(arguments.peer / peer, max(1, arguments.repeats // 2))
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "figures": figures,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
