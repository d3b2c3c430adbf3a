"""`2d_autosam`: training of SAM's mask decoder without prompts (AutoSAM, arXiv 2306.13731)."""

from __future__ import annotations

from samunet.networks.autosam import build_autosam
from samunet.networks.picture import SliceSettings
from samunet.networks.sam_slices import SamSliceNetwork
from samunet.planning.methods.autosam import AutoSamConfig
from samunet.trainers.sam_heads import SamHeadTrainer


class AutoSamTrainer(SamHeadTrainer):
    """Trains the head, and the encoder too with `encoder=full`; see sam_heads.py for the recipe."""

    @classmethod
    def build_head_network(cls, settings: SliceSettings, config: AutoSamConfig) -> SamSliceNetwork:
        return build_autosam(
            settings, config.head_width, class_chunk=config.class_chunk, image_skip=config.image_skip
        )
