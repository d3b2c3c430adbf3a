"""Parameters, arithmetic and kept values of DeSAM's decoder. No torch.

Counts follow `networks/desam.py` and `networks/desam_masks.py` (arXiv 2306.00499); a test compares them.
Multiply-adds are of one prompt, context included, as in training.
"""

from __future__ import annotations

from samunet.networks.desam_blocks import MASK_TOKENS, SE_LEAST, SE_REDUCTION
from samunet.planning.head_costs import HeadInput
from samunet.planning.sam_costs import PartCost

IOU_HIDDEN = 256
TRANSFORMER_LAYERS = 2
BLOCK_VALUES = 7
"""Values kept per cell and output channel of a residual block: convolutions, norms, activations, scaling."""
TRANSFORMER_VALUES = 25
"""Values kept per image token and channel of SAM's two-way transformer, as in `2d_autosam`."""


def desam_head_cost(place: HeadInput, *, judged: bool, fused: bool) -> PartCost:
    """Cost of the head: with the prompt-relevant module where it is `judged` how good a prompt is, or where
    its embedding is `fused` into the masks."""
    blocks = _blocks(place, fused)
    width, tokens = place.variant.prompt_dim, place.tokens
    parameters = sum(_block_parameters(inputs, outputs) for _, inputs, outputs in blocks)
    work = sum(cells * _block_weights(inputs, outputs) for cells, inputs, outputs in blocks)
    values = sum(cells * (inputs + BLOCK_VALUES * outputs) for cells, inputs, outputs in blocks)
    for cells, inputs, outputs in _doublings(place):
        parameters += 4 * inputs * outputs
        work += 4 * cells * inputs * outputs
        values += 4 * cells * outputs
    classes = place.foreground
    parameters += width // 4 * classes
    work += 16 * tokens * width // 4 * classes
    if judged or fused:
        parameters += _relevant_parameters(place, width, judged)
        work += (2 * TRANSFORMER_LAYERS + judged) * 2 * tokens * width * width // 2
        values += TRANSFORMER_VALUES * tokens * width
    return PartCost(
        parameters=parameters,
        multiply_adds=float(work),
        values=float(values),
        passing_values=float(values / 4),
    )


def _blocks(place: HeadInput, fused: bool) -> list[tuple[int, int, int]]:
    """Residual blocks: cells, inputs, outputs."""
    depth, width, cells = place.variant.width, place.variant.prompt_dim, place.tokens
    half, quarter = width // 2, width // 4
    blocks = [
        (cells, depth, width),
        (cells, depth, half),
        (4 * cells, half, half),
        (cells, depth, quarter),
        (4 * cells, quarter, quarter),
        (16 * cells, quarter, quarter),
        (4 * cells, 2 * half, half),
        (16 * cells, 2 * quarter, quarter),
    ]
    return [*blocks, (cells, 2 * width, width)] if fused else blocks


def _doublings(place: HeadInput) -> list[tuple[int, int, int]]:
    """Transposed convolutions: cells before, inputs, outputs."""
    width, cells = place.variant.prompt_dim, place.tokens
    half, quarter = width // 2, width // 4
    return [
        (cells, half, half),
        (cells, quarter, quarter),
        (4 * cells, quarter, quarter),
        (cells, width, half),
        (4 * cells, half, quarter),
    ]


def _block_weights(inputs: int, outputs: int) -> int:
    shortcut = 0 if inputs == outputs else inputs * outputs
    return 9 * inputs * outputs + 9 * outputs**2 + shortcut


def _block_parameters(inputs: int, outputs: int) -> int:
    return _block_weights(inputs, outputs) + 2 * outputs * max(SE_LEAST, outputs // SE_REDUCTION)


def _relevant_parameters(place: HeadInput, width: int, judged: bool) -> int:
    """Transformer and tokens, IoU head with the attention before it; the prompt embeddings are frozen and
    counted too."""
    inner, mlp = width // 2, place.variant.decoder_mlp
    own = 4 * (width**2 + width)
    crossing = 4 * width * inner + 3 * inner + width
    layer = own + 2 * crossing + 2 * width * mlp + mlp + width + 4 * 2 * width
    head = (width + 1) * IOU_HIDDEN + (IOU_HIDDEN + 1) * (IOU_HIDDEN + place.foreground)
    judgement = crossing + 2 * width + head if judged else 0
    return TRANSFORMER_LAYERS * layer + judgement + (1 + MASK_TOKENS) * width + 6 * width
