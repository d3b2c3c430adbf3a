"""Counts of `3d_adapter` against the network itself: parameters, arithmetic, tensors that autograd keeps."""

from __future__ import annotations

import math

import pytest

from samunet.networks.sam.variants import get_variant
from samunet.planning.memory import LOGIT_COPIES
from samunet.planning.methods.adapter3d import AdapterConfig
from samunet.planning.volume_costs import VolumeInput, volume_cost, volume_widths

OUTPUTS = 6


def place(variant="vit_tiny", patch=(32, 32, 32), token=(4, 4, 4), checkpointed=False, **settings):
    return VolumeInput(
        variant=get_variant(variant),
        config=AdapterConfig(token_size=token, **settings),
        patch_size=patch,
        num_channels=1,
        num_outputs=OUTPUTS,
        checkpointed=checkpointed,
    )


def network_of(given):
    torch = pytest.importorskip("torch")
    from samunet.networks.adapter3d import AdapterNetwork, AdapterSettings
    from samunet.networks.volume_encoder import VolumeEncoderSettings

    config, widths = given.config, volume_widths(given.variant, given.config)
    network = AdapterNetwork(
        AdapterSettings(
            encoder=VolumeEncoderSettings(
                variant=given.variant.name,
                patch_size=given.patch_size,
                token_size=config.token_size,
                adapter_width=widths.adapter,
                neck_width=widths.neck,
            ),
            num_channels=1,
            num_outputs=OUTPUTS,
            display_window=((0.0, 1.0),),
            frozen=config.encoder == "frozen",
            decoder_width=widths.decoder,
            generator_width=widths.generator,
            generator=config.generator,
            generator_level=config.apg_level,
            aggregation=config.aggregation,
            refine=config.refine,
            staged=False,
        )
    )
    return network, torch.zeros(1, 1, *given.patch_size)


CASES = [
    {},
    {"encoder": "full"},
    {"patch": (5, 32, 40), "token": (1, 4, 4)},
    {"patch": (16, 24, 16), "token": (2, 2, 2), "refine": False, "apg_level": "all"},
    {"generator": False},
]


@pytest.mark.parametrize("case", CASES)
def test_counts_are_the_networks(case):
    torch = pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    given = place(**case)
    cost = volume_cost(given)
    network, image = network_of(given)
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    assert cost.trainable == sum(p.numel() for p in network.parameters() if p.requires_grad)
    # The counter does not know the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(image)
    # Relative positions and interpolations are left out or rounded.
    assert 2 * (cost.convolutions + cost.transformer) == pytest.approx(counter.get_total_flops(), rel=0.05)
    kept = cost.values - LOGIT_COPIES * OUTPUTS * math.prod(given.patch_size)
    # Norm statistics, tables and the inputs of the loss are not counted.
    assert kept == pytest.approx(kept_values(network, image), rel=0.1)


def kept_values(network, image):
    """Values that autograd saves in a forward pass, parameters left out, each storage once."""
    import torch

    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept, storages = [], {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept.append(tensor)  # keeps the storage alive, so that its address stays its own
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(image)
    return sum(storages.values())


def test_checkpointing_saves_most_of_it():
    given = {"variant": "vit_b", "patch": (128, 128, 128)}
    plain, saving = volume_cost(place(**given)), volume_cost(place(**given, checkpointed=True))
    assert saving.values < plain.values / 5
    assert saving.again == 1.0
    assert plain.again == 0.0


def test_arithmetic_of_the_paper():
    """7.81 TFLOP for ViT-B at 128^3 with the enlarging front end, which took 0.62 of them."""
    blocks = 2e-12 * volume_cost(place("vit_b", (128, 128, 128))).transformer
    assert blocks == pytest.approx(6.67, rel=0.05)
