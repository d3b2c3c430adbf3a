"""The students: size, shapes, counts against the networks themselves, and what SwinUNETR asks for."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from samunet.errors import SamunetError
from samunet.networks import student
from samunet.networks.student import StudentUNet, build_swin_unetr
from samunet.networks.student_costs import fitting_swin_patch, residual_unet_cost, swin_unetr_cost
from samunet.networks.unet_topology import unet_topology, with_widths

SHAPES = [((40, 56, 40), (1.0, 1.0, 1.0)), ((10, 128, 112), (10.0, 1.4, 1.4)), ((8, 16, 16), (3.0, 1.0, 1.0))]


@pytest.mark.parametrize(("patch", "spacing"), SHAPES)
def test_shapes_and_counts(patch: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    topology = with_widths(unet_topology(spacing, patch), 8, 24)
    network = StudentUNet(2, 3, topology)
    cost = residual_unet_cost(topology, 2, 3)
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    x = torch.randn(1, 2, *topology.patch_size)
    with torch.no_grad():
        assert network(x).shape == (1, 3, *topology.patch_size)
        network.decoder.deep_supervision = True
        outputs = network(x)
    assert len(outputs) == len(topology.strides) - 1


def test_arithmetic() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    topology = with_widths(unet_topology((1.0, 1.0, 1.0), (48, 48, 48)), 16, 96)
    with torch.device("meta"):
        network = StudentUNet(1, 6, topology)
        network.decoder.deep_supervision = True
        x = torch.zeros(1, 1, 48, 48, 48)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    counted = 2 * residual_unet_cost(topology, 1, 6).convolutions
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.02)


def test_it_starts_without_its_residual_branches() -> None:
    network = StudentUNet(1, 2, with_widths(unet_topology((1.0, 1.0, 1.0), (16, 16, 16)), 8, 24))
    weights = [v for k, v in network.named_parameters() if k.endswith("conv2.norm.weight")]
    assert weights
    assert not any(weight.any() for weight in weights)


def test_a_patch_that_cannot_be_halved() -> None:
    with pytest.raises(SamunetError, match="too small for a U-Net"):
        StudentUNet(1, 2, unet_topology((1.0, 1.0, 1.0), (4, 4, 4)))


@pytest.mark.parametrize(("features", "millions"), [(12, 4.08), (24, 15.7)])
def test_swin_unetr_is_counted_as_measured(features: int, millions: float) -> None:
    """Parameters of MONAI's networks with one channel and fourteen classes."""
    found = swin_unetr_cost(features, (96, 96, 96), 1, 14).parameters / 1e6
    assert found == pytest.approx(millions, abs=0.005 if features == 12 else 0.05)


@pytest.mark.parametrize(
    ("patch", "fitting"),
    [
        ((64, 112, 112), (64, 96, 96)),
        ((10, 256, 224), (32, 256, 224)),
        ((40, 56, 40), (32, 64, 32)),
        ((32, 32, 32), (64, 32, 32)),
    ],
)
def test_patches_that_suit_swin_unetr(patch: tuple[int, ...], fitting: tuple[int, ...]) -> None:
    assert fitting_swin_patch(patch) == fitting
    assert fitting_swin_patch(fitting) == fitting
    with pytest.raises(SamunetError, match=rf"patch_size=\[{','.join(map(str, fitting))}\]"):
        build_swin_unetr(1, 2, patch, 12)


def test_without_monai_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "monai.networks.nets", None)
    with pytest.raises(SamunetError, match=r"pip install monai"):
        build_swin_unetr(1, 2, (64, 64, 64), 12)


@pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="MONAI is not installed")
@pytest.mark.parametrize("features", [12, 24])
def test_swin_unetr(features: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    patch = (32, 64, 64)
    network = student.build_swin_unetr(2, 3, patch, features)
    cost = swin_unetr_cost(features, patch, 2, 3)
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert network(torch.randn(1, 2, *patch)).shape == (1, 3, *patch)
    counted = 2 * (cost.convolutions + cost.transformer)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.1)
