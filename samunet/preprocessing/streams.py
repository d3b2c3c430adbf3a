"""Batches in a given order, prepared ahead by worker processes (spawn-safe) or in this process."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from samunet.data.open_files import allow_open_files
from samunet.errors import SamunetError
from samunet.preprocessing.ahead import Ahead, fitting_ahead, needed_bytes, scarce_shared_bytes, usual_ahead

SCARCE = {
    "DataLoader worker (pid": "A process that prepares samples was killed, most often because memory or "
    "/dev/shm (in containers) ran out.",
    "unable to allocate shared memory": "/dev/shm has no room left for the samples that processes prepare: "
    "it is small, or other programs fill it.",
}
"""What torch says where memory ran out, and what is told."""

logger = logging.getLogger(__name__)

Sample = dict[str, Tensor]


class SampleSource(Protocol):
    """Makes the sample of a key; picklable, so that worker processes can hold it."""

    def sample(self, key: Any) -> Sample:
        """The sample: the same for the same key in every process."""


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
        workers: processes, fewer where /dev/shm has no room for their batches; 0 prepares samples in this
            process.
        device: CUDA batches come from pinned memory.

    Attributes:
        ahead: the processes that there are, and the batches that they make before they are asked for.
    """

    def __init__(
        self, source: SampleSource, keys: Iterator[list[Any]], workers: int, device: torch.device
    ) -> None:
        allow_open_files()  # before there are workers, which inherit it
        first = next(keys, [])
        self.ahead = _fitting(source, first, workers)
        workers, each = self.ahead
        loader = DataLoader(
            _Samples(source),
            batch_sampler=_Keys(chain([first], keys) if first else keys),
            collate_fn=_stacked,
            num_workers=workers,
            prefetch_factor=each or None,
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
            problem = next((told for sign, told in SCARCE.items() if sign in str(error)), None)
            if problem is None:  # the worker's own error, passed on
                raise
            raise SamunetError(
                f"{problem} Take fewer processes with -np N, or none with -np 0; a training goes on with --c."
            ) from error
        if isinstance(batch, _Refusal):
            raise SamunetError(batch.message)
        return batch

    def close(self) -> None:
        """End the workers now, not when the garbage collector finds them."""
        shutdown = getattr(self._batches, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


def _fitting(source: SampleSource, first: list[Any], workers: int) -> Ahead:
    """The workers whose batches fit into the shared memory; says so where these are fewer."""
    free = scarce_shared_bytes()
    if free is None or not workers or not first:
        return usual_ahead(workers)
    try:
        sample = source.sample(first[0])
    except SamunetError:  # told when the batch is asked for
        return usual_ahead(workers)
    size = len(first) * sum(value.nbytes for value in sample.values())
    ahead = fitting_ahead(workers, size, free)
    if ahead.workers < workers:
        _say_fewer(ahead.workers, workers, math.ceil(needed_bytes(workers, size) / 2**30))
    return ahead


@cache
def _say_fewer(workers: int, wanted: int, needed_gb: int) -> None:
    logger.warning(
        "/dev/shm has room for the batches of %d of the %d processes that were to prepare samples, so there "
        "are no more; training may wait for samples. Allow more where you can (docker run --shm-size=%dg), "
        "else -np %d asks for what there is.",
        workers,
        wanted,
        needed_gb,
        workers,
    )


def _start_worker(number: int) -> None:
    """A worker outlives Ctrl-C and SIGTERM: the main process finishes its step and then ends the workers."""
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)
