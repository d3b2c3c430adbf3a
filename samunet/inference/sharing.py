"""Which networks can share one pass of their encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from samunet.networks.features import EncodingNetwork
from samunet.networks.picture import SliceSettings
from samunet.networks.sam_slices import SamSliceNetwork
from samunet.trainers.checkpoint import BaseWeights

Member = tuple[BaseWeights | None, nn.Module]
"""A network, and the file that its frozen encoder came from where the checkpoint left it out."""


def share_encoder(members: Sequence[Member]) -> bool:
    """Give all networks the first one's encoder when one pass of it serves them all; says whether it does."""
    if len(members) < 2 or not all(one_pass(members[0], other) for other in members[1:]):
        return False
    for _, network in members[1:]:
        network.encoder = members[0][1].encoder
    return True


def one_pass(one: Member, other: Member) -> bool:
    """Whether one `encode` serves both networks' `decode`: same frozen encoder, same picture for it."""
    (base, first), (other_base, second) = one, other
    same_file = base is not None and other_base is not None and base.sha256 == other_base.sha256
    if isinstance(first, SamSliceNetwork) and isinstance(second, SamSliceNetwork):
        if not _same_picture(first.settings, second.settings):
            return False
        return first.encoder is second.encoder or same_file or _equal(first.encoder, second.encoder)
    # Parts of an encoder without `encode` are trained, fold by fold.
    return same_file and type(first) is type(second) and isinstance(first, EncodingNetwork)


def _same_picture(one: SliceSettings, other: SliceSettings) -> bool:
    """Whether two frozen encoders see the same; a stem is trained, fold by fold."""
    if not (one.frozen and one.channel_map == "fixed"):
        return False
    like_other = replace(
        one, num_outputs=other.num_outputs, exclusive=other.exclusive, checkpointing=other.checkpointing
    )
    return like_other == other


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Encoders of a file that checkpoints keep, or of one random seed: their tensors decide."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
