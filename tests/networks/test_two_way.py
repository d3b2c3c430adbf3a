"""The two-way transformer that shares work between token sets, against the package's own."""

from __future__ import annotations

import torch

from samunet.networks.sam.package import modeling
from samunet.networks.two_way import two_way


def test_it_equals_the_package_with_a_copy_of_the_image_per_token_set() -> None:
    generator = torch.Generator().manual_seed(0)
    transformer = modeling.TwoWayTransformer(2, 32, 4, 64)
    image = torch.randn(2, 32, 5, 7, generator=generator, requires_grad=True)
    position = torch.randn(32, 5, 7, generator=generator)
    tokens = torch.randn(3, 4, 32, generator=generator, requires_grad=True)

    copies = image.repeat_interleave(3, dim=0)
    expected = transformer(copies, position.expand_as(copies), tokens.repeat(2, 1, 1))
    found = two_way(transformer, image.flatten(2).transpose(1, 2), position.flatten(1).T, tokens)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours.flatten(0, 1), theirs, atol=1e-5, rtol=1e-4)

    parameters = [image, tokens, *transformer.parameters()]
    loss = sum(x.square().mean() for x in found)
    wanted = torch.autograd.grad(sum(x.square().mean() for x in expected), parameters)
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), wanted):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
