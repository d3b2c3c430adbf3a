"""Parameters, arithmetic and kept values of SAM encoders and the heads on them. No torch.

Counts follow the architecture (Kirillov et al. 2023; heads: AutoSAM, arXiv 2306.13731, section 3) and are
checked against the built networks by a test. Multiply-adds are of one forward pass of one sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from samunet.networks.sam.variants import PATCH, SamVariant

TRANSFORMER_VALUES = 16
"""Values kept per token and channel of a trained block: inputs of norms, projections, attention and MLP."""
CNN_CONVOLUTIONS_VALUES = 2
"""Values kept per output of a head's convolution: before and after the activation."""
DECODER_VALUES = 25
"""Values kept per image token, channel and class of SAM's mask decoder (measured on meta tensors)."""


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """Cost of an encoder or a head.

    Attributes:
        multiply_adds: forward, one sample.
        values: kept for the backward pass when trained, one sample.
        passing_values: held for a moment without gradients, one sample.
    """

    parameters: int
    multiply_adds: float
    values: float
    passing_values: float


def encoder_cost(variant: SamVariant, input_size: int) -> PartCost:
    """Cost of SAM's image encoder on a square picture of `input_size` pixels.

    Windows that the grid does not fill are padded, and padded tokens cost as much as others in attention and
    its projections.
    """
    width, grid = variant.width, input_size // PATCH
    tokens = grid**2
    padded = padded_grid(variant, grid) ** 2
    multiply_adds = tokens * 3 * PATCH**2 * width
    values, attention_values = 0.0, 0.0
    for block in range(variant.depth):
        is_global = block in variant.global_blocks
        inside, side = (tokens, grid) if is_global else (padded, variant.window)
        multiply_adds += (
            inside * (4 * width**2 + 2 * side**2 * width + 2 * side * width) + tokens * 8 * width**2
        )
        bias = inside * side**2 * variant.heads
        attention_values = max(attention_values, bias)
        values += width * (5 * inside + (TRANSFORMER_VALUES - 5) * tokens)
    neck = variant.prompt_dim
    multiply_adds += tokens * (width * neck + 9 * neck**2)
    return PartCost(
        parameters=encoder_parameters(variant, input_size),
        multiply_adds=float(multiply_adds),
        values=values + 4 * tokens * neck,
        passing_values=attention_values + 8 * padded * width,
    )


def attention_bias_values(variant: SamVariant, input_size: int) -> float:
    """Values of all attention biases and weights, which only a CPU keeps for a trained encoder."""
    grid = input_size // PATCH
    total = 0.0
    for block in range(variant.depth):
        is_global = block in variant.global_blocks
        inside, side = (grid**2, grid) if is_global else (padded_grid(variant, grid) ** 2, variant.window)
        total += 2 * inside * side**2 * variant.heads
    return total


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


def linear_head_cost(variant: SamVariant, input_size: int, num_outputs: int, width: int = 64) -> PartCost:
    """Two transposed convolutions and two 1x1 convolutions; logits at a quarter of the input size."""
    neck, half, tokens = variant.prompt_dim, width // 2, (input_size // PATCH) ** 2
    parameters = 4 * neck * width + width + 2 * width + 4 * width * half + half
    parameters += half * half + half + half * num_outputs + num_outputs
    multiply_adds = 4 * tokens * neck * width + 16 * tokens * (
        width * half + half * half + half * num_outputs
    )
    values = 4 * tokens * width * 4 + 16 * tokens * half * 4
    return PartCost(
        parameters=parameters,
        multiply_adds=float(multiply_adds),
        values=float(values),
        passing_values=float(16 * tokens * width),
    )


def cnn_head_cost(
    variant: SamVariant, input_size: int, num_outputs: int, width: int, depth: int = 4
) -> PartCost:
    """UNet-like decoder: two 1x1 convolutions, `depth` stages that halve the channels; from the third on each
    doubles the resolution.
    """
    pixels, channels = (input_size // PATCH) ** 2, width * 2**depth
    layers = [(pixels, variant.prompt_dim, channels, 1, 1), (pixels, channels, channels, 1, 1)]
    for stage in range(depth):
        half = channels // 2
        if stage < 2:
            layers += [(pixels, channels, channels, 9, 9), (pixels, channels, half, 9, 9)]
        else:
            layers += [(pixels, channels, channels, 9, 9)] * 2
            pixels *= 4
            layers.append((pixels, channels, half, 1, 4))
        channels = half
    layers += [(pixels, channels, channels, 9, 9), (pixels, channels, num_outputs, 1, 1)]
    kept = sum(n * b for n, _, b, _, _ in layers) * CNN_CONVOLUTIONS_VALUES
    return PartCost(
        parameters=sum(a * b * kernels + b for _, a, b, _, kernels in layers),
        multiply_adds=float(sum(n * a * b * taps for n, a, b, taps, _ in layers)),
        values=float(kept),
        passing_values=float(2 * max(n * b for n, _, b, _, _ in layers)),
    )


def autosam_head_cost(variant: SamVariant, input_size: int, num_outputs: int) -> PartCost:
    """SAM's mask decoder on a copy of the embedding per class: transformer, upscaling, hypernetwork."""
    neck, tokens = variant.prompt_dim, (input_size // PATCH) ** 2
    inner, quarter, eighth = neck // 2, neck // 4, neck // 8
    attention = 2 * (4 * neck**2 + 4 * neck) + 5 * (4 * neck * inner + 3 * inner + neck)
    block = 2 * (neck * variant.decoder_mlp) + variant.decoder_mlp + neck + 4 * 2 * neck
    upscaling = 4 * neck * quarter + 3 * quarter + 4 * quarter * eighth + eighth
    hypernetwork = 2 * (neck**2 + neck) + neck * eighth + eighth
    tables = 2 * neck * num_outputs
    per_class = 5 * tokens * neck * inner * 2 + 4 * tokens * neck * quarter + 16 * tokens * quarter * eighth
    values = DECODER_VALUES * tokens * neck
    return PartCost(
        parameters=attention + 2 * block + 2 * neck + upscaling + hypernetwork + tables,
        multiply_adds=float(num_outputs * per_class),
        values=float(num_outputs * values),
        passing_values=float(num_outputs * values / 4),
    )
