"""Memory and time of one training step of `3d_adapter`: counted without memory, measured where a GPU is.

    python benchmarks/adapter_memory.py [--encoder vit_b] [--patch 128 128 128] [--classes 14] [--out FILE]

The count runs the forward pass on tensors without content (bf16 autocast as on a CPU, which keeps the same
tensors as CUDA's up to the norms' inputs) and adds up the bytes of everything that autograd keeps, each
storage once, the weights, their gradients and AdamW's state. With checkpointing it adds what computing the
largest block again keeps. On CUDA the same step is run and its peak and seconds are measured. The weights are
random.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from measured_commands import hardware
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from samunet.networks.adapter3d import AdapterNetwork, AdapterSettings
from samunet.networks.sam.variants import get_variant
from samunet.networks.volume_encoder import VolumeEncoderSettings
from samunet.planning.memory import TOKEN_VALUES, Load, memory_gb
from samunet.planning.methods.adapter3d import AdapterConfig
from samunet.planning.plan import Budget
from samunet.planning.volume_costs import VolumeInput, volume_cost, volume_widths
from samunet.trainers.losses import LossSettings, SegmentationLoss

STEPS = 5


def build(variant: str, patch: tuple[int, int, int], classes: int, checkpointing: bool) -> AdapterNetwork:
    config = AdapterConfig()
    widths = volume_widths(get_variant(variant), config)
    encoder = VolumeEncoderSettings(
        variant=variant,
        patch_size=patch,
        token_size=(4, 4, 4),
        adapter_width=widths.adapter,
        neck_width=widths.neck,
        checkpointing=checkpointing,
    )
    settings = AdapterSettings(
        encoder=encoder,
        num_channels=1,
        num_outputs=classes,
        display_window=((-2.0, 2.0),),
        decoder_width=widths.decoder,
        generator_width=widths.generator,
        refine=config.refine,
        staged=False,
    )
    return AdapterNetwork(settings)


def forecast_gb(variant: str, patch: tuple[int, int, int], classes: int, checkpointing: bool) -> float:
    """What the planner expects on a GPU, batch 1."""
    config = AdapterConfig(checkpointing=checkpointing)
    place = VolumeInput(
        variant=get_variant(variant),
        config=config,
        patch_size=patch,
        num_channels=1,
        num_outputs=classes,
        checkpointed=checkpointing,
    )
    cost = volume_cost(place)
    load = Load(
        batch_size=1,
        parameters=cost.parameters,
        trainable=cost.trainable,
        optimizer_values=2,
        trained={},
        values=cost.values,
        value_cost=TOKEN_VALUES,
    )
    return memory_gb(load, Budget(device="cuda", memory_gb=80, hours=1, disk_gb=1, gflops={}))


class Kept:
    """Bytes of the storages that autograd keeps, parameters left out."""

    def __init__(self, network: nn.Module) -> None:
        self.own = {p.untyped_storage()._cdata for p in network.parameters()}
        self.storages: dict[int, int] = {}
        self.alive: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.alive.append(tensor)
        if storage._cdata not in self.own:
            self.storages[storage._cdata] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self.storages.values())


def kept_bytes(network: nn.Module, call: Any) -> int:
    kept = Kept(network)
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        call()
    return kept.total


def count(variant: str, patch: tuple[int, int, int], classes: int, checkpointing: bool) -> dict[str, float]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = build(variant, patch, classes, checkpointing)
        network.start_generator()
        image = torch.zeros(1, 1, *patch)
        target = torch.zeros(1, 1, *patch, dtype=torch.int64)
        loss = SegmentationLoss(LossSettings())
        forward = kept_bytes(network, lambda: loss(network(image), target))
        tokens = torch.zeros(
            1, *network.settings.encoder.grid, get_variant(variant).width, requires_grad=True
        )
        block = kept_bytes(network, lambda: network.encoder.blocks[0](tokens))
    total = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    weights = 4 * (total + 3 * trained)
    parts = {
        "forward_gb": forward / 1e9,
        "one_block_gb": block / 1e9,
        "weights_gradients_adam_gb": weights / 1e9,
        "counted_gb": (forward + (block if checkpointing else 0) + weights) / 1e9,
        "parameters": total,
        "trained": trained,
        "forecast_gb": forecast_gb(variant, patch, classes, checkpointing),
    }
    return {name: round(value, 3) for name, value in parts.items()}


def measure(variant: str, patch: tuple[int, int, int], classes: int, checkpointing: bool) -> dict[str, float]:
    device = torch.device("cuda")
    torch.manual_seed(0)
    network = build(variant, patch, classes, checkpointing).to(device).train()
    loss = SegmentationLoss(LossSettings())
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, fused=True)
    image = torch.randn(1, 1, *patch, device=device)
    target = torch.randint(0, classes, (1, 1, *patch), device=device)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            value = loss(network(image), target)["loss"]
        value.backward()
        optimizer.step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "step_seconds": round(min(seconds[1:]), 3),
        "allocated_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time of a training step of 3d_adapter.")
    parser.add_argument("--encoder", default="vit_b")
    parser.add_argument("--patch", type=int, nargs=3, default=(128, 128, 128))
    parser.add_argument("--classes", type=int, default=14, help="outputs, background among them")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    patch = tuple(arguments.patch)
    figures: dict[str, Any] = {"hardware": hardware(), "encoder": arguments.encoder, "patch": patch}
    for checkpointing in (True, False):
        name = "checkpointing" if checkpointing else "plain"
        what = (arguments.encoder, patch, arguments.classes, checkpointing)
        figures[name] = {"count": count(*what)}
        if torch.cuda.is_available():
            figures[name]["measured"] = measure(*what)
    figures["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
