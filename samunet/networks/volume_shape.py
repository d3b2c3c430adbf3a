"""Levels and widths of SAM's encoder in 3D, its prompt generator and its decoder (AutoProSAM). No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVELS = 4
"""Depths of the encoder that hand a feature map to the decoder, evenly spaced, the last block among them."""
WIDTH_FACTORS = (1, 2, 4, 8, 10)
"""Channels of the generator's levels over those of the first one: 16, 32, 64, 128, 160 in the paper."""
LEAST_SIZE = 2
"""No axis of the grid is pooled below this, so that instance norm never sees a single voxel."""
REFINED_WIDTH = 16
"""Channels of the refinement at full resolution."""


def level_blocks(depth: int) -> tuple[int, ...]:
    """0-based blocks after which a feature map is taken: 2, 5, 8, 11 of 12."""
    return tuple(sorted({math.ceil(depth * (level + 1) / LEVELS) - 1 for level in range(LEVELS)}))


def pooling_plan(grid: Sequence[int]) -> list[tuple[int, int, int]]:
    """Factors of each pooling of the generator, at most four; an axis that is too short is left as it is."""
    size, plan = list(grid), []
    for _ in WIDTH_FACTORS[1:]:
        depth, height, width = (2 if n >= 2 * LEAST_SIZE else 1 for n in size)
        if (depth, height, width) == (1, 1, 1):
            break
        plan.append((depth, height, width))
        size = [n // factor for n, factor in zip(size, (depth, height, width))]
    return plan
