"""SAM's positional code, a sine of coordinates times a random matrix, in float32 under autocast too.

In bf16 neighbouring tokens of a large grid are hardly told apart; SAM's weights know the exact code.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from samunet.networks.full_precision import full_precision


def grid_position(code: nn.Module, grid: Sequence[int]) -> Tensor:
    """Code (h * w, E), float32, of a grid's tokens, row by row.

    Args:
        code: the package's `PositionEmbeddingRandom`.
        grid: (h, w).
    """
    with full_precision(_kind(code)):
        return code((int(grid[0]), int(grid[1]))).flatten(1).T


def point_position(code: nn.Module, points_xy: Tensor, size: Sequence[int]) -> Tensor:
    """Code (..., E), float32, of points (..., 2).

    Args:
        code: the package's `PositionEmbeddingRandom`.
        points_xy: pixel centres; SAM adds half a pixel.
        size: (height, width) of the picture in pixels.
    """
    flat = points_xy.reshape(1, -1, 2).float() + 0.5
    with full_precision(_kind(code)):
        placed = code.forward_with_coords(flat, (int(size[0]), int(size[1])))  # type: ignore[operator]
    return placed.reshape(*points_xy.shape[:-1], -1)


def _kind(code: nn.Module) -> str:
    return next(code.buffers()).device.type
