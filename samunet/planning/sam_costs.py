"""Parameters, arithmetic and kept values of SAM's image encoder. No torch.

Counts follow the architecture (Kirillov et al. 2023) and are checked against the built network by a test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from samunet.networks.sam.variants import PATCH, SamVariant

TRANSFORMER_VALUES = 16
"""Values kept per token and channel of a trained block: inputs of norms, projections, attention and MLP."""


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """Cost of an encoder or a head.

    Attributes:
        multiply_adds: forward, one sample.
        values: kept for the backward pass when trained, one sample.
        lean_values: the same where activations are computed again in the backward pass; 0 if never.
        passing_values: held for a moment without gradients, one sample.
    """

    parameters: int
    multiply_adds: float
    values: float
    passing_values: float
    lean_values: float = 0.0


def encoder_cost(variant: SamVariant, input_size: int) -> PartCost:
    """Cost of SAM's image encoder on a square picture of `input_size` pixels.

    Windows that the grid does not fill are padded, and padded tokens cost as much as others in attention and
    its projections.
    """
    width, grid = variant.width, input_size // PATCH
    tokens = grid**2
    padded = padded_grid(variant, grid) ** 2
    multiply_adds = tokens * 3 * PATCH**2 * width
    values, largest, attention_values = 0.0, 0.0, 0.0
    for block in range(variant.depth):
        is_global = block in variant.global_blocks
        inside, side = (tokens, grid) if is_global else (padded, variant.window)
        multiply_adds += (
            inside * (4 * width**2 + 2 * side**2 * width + 2 * side * width) + tokens * 8 * width**2
        )
        bias = inside * side**2 * variant.heads
        attention_values = max(attention_values, bias)
        kept = float(width * (5 * inside + (TRANSFORMER_VALUES - 5) * tokens))
        values, largest = values + kept, max(largest, kept)
    neck = variant.prompt_dim
    multiply_adds += tokens * (width * neck + 9 * neck**2)
    return PartCost(
        parameters=encoder_parameters(variant, input_size),
        multiply_adds=float(multiply_adds),
        values=values + 4 * tokens * neck,
        lean_values=variant.depth * tokens * width + largest + 4 * tokens * neck,
        passing_values=attention_values + 8 * padded * width,
    )


def attention_bias_values(variant: SamVariant, input_size: int, *, lean: bool = False) -> float:
    """Values of all attention biases and weights, which only a CPU keeps for a trained encoder; of the block
    with most of them where activations are computed again."""
    grid = input_size // PATCH
    total = largest = 0.0
    for block in range(variant.depth):
        is_global = block in variant.global_blocks
        inside, side = (grid**2, grid) if is_global else (padded_grid(variant, grid) ** 2, variant.window)
        kept = 2.0 * inside * side**2 * variant.heads
        total, largest = total + kept, max(largest, kept)
    return largest if lean else total


def padded_grid(variant: SamVariant, grid: int) -> int:
    """Tokens along a side after padding to whole windows; the grid itself where all blocks are global."""
    if len(variant.global_blocks) == variant.depth:
        return grid
    return math.ceil(grid / variant.window) * variant.window


def padding_waste(variant: SamVariant, input_size: int) -> float:
    """Windowed tokens over picture tokens: 1.0 where windows fill the grid, 1.2 at 1024 pixels."""
    grid = input_size // PATCH
    return (padded_grid(variant, grid) / grid) ** 2


def encoder_parameters(variant: SamVariant, input_size: int) -> int:
    """Parameters of the image encoder with tables for this input size."""
    width, grid, neck = variant.width, input_size // PATCH, variant.prompt_dim
    total = (3 * PATCH**2 + 1) * width + grid**2 * width
    for block in range(variant.depth):
        side = grid if block in variant.global_blocks else variant.window
        total += 12 * width**2 + 13 * width + 2 * (2 * side - 1) * (width // variant.heads)
    return total + width * neck + 9 * neck**2 + 4 * neck
