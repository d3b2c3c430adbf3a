"""The U-Net against nnU-Net's own construction of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from samunet.errors import SamunetError
from samunet.networks.unet import build_unet


def test_it_is_nnunets_network_for_the_hippocampus_plan() -> None:
    ours = build_unet(1, 3, (40, 56, 40), (1.0, 1.0, 1.0))
    theirs = PlainConvUNet(  # what nnunetv2 2.8.1 writes into the plans of such a dataset
        input_channels=1,
        n_stages=4,
        features_per_stage=[32, 64, 128, 256],
        conv_op=nn.Conv3d,
        kernel_sizes=[[3, 3, 3]] * 4,
        strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        n_conv_per_stage=[2] * 4,
        num_classes=3,
        n_conv_per_stage_decoder=[2] * 3,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    theirs.load_state_dict(ours.state_dict())
    ours.decoder.deep_supervision = True
    x = torch.randn(1, 1, 40, 56, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for mine, expected in zip(ours(x), theirs(x)):
            torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize(
    ("patch", "spacing"),
    [((56, 40), (1.0, 1.0)), ((4, 32, 32), (6.0, 1.5, 1.5)), ((8, 16, 16), (1.0, 1.0, 1.0))],
)
def test_shapes_with_and_without_deep_supervision(patch: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    network = build_unet(2, 3, patch, spacing)
    x = torch.randn(2, 2, *patch)
    assert network(x).shape == (2, 3, *patch)
    network.decoder.deep_supervision = True
    outputs = network(x)
    assert outputs[0].shape == (2, 3, *patch)
    assert all(a.shape[-1] > b.shape[-1] for a, b in pairwise(outputs))


def test_widths_are_capped_and_weights_follow_he() -> None:
    network = build_unet(1, 2, (512, 512), (1.0, 1.0))
    assert network.topology.features[-1] == 512
    layer = network.encoder.stages[5][0].convs[1].conv
    expected = (2 / ((1 + 1e-4) * layer.weight[0].numel())) ** 0.5
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert not layer.bias.any()


def test_a_patch_that_the_pooling_does_not_divide_is_refused_with_the_next_one() -> None:
    with pytest.raises(SamunetError, match=r"30x31 voxels.*multiples of 8x8.*patch_size=\[32, 32\]"):
        build_unet(1, 2, (30, 31), (1.0, 1.0))


def test_a_patch_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(SamunetError, match="too small"):
        build_unet(1, 2, (6, 6), (1.0, 1.0))
