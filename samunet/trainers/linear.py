"""`2d_linear`: training of a linear head on a SAM encoder (AutoSAM, arXiv 2306.13731)."""

from __future__ import annotations

from samunet.networks.linear import build_linear
from samunet.networks.picture import SliceSettings
from samunet.networks.sam_slices import SamSliceNetwork
from samunet.planning.methods.linear import LinearConfig
from samunet.trainers.sam_heads import SamHeadTrainer


class LinearTrainer(SamHeadTrainer):
    """Trains the head, and the encoder too with `encoder=full`; see sam_heads.py for the recipe."""

    @classmethod
    def build_head_network(cls, settings: SliceSettings, config: LinearConfig) -> SamSliceNetwork:
        return build_linear(settings, config.head_width)
