"""`2d_cnn`: training of a convolutional decoder on a SAM encoder (AutoSAM, arXiv 2306.13731)."""

from __future__ import annotations

from samunet.networks.cnn import build_cnn
from samunet.networks.picture import SliceSettings
from samunet.networks.sam_slices import SamSliceNetwork
from samunet.planning.methods.cnn import CnnConfig
from samunet.trainers.sam_heads import SamHeadTrainer


class CnnTrainer(SamHeadTrainer):
    """Trains the head, and the encoder too with `encoder=full`; see sam_heads.py for the recipe."""

    @classmethod
    def build_head_network(cls, settings: SliceSettings, config: CnnConfig) -> SamSliceNetwork:
        return build_cnn(settings, config.head_width, config.num_depth, image_skip=config.image_skip)
