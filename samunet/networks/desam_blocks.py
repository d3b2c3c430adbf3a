"""DeSAM's sizes, and which of the encoder's blocks give its context (arXiv 2306.00499). No torch."""

from __future__ import annotations

import math

from samunet.errors import SamunetError
from samunet.networks.sam.variants import SamVariant

DEPTHS = 3
"""Depths that the mask module looks at, besides the neck."""
MASK_TOKENS = 4
"""Of SAM's mask decoder, as its weights have them: one mask, and three of ambiguous prompts."""
SE_REDUCTION, SE_LEAST = 16, 4
"""By which squeeze-excitation narrows, and the narrowest that it is with SAM's widths."""


def depth_blocks(depth: int) -> tuple[int, ...]:
    """0-based blocks whose outputs are the context, shallow to deep: SAM's global ones but the last (2, 5, 8
    of 12).

    Encoders of a few blocks give the same depth twice.
    """
    return tuple(math.ceil(depth * (index + 1) / (DEPTHS + 1)) - 1 for index in range(DEPTHS))


def chosen_blocks(variant: SamVariant, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    """The blocks asked for, else the paper's.

    Raises:
        SamunetError: the encoder has no such blocks, or they are not three in ascending order.
    """
    if asked is None:
        return depth_blocks(variant.depth)
    rule = f"{DEPTHS} of the blocks 0 to {variant.depth - 1} of {variant.name}, ascending"
    usual, told = (",".join(map(str, blocks)) for blocks in (depth_blocks(variant.depth), asked))
    foreign = [block for block in asked if not 0 <= block < variant.depth]
    if foreign:
        raise SamunetError(
            f"--set context_blocks={told}: {variant.name} has no block {foreign[0]}. Give {rule}, or "
            f"leave it out for {usual}."
        )
    if len(asked) != DEPTHS or list(asked) != sorted(set(asked)):
        raise SamunetError(f"--set context_blocks={told}: give {rule}, or leave it out for {usual}.")
    return tuple(asked)
