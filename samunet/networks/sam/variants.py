"""Which SAM encoders there are: sizes, decoder widths, and the official files. No torch.

The three large ones are Segment Anything's (Kirillov et al. 2023, arXiv 2304.02643). `vit_tiny` is ours: the
same architecture and parameter names, small enough to be trained on two cores. `vit_micro` serves tests only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from samunet.errors import SamunetError, unknown_name

PATCH = 16
"""Side in pixels of one token."""
STRIDE = 4
"""Pixels of the encoder's input per cell of SAM's mask logits."""
PAPER_CNN_WIDTH = 64
"""`top_channel` of the public AutoSAM code, for every encoder: 20.7 M parameters."""
PAPER_LINEAR_WIDTH = 64
"""Channels after the linear head's first upsampling in the public AutoSAM code; the second halves them."""
KERNEL_WIDTH = 8
"""Fused attention kernels want feature widths that are multiples of this."""
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""SAM's normalisation of pixels in 0..255, red, green, blue."""

Prior = Literal["sam", "own weights", "encoder without prior"]
"""What an encoder knew before training: what SAM's weights (or such as were tuned from them) know, what a
small encoder's own pretrained ones do, or nothing."""

_SOURCE = "https://dl.fbaipublicfiles.com/segment_anything/"


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """A published weights file.

    Attributes:
        name: file name; `url` where it is published.
        size: bytes, for forecasts and progress; the hash decides whether a file is the right one.
        sha256: of the whole file, hexadecimal.
    """

    name: str
    size: int
    sha256: str
    licence: str = "Apache-2.0"

    @property
    def url(self) -> str:
        return _SOURCE + self.name


@dataclass(frozen=True, kw_only=True)
class SamVariant:
    """Sizes of one encoder and of the decoder that belongs to it.

    Attributes:
        width / depth / heads: of the vision transformer; each MLP is four times as wide.
        global_blocks: 0-based blocks that attend over the whole picture; the others within windows.
        window: side of a window in tokens; grids that are no multiple of it are padded.
        native_size: side in pixels of the input that the position tables are made for.
        input_size: side in pixels that is used by default.
        prompt_dim: channels of the neck, the prompt encoder and the mask decoder.
        decoder_heads / decoder_mlp: of the mask decoder's two-way transformer.
        cnn_width: width of the last stage of the CNN head (`top_channel` in the paper's code). Its bottom, 16
            times as wide, is as wide as the encoder, but no wider than the paper's.
        from_scratch: meant to be trained by the user when no weights are at hand.
        official: the published file, or None.
    """

    name: str
    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    native_size: int = 1024
    input_size: int = 1024
    prompt_dim: int = 256
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    cnn_width: int = PAPER_CNN_WIDTH
    from_scratch: bool = False
    official: OfficialFile | None = None

    @property
    def native_grid(self) -> int:
        """Tokens along a side at the native input size."""
        return self.native_size // PATCH

    def prior(self, weights: str) -> Prior:
        """What this encoder knows with weights of a kind: `official`, `shipped`, `file`, `none`, `random`."""
        if weights in ("none", "random"):
            return "encoder without prior"
        return "own weights" if self.from_scratch else "sam"

    def wants_image_skip(self, *, trained: bool, paper_compat: bool) -> bool:
        """Whether a head on this encoder sees the picture too, if nobody decides: a small encoder that is
        trained along, and nothing that the paper's code must match."""
        return self.from_scratch and trained and not paper_compat

    @property
    def file_name(self) -> str:
        """Name under which the weights are looked for."""
        return self.official.name if self.official else f"samunet_{self.name}.pth"


_ALL = (
    SamVariant(
        name="vit_b",
        width=768,
        depth=12,
        heads=12,
        global_blocks=(2, 5, 8, 11),
        cnn_width=48,
        official=OfficialFile(
            name="sam_vit_b_01ec64.pth",
            size=375_042_383,
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
    ),
    SamVariant(
        name="vit_l",
        width=1024,
        depth=24,
        heads=16,
        global_blocks=(5, 11, 17, 23),
        official=OfficialFile(
            name="sam_vit_l_0b3195.pth",
            size=1_249_524_607,
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
    ),
    SamVariant(
        name="vit_h",
        width=1280,
        depth=32,
        heads=16,
        global_blocks=(7, 15, 23, 31),
        official=OfficialFile(
            name="sam_vit_h_4b8939.pth",
            size=2_564_550_879,
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    ),
    SamVariant(
        name="vit_tiny",
        width=256,
        depth=7,
        heads=4,
        # At 224 pixels one window covers the grid, so that all blocks attend alike; declared global, the
        # encoder takes any other size without padding tokens.
        global_blocks=(0, 1, 2, 3, 4, 5, 6),
        native_size=224,
        input_size=224,
        prompt_dim=128,
        decoder_heads=4,
        decoder_mlp=512,
        cnn_width=16,
        from_scratch=True,
    ),
    SamVariant(
        name="vit_micro",
        width=32,
        depth=2,
        heads=2,
        global_blocks=(1,),
        window=2,
        native_size=64,
        input_size=64,
        prompt_dim=32,
        decoder_heads=2,
        decoder_mlp=64,
        cnn_width=8,
        from_scratch=True,
    ),
)
VARIANTS: dict[str, SamVariant] = {variant.name: variant for variant in _ALL}

REFUSED = {
    "vit_t": "is MobileSAM's TinyViT, another network than SAM's vision transformer (its parts and parameter "
    "names differ)",
}
REFUSED["mobile_sam"] = REFUSED["vit_t"]


def finest_stride(input_size: int, patch_size: Sequence[int]) -> int:
    """Pixels of the encoder's square per cell of the finest detail that a head computes: 2, or 4 (SAM's own).

    A slice that is enlarged to fill the square has no finer detail than its own pixels. Detail of single
    pixels would cost more than the whole encoder `vit_tiny`, and in a short training it gained nothing.
    """
    enlargement = input_size / max(patch_size)
    return min(STRIDE, max(2, 2 ** round(math.log2(enlargement))))


def get_variant(name: str) -> SamVariant:
    """The encoder of that name.

    Raises:
        SamunetError: unknown, or refused with the reason.
    """
    if name in REFUSED:
        raise SamunetError(
            f"The encoder {name!r} {REFUSED[name]}; samunet does not have it. "
            "Use vit_tiny (small) or vit_b (official weights)."
        )
    if name not in VARIANTS:
        raise unknown_name("encoder", name, [n for n in VARIANTS if n != "vit_micro"])
    return VARIANTS[name]
