"""Batches made ahead by worker processes, and how long they take."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from samunet.errors import SamunetError
from samunet.preprocessing.streams import BatchStream, Sample, batches_ahead
from samunet.trainers import budget


class Source:
    """Twice its key; key 3 is a mistake of the user's."""

    def sample(self, key: int) -> Sample:
        if key == 3:
            raise SamunetError("Case 3 is cut off. Preprocess it again.")
        return {"value": torch.tensor([2.0 * key])}


class Limits:
    """Tells how many files its process may hold open."""

    def sample(self, key: int) -> Sample:
        import resource

        return {"value": torch.tensor(resource.getrlimit(resource.RLIMIT_NOFILE)[0])}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_low_limit_of_open_files_is_raised_in_workers_too(workers: int) -> None:
    resource = pytest.importorskip("resource", reason="a limit of Unix")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        stream = BatchStream(Limits(), iter([[0]]), workers, torch.device("cpu"))
        limit = next(stream)["value"].item()
        stream.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert limit == (1024 if before[1] == resource.RLIM_INFINITY else min(1024, before[1]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_met_by_a_worker_is_told_without_its_traceback(workers: int) -> None:
    stream = BatchStream(Source(), iter([[0, 1], [2, 3]]), workers, torch.device("cpu"))
    try:
        assert next(stream)["value"].tolist() == [[0.0], [2.0]]
        with pytest.raises(SamunetError, match=r"^Case 3 is cut off\. Preprocess it again\.$"):
            next(stream)
    finally:
        stream.close()


def test_a_killed_worker_is_told_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = BatchStream(Source(), iter([[0]]), 0, torch.device("cpu"))

    def killed(problem: str) -> Iterator[Sample]:
        raise RuntimeError(problem)
        yield {}

    monkeypatch.setattr(stream, "_batches", killed("DataLoader worker (pid 7) is killed by signal: Killed."))
    with pytest.raises(SamunetError, match=r"was killed, .* -np 0"):
        next(stream)
    monkeypatch.setattr(stream, "_batches", killed("sizes differ"))
    with pytest.raises(RuntimeError, match="sizes differ"):
        next(stream)


@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (1, 4), (2, 8), (3, 6), (4, 8), (5, 10), (12, 24)])
def test_batches_that_wait_are_few_however_many_workers_there_are(workers: int, ahead: int) -> None:
    """A batch of large slices is 100 MB, in memory and in /dev/shm."""
    assert batches_ahead(workers) == ahead


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_the_order_of_their_keys_and_no_more_are_begun_than_may_wait(workers: int) -> None:
    begun: list[int] = []

    def keys() -> Iterator[list[int]]:
        for number in range(10, 40):
            begun.append(number)
            yield [number, number + 100]

    stream = BatchStream(Source(), keys(), workers, torch.device("cpu"))
    try:
        for number in range(10, 25):
            assert next(stream)["value"].tolist() == [[2.0 * number], [2.0 * number + 200]]
            assert len(begun) <= number - 10 + 1 + batches_ahead(workers)
    finally:
        stream.close()


class Broken:
    """A fault of the program, or a damaged file that a library reports so."""

    def sample(self, key: int) -> Sample:
        raise RuntimeError("blosc2: a chunk is corrupt")


def test_an_error_within_a_worker_is_not_taken_for_its_death() -> None:
    stream = BatchStream(Broken(), iter([[0]]), 1, torch.device("cpu"))
    try:
        with pytest.raises(RuntimeError, match="blosc2: a chunk is corrupt"):
            next(stream)
    finally:
        stream.close()


class Slow:
    """A stream whose workers have made some batches ahead and take a twentieth of a second for each more."""

    def __init__(self) -> None:
        self.now, self.taken = 0.0, 0

    def __next__(self) -> Sample:
        self.taken += 1
        if self.taken > batches_ahead(1):
            self.now += 0.05
        return {}


@pytest.mark.parametrize(("workers", "told"), [(1, 0.05), (0, 0.0)])
def test_a_time_budget_sees_workers_that_are_slower_than_the_network(
    monkeypatch: pytest.MonkeyPatch, workers: int, told: float
) -> None:
    stream = Slow()
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: stream.now))
    assert budget._time_batches(stream, workers, budget_seconds=60.0) == pytest.approx(told)
    assert workers or not stream.taken
