"""Settings that every 2D head on a SAM encoder has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from samunet.networks.sam.variants import SamVariant
from samunet.planning.cache_storage import Storage
from samunet.planning.methods import MethodConfig
from samunet.records import Count, Natural, NotNegative, Positive

USUAL_VIEWS = 6
"""Stored of each slice where nothing speaks for more or fewer."""


@dataclass(frozen=True, kw_only=True)
class SamHeadConfig(MethodConfig):
    """Settings of every 2D head on a SAM encoder."""

    learning_rate: Positive = 5e-4
    """Peak learning rate of AdamW (the paper's value for a frozen encoder)."""
    weight_decay: NotNegative = 1e-2
    """Weight decay of AdamW."""
    warmup_steps: Natural = 250
    """Steps of linear warm-up before the polynomial decay; `paper_compat` has neither."""
    encoder: Literal["frozen", "full"] = "frozen"
    """Whether the SAM encoder keeps its pretrained weights or is trained too (then nothing is cached)."""
    encoder_weights: str | None = None
    """`random` begins with a random encoder: kept (speed figures, tests) or, with `encoder=full`, trained."""
    encoder_learning_rate_factor: Positive = 1.0
    """Learning rate of the trained encoder relative to the head's (below 1 for a pretrained encoder)."""
    checkpointing: bool = False
    """Compute a trained encoder's activations again in the backward pass: less memory, a third more work."""
    cache: bool = True
    """Keep the frozen encoder's outputs on disk instead of encoding in every step."""
    views: Count = USUAL_VIEWS
    """Augmented views stored per slice in the embedding cache; the first is the plain slice."""
    cache_storage: str = "fp16"
    """How the cache keeps embeddings: `fp16`, `int8`, or `pca:N` (N principal components, in int8)."""
    slice_context: Natural = 0
    """Neighbouring slices on each side that are given as further channels (0: single slices)."""
    channel_map: Literal["fixed", "stem"] = "fixed"
    """Channels to SAM's three by a fixed map, or by a trainable 1x1 stem (then nothing is cached)."""

    def __post_init__(self) -> None:
        Storage.parse(self.cache_storage)

    @property
    def as_published(self) -> bool:
        """Whether everything is as in AutoSAM's public code."""
        return False

    def sees_picture(self, variant: SamVariant) -> bool:
        """Whether the head on this encoder looks at the picture beside the embedding."""
        return False


@dataclass(frozen=True, kw_only=True)
class PaperHeadConfig(SamHeadConfig):
    """Settings of the heads of AutoSAM's paper (arXiv 2306.13731), which have no prompts."""

    head_width: Count | None = None
    """Base width of the head; None scales it with the encoder (see the method's page)."""
    paper_compat: bool = False
    """Behave like AutoSAM's public code where it differs from the sound choice."""

    @property
    def as_published(self) -> bool:
        return self.paper_compat


@dataclass(frozen=True, kw_only=True)
class SkipHeadConfig(PaperHeadConfig):
    """Settings of a head that may have an image skip."""

    image_skip: bool | None = None
    """Whether the head sees the picture beside the embedding; None: where a small encoder is trained too."""

    def sees_picture(self, variant: SamVariant) -> bool:
        if self.image_skip is not None:
            return self.image_skip
        return variant.wants_image_skip(trained=self.encoder == "full", paper_compat=self.paper_compat)
