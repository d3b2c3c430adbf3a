"""Counts of parameters and arithmetic against the networks themselves."""

from __future__ import annotations

import pytest

from samunet.networks.sam.variants import VARIANTS
from samunet.planning.head_costs import HeadInput, autosam_head_cost, cnn_head_cost, linear_head_cost
from samunet.planning.sam_costs import encoder_cost, encoder_parameters, padding_waste

OUTPUTS = 4


@pytest.mark.parametrize(
    ("name", "parameters"), [("vit_b", 89_670_912), ("vit_l", 308_278_272), ("vit_h", 637_026_048)]
)
def test_official_encoders(name, parameters):
    assert encoder_parameters(VARIANTS[name], 1024) == parameters


@pytest.mark.parametrize(
    ("name", "size", "gflop"),
    [
        ("vit_b", 1024, 972),
        ("vit_b", 512, 227),
        ("vit_b", 448, 147),
        ("vit_b", 256, 69),
        ("vit_b", 224, 35),
        ("vit_l", 1024, 2986),
        ("vit_l", 256, 259),
        ("vit_h", 1024, 5961),
        ("vit_h", 256, 542),
    ],
)
def test_encoder_arithmetic(name, size, gflop):
    assert 2e-9 * encoder_cost(VARIANTS[name], size).multiply_adds == pytest.approx(gflop, rel=0.02)


def test_windows_are_filled_at_multiples_of_224():
    waste = {size: padding_waste(VARIANTS["vit_b"], size) for size in (224, 256, 448, 512, 672, 896, 1024)}
    assert [size for size, times in waste.items() if times == 1] == [224, 448, 672, 896]
    assert waste[256] == pytest.approx(3.06, abs=0.01)
    assert waste[1024] == pytest.approx(1.2, abs=0.01)


def test_computing_activations_again_leaves_the_inputs_of_the_blocks_and_one_block():
    cost = encoder_cost(VARIANTS["vit_b"], 1024)
    inputs = 12 * 64**2 * 768
    assert inputs < cost.lean_values < 4 * inputs < cost.values / 3


def settings(variant: str, size: int, frozen: bool, paper_compat: bool):
    from samunet.networks.picture import SliceSettings

    return SliceSettings(
        variant=variant,
        input_size=size,
        patch_size=(100, 90),
        num_channels=1,
        num_outputs=OUTPUTS,
        display_window=((0.0, 1.0),),
        frozen=frozen,
        paper_compat=paper_compat,
    )


@pytest.mark.parametrize("variant", ["vit_b", "vit_tiny"])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("head", ["linear", "cnn", "autosam"])
def test_heads(variant, frozen, head):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from samunet.networks.autosam import build_autosam
    from samunet.networks.cnn import build_cnn
    from samunet.networks.features import Features
    from samunet.networks.linear import build_linear

    build = {"linear": build_linear, "cnn": build_cnn, "autosam": build_autosam}[head]
    spec = VARIANTS[variant]
    place = HeadInput(
        variant=spec,
        input_size=224,
        patch_size=(100, 90),
        num_outputs=OUTPUTS,
        detail=spec.from_scratch and not frozen,
    )
    cost = {
        "linear": lambda: linear_head_cost(place),
        "cnn": lambda: cnn_head_cost(place, spec.cnn_width),
        "autosam": lambda: autosam_head_cost(place, spec.prompt_dim),
    }[head]()
    with torch.device("meta"):
        network = build(settings(variant, 224, frozen, False))
    own = sum(p.numel() for p in network.head.parameters())
    assert cost.parameters == pytest.approx(own, rel=0.02)
    assert encoder_parameters(spec, 224) == sum(p.numel() for p in network.encoder.parameters())
    grid = 224 // 16
    features = Features(
        levels=(torch.zeros(1, spec.prompt_dim, grid, grid, device="meta"),),
        output_size=(100, 90),
        image=torch.zeros(1, 3, 224, 224, device="meta"),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.head(features)
    assert 2 * cost.multiply_adds == pytest.approx(counter.get_total_flops(), rel=0.1)
