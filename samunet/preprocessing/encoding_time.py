"""How long an item of an embedding cache takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
import torch
from torch import nn

from samunet.planning.cache_storage import Storage
from samunet.preprocessing.compact import Codec, fit_bases
from samunet.preprocessing.embedding_build import (
    BuildOptions,
    ItemKey,
    Unit,
    ViewSource,
    encode_items,
    in_batches,
)
from samunet.preprocessing.streams import BatchStream


@torch.no_grad()
def time_encoding(
    network: nn.Module,
    source: ViewSource,
    units: Sequence[Unit],
    options: BuildOptions,
    storage: str,
    batches: int,
) -> float:
    """Seconds per item of a build, measured on a few batches of the last units; nothing is kept.

    Readers work beside a GPU. On a CPU they share its cores with the encoder, so that both times add up.
    """
    keys = (ItemKey(unit.case, unit.view, item) for unit in reversed(units) for item in unit.items)
    stream = BatchStream(source, in_batches(keys, options.batch_size), 0, options.device)
    codec: Codec | None = None
    timed: list[tuple[float, float]] = []
    for _ in range(1 + batches):
        started = time.monotonic()
        batch = next(stream, None)
        if batch is None:
            break
        reading = time.monotonic() - started
        items = list(encode_items([batch], network, options))
        codec = codec or _codec_for_timing(storage, items)
        for item in items:
            codec.encode(item, measured=False)
        timed.append((reading / len(items), (time.monotonic() - started - reading) / len(items)))
    reading, encoding = map(fmean, zip(*(timed[1:] or timed)))  # the first batch allocates
    reading /= max(1, options.workers)
    return max(reading, encoding) if options.device.type == "cuda" else reading + encoding


def _codec_for_timing(storage: str, items: Sequence[Mapping[str, np.ndarray]]) -> Codec:
    """A codec of the kind, as quick as the cache's own, which may have no components yet."""
    kind = Storage.parse(storage)
    return Codec(kind, fit_bases(items, kind.components, seed=0) if kind.kind == "pca" else None)
