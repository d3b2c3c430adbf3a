"""Widths of the CNN head's stages (AutoSAM, arXiv 2306.13731, CNN head). No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from samunet.networks.sam.variants import PATCH

KEEPING_STAGES = 2
"""Stages that halve the width at the embedding's resolution, in decoders of more than two stages."""


@dataclass(frozen=True)
class CnnStages:
    """Channels along the head.

    Attributes:
        bottom: after the embedding is widened.
        keeping: before each stage at the embedding's resolution, which halves them.
        joined: before each stage that doubles the resolution, the picture's detail among them; one more for
            what the last stage leaves.
        before: inside each of these stages.
        after: each of them leaves.
        finest: with an image skip, pixels of the square per cell of the logits; None without one.
    """

    bottom: int
    keeping: tuple[int, ...]
    joined: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    finest: int | None


def cnn_stages(width: int, depth: int, finest: int | None) -> CnnStages:
    """Stages of a head.

    Args:
        width: channels of the last of the `depth` stages; the first has width * 2 ** depth.
        depth: stages without those that lead further down to the finest stride.
        finest: with an image skip, pixels of the square per cell of the logits that are wanted.
    """
    bottom = width * 2**depth
    widths = [bottom // 2**stage for stage in range(depth)]
    keeping = KEEPING_STAGES if depth > KEEPING_STAGES else 0
    after = [channels // 2 for channels in widths[keeping:]]
    if finest is not None:
        reached = PATCH // 2 ** len(after)
        finest = min(reached, finest)
        after += [width] * int(math.log2(reached // finest))
    before = [widths[keeping], *after[:-1]]
    sources = 1 if finest is None else 2
    joined = [before[0], *(sources * channels for channels in after)]
    return CnnStages(
        bottom=bottom,
        keeping=tuple(widths[:keeping]),
        joined=tuple(joined),
        before=tuple(before),
        after=tuple(after),
        finest=finest,
    )
