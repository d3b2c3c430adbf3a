"""Time and parameters of the SAM encoders and heads: encoding, a training step, a step on cached features.

python benchmarks/encoder_speed.py [--encoders vit_tiny vit_b] [--size 224] [--batch 8] [--threads 2]

Weights are random: the figures say nothing about accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do; before torch is imported

import torch

from samunet.networks.autosam import build_autosam
from samunet.networks.cnn import build_cnn
from samunet.networks.linear import build_linear
from samunet.networks.picture import SliceSettings
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam_slices import SamSliceNetwork

BUILDERS = {"2d_linear": build_linear, "2d_cnn": build_cnn, "2d_autosam": build_autosam}


def seconds(action: Callable[[], Any], repeats: int) -> float:
    """Wall seconds of the fastest of some calls (others work on the machine too), one more to warm up."""
    device_wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    figures = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        action()
        device_wait()
        figures.append(time.perf_counter() - start)
    return round(min(figures[1:]), 4)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def measure(network: SamSliceNetwork, slices: torch.Tensor, repeats: int) -> dict[str, float]:
    """Seconds a batch: `encode` without a graph, `predict`, `train` (forward and backward), `cached` step."""

    def predict() -> None:
        with torch.no_grad():
            network.eval()(slices)

    def train() -> None:
        network.train()(slices).square().mean().backward()

    def encode() -> Any:
        with torch.no_grad():
            return network.encode(slices)

    features = encode()

    def cached() -> None:
        network.train().decode(features).square().mean().backward()

    figures = {"encode": seconds(encode, repeats), "predict": seconds(predict, repeats)}
    figures |= {"train": seconds(train, repeats), "cached": seconds(cached, repeats)}
    figures |= {"encoder": parameters(network.encoder), "head": parameters(network.head)}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=["vit_tiny"])
    parser.add_argument("--methods", nargs="+", default=list(BUILDERS), choices=BUILDERS)
    parser.add_argument("--size", type=int, help="encoder input in pixels (default: the variant's)")
    parser.add_argument("--patch", type=int, nargs=2, default=(256, 224), help="slice height and width")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frozen", action="store_true", help="the encoder is not trained")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    slices = torch.randn(arguments.batch, 1, *arguments.patch, device=arguments.device)
    figures = {}
    for encoder in arguments.encoders:
        settings = SliceSettings(
            variant=encoder,
            input_size=arguments.size or get_variant(encoder).input_size,
            patch_size=tuple(arguments.patch),
            num_channels=1,
            num_outputs=arguments.classes,
            display_window=((-2.0, 3.0),),
            frozen=arguments.frozen,
        )
        for method in arguments.methods:
            network = BUILDERS[method](settings).to(arguments.device)
            figures[f"{encoder} {method}"] = measure(network, slices, arguments.repeats)
            print(f"{encoder} {method}: {figures[f'{encoder} {method}']}", flush=True)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "settings": {key: value for key, value in vars(arguments).items() if key != "out"},
        "seconds_a_batch_and_parameters": figures,
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
