"""How an embedding cache keeps what a frozen encoder gives, and the bytes that takes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from samunet.errors import SamunetError

RANGE_BYTES = 8
"""Least value and step of a channel of a slice, float32 each."""


@dataclass(frozen=True)
class Storage:
    """One of the kinds of `cache_storage`.

    Attributes:
        kind: `fp16`; `int8`, a range for each channel of each slice; `pca`, coefficients of principal
            components over the channels, kept as `int8` keeps channels.
        components: of `pca`, at most as many as a level has channels.
    """

    kind: Literal["fp16", "int8", "pca"]
    components: int = 0

    @classmethod
    def parse(cls, text: str) -> Storage:
        """Read `fp16`, `int8` or `pca:N`.

        Raises:
            SamunetError: anything else.
        """
        kind, _, number = text.partition(":")
        if kind in ("fp16", "int8") and text == kind:
            return cls("fp16" if kind == "fp16" else "int8")
        if kind == "pca" and number.isdecimal() and int(number) > 0:
            return cls("pca", int(number))
        raise SamunetError(
            f"cache_storage={text}: give fp16, int8, or pca:N with the number of components, such as "
            "--set cache_storage=pca:64."
        )

    def kept(self, channels: int) -> int:
        """Maps that are stored of a level with so many channels."""
        return min(channels, self.components) if self.kind == "pca" else channels

    def bytes(self, channels: Sequence[int], cells: int) -> int:
        """Bytes of one slice: levels of so many channels with so many cells each."""
        if self.kind == "fp16":
            return 2 * sum(channels) * cells
        return sum(self.kept(number) * (cells + RANGE_BYTES) for number in channels)
