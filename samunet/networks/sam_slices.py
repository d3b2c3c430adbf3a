"""A 2D segmentation network on a SAM encoder: slices in, logits of the same size out, whatever the head."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from samunet.networks.features import EncodingNetwork, Features
from samunet.networks.picture import SamPicture, SliceSettings
from samunet.networks.sam.adapters import is_adapter_key
from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weights import read_weights

logger = logging.getLogger(__name__)

ENCODER_PREFIX = "encoder."
"""Prefix of the encoder's keys in the state dict."""


class SliceHead(nn.Module):
    """Base of the heads: `forward(Features)` -> logits (B, K, s, s) of the whole square, s = S/4 or finer.

    Attributes:
        uses_image: whether `Features.image` is needed.
        blocks: 0-based encoder blocks whose outputs are needed, ascending; they come before the neck's.
    """

    uses_image: bool = False
    blocks: tuple[int, ...] = ()

    def load_decoder(self, prompt_encoder: dict[str, Tensor], mask_decoder: dict[str, Tensor]) -> set[str]:
        """Take over what fits from SAM's prompt encoder and mask decoder.

        Args:
            prompt_encoder / mask_decoder: state dicts of the package's modules.

        Returns:
            the keys used, `prompt_encoder.` or `mask_decoder.` in front; empty for heads that use none.
        """
        return set()


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of a weights file: numbers of tensors, and the keys that this head has no use for."""

    path: Path
    sha256: str
    encoder: int
    decoder: int
    unused: tuple[str, ...]


class SamSliceNetwork(nn.Module):
    """Slices (B, C, H, W) of stored intensities -> logits (B, K, H, W).

    `encode` and `decode` are its two halves, so that embeddings can be kept on disk and one encoder pass can
    serve the heads of several folds. With a frozen encoder `encode` needs no graph, unless a trainable stem
    stands before it.
    """

    def __init__(self, settings: SliceSettings, head: SliceHead) -> None:
        super().__init__()
        self.settings = settings
        self.picture = SamPicture(settings)
        self.encoder = SamImageEncoder(
            get_variant(settings.variant), settings.input_size, checkpointing=settings.checkpointing
        )
        self.head = head
        if settings.frozen:
            self.encoder.requires_grad_(False)
            self.encoder.eval()
        self._trained = frozenset(name for name, p in self.named_parameters() if p.requires_grad)

    def train(self, mode: bool = True) -> SamSliceNetwork:
        super().train(mode)
        if self.settings.frozen:
            self.encoder.eval()
        return self

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that training may change, the same whatever is frozen at the moment."""
        return ((name, p) for name, p in self.named_parameters() if self._is_trained(name))

    def _is_trained(self, name: str) -> bool:
        # Adapters come with the weights, after the rest was built.
        return name in self._trained or (is_adapter_key(name) and not self.settings.frozen)

    def encode(self, slices: Tensor) -> Features:
        """Slices (B, C, H, W) -> what `decode` needs; the neck's (B, E, S/16, S/16) is the last level."""
        return next(self.encode_for([self.head], slices))

    def encode_for(self, heads: Sequence[SliceHead], slices: Tensor) -> Iterator[Features]:
        """One pass of the encoder over slices (B, C, H, W) -> the features of each head."""
        blocks = sorted({block for head in heads for block in head.blocks})
        without_graph = self.settings.frozen and self.settings.channel_map == "fixed"
        with torch.no_grad() if without_graph else nullcontext():
            picture = self.picture(slices)
            levels = self.encoder.levels(picture, blocks)
        for head in heads:
            chosen = (*(levels[blocks.index(block)] for block in head.blocks), levels[-1])
            image = picture if head.uses_image else None
            yield Features(levels=chosen, output_size=tuple(slices.shape[-2:]), image=image)

    def decode(self, features: Features) -> Tensor:
        """Features (of any float type) -> logits (B, K, *features.output_size) float32."""
        return self.picture.to_slice(self.head(self.as_head_type(features)), features.output_size)

    def as_head_type(self, features: Features) -> Features:
        """Features in the number type of the head; those from the cache are in half precision."""
        kind = next(self.head.parameters()).dtype
        levels = tuple(level.to(kind) for level in features.levels)
        image = None if features.image is None else features.image.to(kind)
        return Features(levels=levels, output_size=features.output_size, image=image)

    def forward(self, slices: Tensor) -> Tensor:
        return self.decode(self.encode(slices))


def shared_features(networks: Sequence[nn.Module], inputs: Tensor) -> Iterator[Features]:
    """Features for each of several networks by one pass of the first one's encoder.

    Args:
        networks: with one frozen encoder; their heads may be of different methods if all are
            `SamSliceNetwork`, else they are folds of one method.
        inputs: (B, C, *patch).
    """
    first = networks[0]
    if isinstance(first, SamSliceNetwork):
        heads = [network.head for network in networks if isinstance(network, SamSliceNetwork)]
        yield from first.encode_for(heads, inputs)
        return
    features = cast(EncodingNetwork, first).encode(inputs)
    for _ in networks:
        yield features


def load_pretrained(network: SamSliceNetwork, path: Path, *, decoder: bool = True) -> LoadReport:
    """Start a network from a SAM weights file; every key of the file is accounted for.

    Args:
        network: its encoder is loaded completely, position tables resized to its input.
        path: see `read_weights`.
        decoder: start the head from SAM's decoder too, where the head has parts of it.

    Raises:
        SamunetError: the file does not fit; nothing is loaded then.
    """
    weights = read_weights(path, network.settings.variant)
    network.encoder.load_tables(weights.image_encoder)
    used = network.head.load_decoder(weights.prompt_encoder, weights.mask_decoder) if decoder else set()
    rest = {f"prompt_encoder.{key}" for key in weights.prompt_encoder}
    rest |= {f"mask_decoder.{key}" for key in weights.mask_decoder}
    assert used <= rest
    report = LoadReport(
        path=weights.path,
        sha256=weights.sha256,
        encoder=len(weights.image_encoder),
        decoder=len(used),
        unused=tuple(sorted(rest - used)),
    )
    logger.info(
        "%s: %d tensors into the encoder, %d into the head, %d of SAM's prompts and decoder not needed.",
        path,
        report.encoder,
        report.decoder,
        len(report.unused),
    )
    return report
