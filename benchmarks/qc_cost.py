"""What the features of qc.json cost: CPU time of predicting one case with and without them.

    python benchmarks/qc_cost.py --model MODEL_FOLDER --image CASE_0000.nii.gz [--folds 0] [--disable-tta]

Process time, which other work on the machine disturbs less than the clock; the two kinds of run take turns,
and the fastest of each counts. The logits of both must be the same to the last bit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from samunet.data.readers import read_image
from samunet.inference.folder import single_case
from samunet.inference.predictor import Predictor

Result = TypeVar("Result")


def timed(action: Callable[[], Result]) -> tuple[float, Result]:
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of the features of qc.json.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--folds", type=int, nargs="+")
    parser.add_argument("--disable-tta", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    mirroring = not arguments.disable_tta
    predictor = Predictor.load(arguments.model, arguments.folds, device="cpu", mirroring=mirroring)
    image, geometry = read_image(
        single_case(arguments.image, predictor.plan.file_ending, len(predictor.plan.channel_names)).images
    )
    ready = predictor.preprocess(image, geometry, str(arguments.image)).image
    plain, watched = [], []
    for _ in range(arguments.repeats):
        seconds, logits = timed(lambda: predictor.predict_preprocessed(ready))
        plain.append(seconds)
        seconds, (same, _) = timed(lambda: predictor.predict_observed(ready))
        watched.append(seconds)
        assert torch.equal(logits, same)
    without, with_features = min(plain), min(watched)
    print(
        f"{predictor.describe()}\n{tuple(ready.shape)}, {predictor.plan.labels.num_outputs} outputs: "
        f"{without:.2f} s without, {with_features:.2f} s with features: {with_features / without - 1:+.1%}"
    )


if __name__ == "__main__":
    main()
