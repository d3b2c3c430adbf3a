"""Topology and cost of the plain U-Net; reference values from dynamic-network-architectures and nnunetv2."""

from __future__ import annotations

import pytest

from samunet.networks.unet_topology import unet_cost, unet_topology


def test_isotropic_patch_pools_all_axes_alike():
    topology = unet_topology((1, 1, 1), (128, 128, 128))
    assert topology.pools == (5, 5, 5)
    assert topology.kernels == ((3, 3, 3),) * 6
    assert topology.features == (32, 64, 128, 256, 320, 320)


def test_coarse_axis_waits_and_its_kernel_stays_flat():
    topology = unet_topology((6.2, 1.56, 1.56), (14, 224, 256))
    assert topology.strides[:3] == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    assert topology.kernels[:2] == ((1, 3, 3), (3, 3, 3))
    assert topology.pools == (1, 5, 5)


def test_patch_is_padded_to_the_divisor():
    topology = unet_topology((1, 1, 1), (36, 50, 35))
    assert topology.patch_size == (40, 56, 40)
    assert topology.divisor == (8, 8, 8)


def test_a_lone_short_axis_is_not_pooled():
    assert unet_topology((1, 1), (11, 4)).pools == (0, 0)
    assert unet_topology((1, 1), (12, 4)).pools == (1, 0)


@pytest.mark.parametrize(
    ("spacing", "patch"), [((1, 1, 1), (16, 24, 16)), ((3, 1, 1), (8, 32, 32)), ((1, 1), (64, 48))]
)
def test_cost_equals_the_network(spacing, patch):
    torch = pytest.importorskip("torch")
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch.utils.flop_counter import FlopCounterMode

    topology = unet_topology(spacing, patch)
    flat = len(patch) == 2
    network = PlainConvUNet(
        input_channels=2,
        n_stages=len(topology.strides),
        features_per_stage=topology.features,
        conv_op=torch.nn.Conv2d if flat else torch.nn.Conv3d,
        kernel_sizes=topology.kernels,
        strides=topology.strides,
        n_conv_per_stage=2,
        num_classes=4,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm2d if flat else torch.nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=torch.nn.LeakyReLU,
        deep_supervision=True,
    )
    cost = unet_cost(topology, 2, 4)
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 2, *topology.patch_size))
    assert counter.get_total_flops() == 2 * cost.multiply_adds
    network.decoder.deep_supervision = False
    assert cost.elements == network.compute_conv_feature_map_size(topology.patch_size)
