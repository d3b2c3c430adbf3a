"""`3d_adapter`: SAM's encoder in 3D, automatic prompts, multi-layer aggregation (AutoProSAM, arXiv
2308.14936)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from samunet.errors import SamunetError
from samunet.networks.full_precision import full_precision
from samunet.networks.picture import channel_matrix, check_windows, unit_range
from samunet.networks.prompt_generator import PromptGenerator
from samunet.networks.sam.variants import PIXEL_MEAN, PIXEL_STD, get_variant
from samunet.networks.sam.weight_files import adapters_refused
from samunet.networks.sam.weights import read_weights
from samunet.networks.volume_decoder import VolumeDecoder, VolumeDecoderSettings
from samunet.networks.volume_encoder import VolumeEncoder, VolumeEncoderSettings

logger = logging.getLogger(__name__)

ENCODER_PREFIX = "encoder."
"""Prefix of the encoder's keys in the state dict."""
Level = Literal["last", "first", "all"]


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What the network is built from; lengths are voxels (z, y, x).

    Attributes:
        encoder: of the encoder.
        num_channels: image channels; `num_outputs` channels K of the logits.
        display_window: per channel, the stored intensities (low, high) that SAM sees as 0 and 255.
        frozen: SAM's own weights are kept, only what AutoProSAM adds is trained.
        decoder_width: channels of the decoder; `generator_width` of the generator's first level.
        generator: with the automatic prompt generator, at `generator_level`, added or in place of the map.
        aggregation: all levels go into the decoder, not the last alone.
        refine: refinement at full resolution.
        staged: the generator is bypassed until `start_generator` is called.
    """

    encoder: VolumeEncoderSettings
    num_channels: int
    num_outputs: int
    display_window: tuple[tuple[float, float], ...]
    frozen: bool = True
    decoder_width: int
    generator_width: int
    generator: bool = True
    generator_level: Level = "last"
    generator_residual: bool = False
    aggregation: bool = True
    refine: bool = False
    staged: bool = True


class VolumeColours(nn.Module):
    """Stored intensities (B, C, Z, Y, X) -> what SAM sees, (B, 3, Z, Y, X) float32, normalised as SAM does
    it."""

    window: Tensor
    matrix: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, display_window: tuple[tuple[float, float], ...]) -> None:
        super().__init__()
        check_windows(display_window, len(display_window))
        self.register_buffer("window", torch.tensor(display_window, dtype=torch.float32))
        self.register_buffer("matrix", channel_matrix(len(display_window)), persistent=False)
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        with full_precision(image.device.type):
            shown = unit_range(image.float(), self.window)
            colours = torch.einsum("rc,bczyx->brzyx", self.matrix, shown)
            return (255 * colours - self.mean) / self.std


class AdapterNetwork(nn.Module):
    """Patches (B, C, Z, Y, X) of stored intensities -> logits (B, K, Z, Y, X) float32.

    `prompting` (a buffer, so that a checkpoint knows it) says whether the generator takes part: in the first
    of two training stages it does not. It is read when it is loaded or set, not in every step, where a GPU
    would be waited for.
    """

    prompting: Tensor

    def __init__(self, settings: AdapterSettings) -> None:
        super().__init__()
        self.settings = settings
        check_windows(settings.display_window, settings.num_channels)
        self.colours = VolumeColours(settings.display_window)
        self.encoder = VolumeEncoder(settings.encoder)
        levels = len(self.encoder.levels)
        self.prompted = _prompted_levels(settings, levels)
        self.generators = nn.ModuleDict(
            {
                str(level): PromptGenerator(
                    settings.encoder.neck_width,
                    settings.encoder.grid,
                    settings.generator_width,
                    residual=settings.generator_residual,
                )
                for level in self.prompted
            }
        )
        self.decoder = VolumeDecoder(
            VolumeDecoderSettings(
                inputs=settings.encoder.neck_width,
                levels=levels if settings.aggregation else 1,
                width=settings.decoder_width,
                image_channels=settings.num_channels,
                outputs=settings.num_outputs,
                token_size=settings.encoder.token_size,
                refine=settings.refine,
            )
        )
        self._prompts = settings.generator and not settings.staged
        self.register_buffer("prompting", torch.tensor(self._prompts))
        self.register_load_state_dict_post_hook(_read_stage)  # type: ignore[no-untyped-call]
        if settings.frozen:
            self.encoder.freeze()
        else:
            self.encoder.initialise()
        self._trained = frozenset(name for name, p in self.named_parameters() if p.requires_grad)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that training may change, the same whatever is frozen at the moment."""
        return ((name, p) for name, p in self.named_parameters() if name in self._trained)

    def start_generator(self) -> None:
        """Let the generator take part from now on, if there is one."""
        self._prompts = self.settings.generator
        self.prompting.fill_(self._prompts)

    def forward(self, image: Tensor) -> Tensor:
        maps = list(self.encoder(self.colours(image)))
        if self._prompts:
            for level in self.prompted:
                maps[level] = self.generators[str(level)](maps[level])
        if not self.settings.aggregation:
            maps = maps[-1:]
        return self.decoder(maps, image).float()


def _read_stage(network: nn.Module, keys: object) -> None:
    """After a state dict was loaded: whether the generator takes part."""
    assert isinstance(network, AdapterNetwork)
    network._prompts = bool(network.prompting)


def _prompted_levels(settings: AdapterSettings, levels: int) -> tuple[int, ...]:
    """Levels with a generator; without the aggregation only the last one is seen at all."""
    if not settings.generator:
        return ()
    chosen = {"last": (levels - 1,), "first": (0,), "all": tuple(range(levels))}[settings.generator_level]
    return chosen if settings.aggregation else (levels - 1,)


def load_pretrained(network: AdapterNetwork, path: Path) -> None:
    """Start the encoder from a SAM weights file; every key of the file is accounted for.

    Raises:
        SamunetError: the file does not fit, or has adapters for slices; nothing is loaded then.
    """
    weights = read_weights(path, get_variant(network.settings.encoder.variant).name)
    if weights.adapted:
        raise SamunetError(adapters_refused(str(path)))
    used = network.encoder.load_sam(weights.image_encoder)
    logger.info(
        "%s: %d tensors into the encoder; %d of SAM's 2D neck, prompts and decoder are not needed.",
        path,
        len(used),
        weights.count - len(used),
    )
