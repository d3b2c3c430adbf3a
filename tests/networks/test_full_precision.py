from __future__ import annotations

import torch

from samunet.networks.full_precision import full_precision


def test_mixed_precision_is_off_within_the_block() -> None:
    matrix = torch.eye(4)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision("cpu"):
            assert (matrix @ matrix).dtype == torch.float32
        assert (matrix @ matrix).dtype == torch.bfloat16


def test_devices_that_know_no_autocast_are_left_alone() -> None:
    """As `mps` in older releases: even switching it off is refused there."""
    with full_precision("meta"):
        assert torch.ones(2, device="meta").shape == (2,)
