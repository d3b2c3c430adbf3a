"""What a training step needs: memory, seconds, and how much of a schedule fits into the hours. No torch.

Figures marked *measured* come from training steps on two CPU cores with torch 2.13 in float32. The GPU
figures follow nnU-Net's own reference (its 3D default fills 7.7 GB of an 8 GB GPU in mixed precision).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from samunet.planning.methods import MethodConfig
from samunet.planning.plan import Budget, Forecast

CPU_PROCESS_GB = 0.42
"""Python with torch, augmentation and the loader before the first step (resident, measured)."""
GPU_CONTEXT_GB = 0.9
"""CUDA context, kernels and the allocator's slack."""


@dataclass(frozen=True, kw_only=True)
class ValueCost:
    """What each value kept for the backward pass costs.

    Attributes:
        cpu_bytes / gpu_bytes: memory, gradients in flight included.
        flop: arithmetic that takes as long, at the rate of 2D convolutions, as moving the value does.
    """

    cpu_bytes: float
    gpu_bytes: float
    flop: float


CONVOLUTION_VALUES = ValueCost(cpu_bytes=10.5, gpu_bytes=5.5, flop=0.0)
"""Per output of a U-Net's convolution: its normalised copy is kept too (CPU measured). The measured rate of
convolutions contains the moving.
"""
TOKEN_VALUES = ValueCost(cpu_bytes=4.5, gpu_bytes=2.5, flop=550.0)
"""Where every kept tensor is counted by itself: transformers and heads (CPU measured)."""
CPU_WORKSPACE_GB = 0.2
"""Buffers of the convolution library (measured)."""
STEP_OVERHEAD_SECONDS = {"cuda": 0.03, "mps": 0.05, "cpu": 0.02}
"""Launches, optimizer and loader that no step goes below."""
LEAST_STEPS = 1000
"""Fewer training steps than four epochs of 250 are not worth starting."""
ENOUGH_STEPS = 5000
"""Steps after which a network of this size is trained well enough for methods to be ranked by kind."""
MORE_LOGITS = ValueCost(cpu_bytes=9.0, gpu_bytes=20.0, flop=0.0)
"""Per logit of a U-Net with more outputs than usual: class maps, softmax and gradients of the loss, which are
in float32 everywhere (CPU measured with 105 outputs; GPU counted from that)."""
USUAL_OUTPUTS = {"cpu": 3, "mps": 3, "cuda": 16}
"""Outputs whose loss CONVOLUTION_VALUES contains: as many as were measured, and as the sets of nnU-Net's
reference have."""
LOGIT_COPIES = 6
"""Full-size copies of the logits that loss and softmax keep."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one training step of a method asks of a machine.

    Attributes:
        batch_size: samples a step.
        parameters: of the whole network; `trainable` those with gradient and optimizer state.
        optimizer_values: state values per trained parameter (1 for SGD with momentum, 2 for AdamW).
        trained: kind of work -> multiply-adds per sample, forward only, of what is trained.
        frozen: the same for what runs without gradients.
        values: values per sample that are kept for the backward pass.
        value_cost: what each of them costs.
        outputs: of a U-Net; 0 where the values contain the loss.
        output_values: logits per sample of each of them, those of deep supervision among them.
        passing_values: largest set of values that a frozen part holds for a moment, per sample.
    """

    batch_size: int
    parameters: int
    trainable: int
    optimizer_values: int
    trained: dict[str, float]
    frozen: dict[str, float] = field(default_factory=dict)
    values: float = 0.0
    value_cost: ValueCost = CONVOLUTION_VALUES
    outputs: int = 0
    output_values: float = 0.0
    passing_values: float = 0.0


def memory_gb(load: Load, budget: Budget) -> float:
    """Peak memory of training, GB (1e9 bytes): of the GPU, or resident memory of the process on a CPU."""
    fixed = CPU_PROCESS_GB + CPU_WORKSPACE_GB if budget.device == "cpu" else GPU_CONTEXT_GB
    # Mixed precision on CUDA only.
    single = budget.device != "cuda"
    per_value, per_logit = (
        cost.cpu_bytes if single else cost.gpu_bytes for cost in (load.value_cost, MORE_LOGITS)
    )
    weights = 4 * (load.parameters + load.trainable * (1 + load.optimizer_values))
    more_logits = max(0, load.outputs - USUAL_OUTPUTS[budget.device]) * load.output_values
    values = load.values * per_value + more_logits * per_logit
    kept = load.batch_size * (values + load.passing_values * (4 if single else 2))
    return fixed + (weights + kept) / 1e9


def step_seconds(load: Load, budget: Budget) -> float:
    """Seconds of one training step: forward and twice that for backward, plus the frozen parts once.

    Two cores measured: within 30 % for U-Nets, and within 40 % for SAM heads and `vit_tiny`.
    """
    seconds = STEP_OVERHEAD_SECONDS[budget.device]
    seconds += load.batch_size * load.values * load.value_cost.flop / (budget.gflops["conv2d"] * 1e9)
    for kind, multiply_adds in load.trained.items():
        seconds += load.batch_size * 3 * 2 * multiply_adds / (budget.gflops[kind] * 1e9)
    for kind, multiply_adds in load.frozen.items():
        seconds += load.batch_size * 2 * multiply_adds / (budget.gflops[kind] * 1e9)
    return seconds


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length of a training.

    Attributes:
        epochs: planned; `wanted` is the recipe's.
        hours: for the whole training, `extra_hours` (building a cache) among them.
        fits: at least LEAST_STEPS, or the user's own length, within the budget's hours.
    """

    epochs: int
    wanted: int
    iterations: int
    hours: float
    fits: bool

    @property
    def steps(self) -> int:
        return self.epochs * self.iterations

    @property
    def wanted_steps(self) -> int:
        return self.wanted * self.iterations

    @property
    def shortened(self) -> bool:
        return self.epochs < self.wanted


def affordable_schedule(
    config: MethodConfig, seconds: float, budget: Budget, *, fixed: bool, extra_hours: float = 0.0
) -> Schedule:
    """Shorten the recipe's schedule to the hours, never below LEAST_STEPS.

    Args:
        config: the recipe.
        seconds: of one step.
        fixed: the user set the length, which is then kept.
        extra_hours: spent before the first step.
    """
    # A validation step is a forward pass, a third of a training step.
    epoch_hours = seconds * (config.iterations * config.accumulate + config.val_iterations / 3) / 3600
    affordable = math.floor(max(0.0, budget.hours - extra_hours) / epoch_hours)
    least = min(config.epochs, math.ceil(LEAST_STEPS / config.iterations))
    epochs = config.epochs if fixed else min(config.epochs, max(affordable, least))
    return Schedule(
        epochs=epochs,
        wanted=config.epochs,
        iterations=config.iterations,
        hours=extra_hours + epochs * epoch_hours,
        fits=epochs <= affordable,
    )


def forecast_of(load: Load, schedule: Schedule, budget: Budget, cache_gb: float = 0.0) -> Forecast:
    """The forecast that a plan keeps."""
    return Forecast(
        memory_gb=round(memory_gb(load, budget), 2),
        step_seconds=round(step_seconds(load, budget), 4),
        train_hours=round(schedule.hours, 2),
        cache_gb=round(cache_gb, 2),
        parameters=load.parameters,
        trainable=load.trainable,
    )


def output_values(patch_size: tuple[int, ...]) -> float:
    """`Load.output_values` of a U-Net, whose levels of deep supervision have half as long an edge each."""
    return math.prod(patch_size) / (1 - 0.5 ** len(patch_size))
