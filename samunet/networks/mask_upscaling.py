"""SAM's mask upscaling and the product with a mask token's weights, cell by cell.

The package upscales by transposed convolutions whose kernel is their stride: each cell becomes 2 x 2 cells by
a linear map of its own. Norm, activation and the final product act on cells too. So everything can stay in
token order, where it is plain matrix products, and only the logits are brought into a picture. The result is
the same; parameters and their names are the package's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def upscaled_masks(
    upscaling: Iterable[Any], image: Tensor, weights: Tensor, grid: tuple[int, int], details: list[Tensor]
) -> Tensor:
    """Logits of masks at four times the resolution of the image embedding.

    Args:
        upscaling: `output_upscaling` of the package's MaskDecoder.
        image: (B, C, h * w, E), one copy of the embedding per class.
        weights: (B, C, E / 8), the classifier of each class, or (B, C, M, E / 8), several of each.
        grid: (h, w).
        details: nothing, or maps that are added at four times and at twice the resolution:
            (B, E / 8, 4h, 4w) and (B, E / 4, 2h, 2w).

    Returns:
        (B, C, 4h, 4w), or (B, C, M, 4h, 4w).
    """
    first, norm, activation, second, last = upscaling
    batch, classes = image.shape[:2]
    doubled = _fourfold(first, image)
    if details:
        fine, coarse = details
        doubled = doubled + _as_cells(coarse, grid, 1)
    doubled = activation(functional.layer_norm(doubled, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    quadrupled = _fourfold(second, doubled)
    if details:
        quadrupled = quadrupled + _as_cells(fine, grid, 2)
    quadrupled = last(quadrupled).view(batch * classes, -1, weights.shape[-1])
    logits = quadrupled @ weights.reshape(batch * classes, -1, weights.shape[-1]).transpose(1, 2)
    # (h, w, then row and column of either step, masks) -> masks, rows together, columns together
    cells = logits.view(batch, classes, *grid, 2, 2, 2, 2, -1).permute(0, 1, 8, 2, 4, 6, 3, 5, 7)
    return cells.reshape(batch, *weights.shape[1:-1], 4 * grid[0], 4 * grid[1])


def _fourfold(layer: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """(..., inputs) -> (..., 4, outputs): the 2 x 2 cells that the layer makes of each cell, row by row."""
    assert layer.bias is not None
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return functional.linear(cells, weight, layer.bias.repeat(4)).unflatten(-1, (4, -1))


def _as_cells(image: Tensor, grid: tuple[int, int], steps: int) -> Tensor:
    """A map (B, E, h * 2^steps, w * 2^steps) in the order of `_fourfold`: (B, 1, h * w, 4[, 4], E)."""
    height, width = grid
    halves = (2,) * steps
    split = image.view(image.shape[0], -1, height, *halves, width, *halves)
    rows, columns = range(3, 3 + steps), range(4 + steps, 4 + 2 * steps)
    pairs = [axis for pair in zip(rows, columns) for axis in pair]
    ordered = split.permute(0, 2, 3 + steps, *pairs, 1)
    return ordered.reshape(image.shape[0], 1, height * width, *(4,) * steps, image.shape[1])
