"""Upscaling in token order against the package's transposed convolutions."""

from __future__ import annotations

import torch

from samunet.networks.mask_upscaling import upscaled_masks
from samunet.networks.sam.package import modeling

GRID = (3, 5)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def upscaling() -> torch.nn.Sequential:
    decoder = modeling.MaskDecoder(transformer_dim=32, transformer=modeling.TwoWayTransformer(1, 32, 2, 8))
    with torch.no_grad():  # a norm that does something
        decoder.output_upscaling[1].weight.copy_(draw(8))
        decoder.output_upscaling[1].bias.copy_(draw(8))
    return decoder.output_upscaling


def test_it_equals_the_packages_layers() -> None:
    layers, image, weights = upscaling(), draw(2, 3, 15, 32), draw(2, 3, 4)
    maps = image.flatten(0, 1).transpose(1, 2).unflatten(2, GRID)
    expected = torch.einsum("be,behw->bhw", weights.flatten(0, 1), layers(maps)).unflatten(0, (2, 3))
    torch.testing.assert_close(
        upscaled_masks(layers, image, weights, GRID, []), expected, atol=1e-5, rtol=1e-4
    )


def test_several_masks_of_an_object_equal_one_at_a_time() -> None:
    layers, image, weights = upscaling(), draw(2, 3, 15, 32), draw(2, 3, 4, 4)
    found = upscaled_masks(layers, image, weights, GRID, [])
    assert found.shape == (2, 3, 4, 12, 20)
    for mask in range(4):
        alone = upscaled_masks(layers, image, weights[:, :, mask], GRID, [])
        torch.testing.assert_close(found[:, :, mask], alone, atol=1e-5, rtol=1e-4)


def test_details_are_added_where_they_belong() -> None:
    layers, image, weights = upscaling(), draw(2, 1, 15, 32), draw(2, 1, 4)
    fine, coarse = draw(2, 4, 12, 20), draw(2, 8, 6, 10)
    first, norm, activation, second, last = layers
    maps = image[:, 0].transpose(1, 2).unflatten(2, GRID)
    upscaled = last(second(activation(norm(first(maps) + coarse))) + fine)
    expected = torch.einsum("be,behw->bhw", weights[:, 0], upscaled)[:, None]
    found = upscaled_masks(layers, image, weights, GRID, [fine, coarse])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
