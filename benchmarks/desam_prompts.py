"""Prediction of `2d_desam` with a grid of points: what is computed once, and what is not decoded at all.

    python benchmarks/desam_prompts.py --out FILE [--variants vit_b vit_h] [--input-size 1024] [--device cuda]

One slice, random weights, the decoder alone (the encoder's features are random numbers of the right size),
the 9 x 9 grid. Three ways with the same result, nine points at once in each: `recomputed`, each point with
context branches of its own; `shared`, the context once and the mask of every point; `used`, which is the
prediction code: the context once, every point judged, and only the mask that wins decoded. Bars: `shared` at
most 0.6 (ViT-B) and 0.5 (ViT-H) of the time of `recomputed`. Arithmetic is counted too, which nothing else
on the machine disturbs. Finished measurements stand in FILE; start again to go on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measured_commands import ResultsFile, hardware, machine_load
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from samunet.networks.desam import DesamHead, DesamSettings
from samunet.networks.features import Features
from samunet.networks.sam.variants import PATCH, get_variant

BARS = {"vit_b": 0.6, "vit_l": 0.6, "vit_h": 0.5}
SIDE = 9


def head_and_features(name: str, input_size: int, device: torch.device) -> tuple[DesamHead, Features]:
    """A decoder with random weights, and features of one slice."""
    variant, grid = get_variant(name), input_size // PATCH
    torch.manual_seed(0)
    with device:
        head = DesamHead(
            DesamSettings(variant=variant, outputs=1, background=True, input_size=input_size, grid_side=SIDE)
        ).eval()
        depths = tuple(torch.randn(1, variant.width, grid, grid) for _ in head.blocks)
        neck = torch.randn(1, variant.prompt_dim, grid, grid)
    return head, Features(levels=(*depths, neck), output_size=(input_size, input_size))


def used(head: DesamHead, features: Features) -> Tensor:
    return head(features)


def shared(head: DesamHead, features: Features) -> Tensor:
    """The context once; the mask of every point, the best kept."""
    context = head.context(features)
    parts = tokens_of(head, features).split(head.settings.chunk)
    return _best(head, [head.prompted(context, features, part) for part in parts])


def recomputed(head: DesamHead, features: Features) -> Tensor:
    """Context branches for each point anew, as many points at once as in the other ways."""
    found = []
    for part in tokens_of(head, features).split(head.settings.chunk):
        levels = tuple(level.expand(len(part), -1, -1, -1) for level in features.levels)
        repeated = Features(levels=levels, output_size=features.output_size)
        logits, iou = head.prompted(head.context(repeated), repeated, part[:, None])
        assert iou is not None
        found.append((logits.transpose(0, 1), iou.transpose(0, 1)))
    return _best(head, found)


def tokens_of(head: DesamHead, features: Features) -> Tensor:
    assert head.prompts is not None
    return head.prompts.points(head.grid_xy(features))


def _best(head: DesamHead, found: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    logits = torch.cat([part for part, _ in found], 1)
    iou = torch.cat([part for _, part in found if part is not None], 1)
    index = iou.argmax(1)[:, None, :, None, None].expand(-1, -1, -1, *logits.shape[-2:])
    return head.with_background(logits.gather(1, index)[:, 0])


WAYS: dict[str, Callable[[DesamHead, Features], Tensor]] = {
    "used": used,
    "shared": shared,
    "recomputed": recomputed,
}


@torch.inference_mode()
def seconds(way: Callable[..., Tensor], head: DesamHead, features: Features, repeats: int) -> dict[str, Any]:
    """Wall-clock and processor seconds of one slice, the least of the repeats."""
    cuda = features.levels[0].device.type == "cuda"
    found = []
    for _ in range(repeats):
        start, processor = time.perf_counter(), time.process_time()
        way(head, features)
        if cuda:
            torch.cuda.synchronize()
        found.append((time.perf_counter() - start, time.process_time() - processor))
    return {"seconds": min(wall for wall, _ in found), "processor_seconds": min(own for _, own in found)}


@torch.inference_mode()
def check_equal(head: DesamHead, features: Features) -> float:
    """Largest difference between the logits of the three ways."""
    results = [way(head, features) for way in WAYS.values()]
    return max(float((result - results[0]).abs().max()) for result in results[1:])


def tera_flop(name: str, input_size: int) -> dict[str, float]:
    """Arithmetic of one slice, counted on tensors without content."""
    head, features = head_and_features(name, input_size, torch.device("meta"))
    found = {}
    with torch.no_grad():
        for way in ("shared", "recomputed"):
            with FlopCounterMode(display=False) as counter:
                WAYS[way](head, features)
            found[way] = counter.get_total_flops() / 1e12
        # The prediction code looks at numbers, which tensors without content do not have.
        with FlopCounterMode(display=False) as counter:
            tokens, context = tokens_of(head, features), head.context(features)
            head.judge(features, tokens)
            head.prompted(context, features, tokens[:1])
        found["used"] = counter.get_total_flops() / 1e12
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Prompts of 2d_desam at prediction.")
    parser.add_argument("--out", type=Path, required=True, help="results file")
    parser.add_argument("--variants", nargs="+", choices=list(BARS), default=["vit_b", "vit_h"])
    parser.add_argument("--input-size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    header = {"hardware": hardware(), "device": arguments.device, "load_at_start": machine_load()}
    if arguments.device == "cuda":
        header["gpu"] = torch.cuda.get_device_name()
    results = ResultsFile(arguments.out, header)
    for name in arguments.variants:
        step = f"{name} at {arguments.input_size}"
        head, features = head_and_features(name, arguments.input_size, torch.device(arguments.device))
        if f"{step} counted" not in results.steps:
            results.save(f"{step} counted", tera_flop(name, arguments.input_size))
            results.save(f"{step} largest difference", check_equal(head, features))
        for way, function in WAYS.items():
            if f"{step} {way}" not in results.steps:
                results.save(f"{step} {way}", seconds(function, head, features, arguments.repeats))
        report(results.steps, step, BARS[name])


def report(steps: dict[str, Any], step: str, bar: float) -> None:
    counted, whole = steps[f"{step} counted"], steps[f"{step} recomputed"]
    print(f"{step}: largest difference of the logits {steps[f'{step} largest difference']:.1e}")
    for way in WAYS:
        own = steps[f"{step} {way}"]
        print(
            f"  {way:10} {own['seconds']:8.2f} s ({own['processor_seconds']:.2f} s of processor)  "
            f"{own['processor_seconds'] / whole['processor_seconds']:.3f} of recomputed   "
            f"{counted[way]:.3f} TFLOP, {counted[way] / counted['recomputed']:.3f}"
        )
    print(f"  bar of shared: {bar}")


if __name__ == "__main__":
    main()
