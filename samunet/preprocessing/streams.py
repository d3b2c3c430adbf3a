"""Batches in a given order, prepared ahead by worker processes (spawn-safe) or in this process."""

from __future__ import annotations

import signal
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from samunet.data.open_files import allow_open_files
from samunet.errors import SamunetError

AHEAD = 8
"""Batches that all workers together prepare ahead, as far as LEAST_AHEAD and MOST_AHEAD of each allow it:
they take memory, and /dev/shm, of which containers have little."""
LEAST_AHEAD = 2
"""Batches come in the order of their keys: a worker that makes one alone waits until all before it are
taken. Computed for times that vary by a third, twelve workers that hold up the training are a quarter slower
with one each than with four, and a fifteenth with two."""
MOST_AHEAD = 4

Sample = dict[str, Tensor]


class SampleSource(Protocol):
    """Makes the sample of a key; picklable, so that worker processes can hold it."""

    def sample(self, key: Any) -> Sample:
        """The sample: the same for the same key in every process."""


def batches_ahead(workers: int) -> int:
    """Batches that so many workers prepare before they are asked for; 0 without workers."""
    return workers * min(MOST_AHEAD, max(LEAST_AHEAD, AHEAD // max(1, workers)))


class _Samples(Dataset[Any]):
    """A map-style dataset whose keys are whatever the source understands."""

    def __init__(self, source: SampleSource) -> None:
        self.source = source

    def __getitem__(self, key: Any) -> Sample | _Refusal:
        try:
            return self.source.sample(key)
        except SamunetError as error:
            return _Refusal(str(error))


@dataclass(frozen=True)
class _Refusal:
    """A message to the user that arose in a worker; the loader would wrap the error in its traceback."""

    message: str


def _stacked(samples: list[Sample | _Refusal]) -> Sample | _Refusal:
    refused = [sample for sample in samples if isinstance(sample, _Refusal)]
    return refused[0] if refused else default_collate(samples)


class _Keys:
    """Batch sampler over an iterator of key lists."""

    def __init__(self, keys: Iterator[list[Any]]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[list[Hashable]]:
        return self.keys


class BatchStream:
    """Iterator over stacked samples, {name: (B, ...)}; `close` ends the workers.

    Args:
        source: makes the samples.
        keys: the keys of each batch, read a little ahead of use.
        workers: processes; 0 prepares samples in this process.
        device: CUDA batches come from pinned memory.
    """

    def __init__(
        self, source: SampleSource, keys: Iterator[list[Any]], workers: int, device: torch.device
    ) -> None:
        allow_open_files()  # before there are workers, which inherit it
        loader = DataLoader(
            _Samples(source),
            batch_sampler=_Keys(keys),
            collate_fn=_stacked,
            num_workers=workers,
            prefetch_factor=batches_ahead(workers) // workers if workers else None,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker if workers else None,
            # Else the loader takes a number from the global generator, and a continued training, which makes
            # one more loader, would draw other numbers than an uninterrupted one.
            generator=torch.Generator(),
        )
        self._batches: Any = iter(loader)

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Sample:
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):  # else the worker's own error, passed on
                raise
            raise SamunetError(
                "A process that prepares samples was killed, most often because memory or /dev/shm (in "
                "containers) ran out. Take fewer with -np N, or none with -np 0; a training goes on with --c."
            ) from error
        if isinstance(batch, _Refusal):
            raise SamunetError(batch.message)
        return batch

    def close(self) -> None:
        """End the workers now, not when the garbage collector finds them."""
        shutdown = getattr(self._batches, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


def _start_worker(number: int) -> None:
    """A worker outlives Ctrl-C and SIGTERM: the main process finishes its step and then ends the workers."""
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)
