"""Batches made ahead by worker processes, and how long they take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from samunet.errors import SamunetError
from samunet.preprocessing import streams
from samunet.preprocessing.ahead import Ahead, fitting_ahead, needed_bytes, usual_ahead
from samunet.preprocessing.streams import BatchStream, Sample
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
    full = (
        "Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared memory(shm) for <f>"
    )
    monkeypatch.setattr(stream, "_batches", killed(full))
    with pytest.raises(SamunetError, match=r"/dev/shm has no room left .* -np 0"):
        next(stream)
    monkeypatch.setattr(stream, "_batches", killed("sizes differ"))
    with pytest.raises(RuntimeError, match="sizes differ"):
        next(stream)


@pytest.mark.parametrize(("workers", "ahead"), [(0, 0), (1, 4), (2, 8), (3, 6), (4, 8), (5, 10), (12, 24)])
def test_batches_that_wait_are_few_however_many_workers_there_are(workers: int, ahead: int) -> None:
    """A batch of large slices is 100 MB, in memory and in /dev/shm."""
    assert usual_ahead(workers).batches == ahead


MB = 2**20


@pytest.mark.parametrize(
    ("batch", "free", "ahead"),
    [
        (1 * MB, 64 * MB, (11, 2)),  # all that is of use
        (4 * MB, 64 * MB, (6, 2)),
        (17 * MB, 64 * MB, (1, 2)),  # a usual 3D batch in a container as docker makes it
        (25 * MB, 64 * MB, (1, 1)),
        (30 * MB, 64 * MB, (0, 0)),  # the batch in use alone
        (100 * MB, 64 * MB, (0, 0)),
    ],
)
def test_workers_are_as_many_as_shared_memory_has_room_for(
    batch: int, free: int, ahead: tuple[int, int]
) -> None:
    found = fitting_ahead(11, batch, free)
    assert found == ahead
    assert not found.workers or (found.batches + 1) * batch <= free


def test_the_memory_that_is_asked_for_has_room_for_all() -> None:
    needed = math.ceil(needed_bytes(11, 17 * MB))
    assert fitting_ahead(11, 17 * MB, needed) == usual_ahead(11)
    assert fitting_ahead(11, 17 * MB, needed - 17 * MB).workers < 11


class Large:
    """Samples of 1 MB."""

    def sample(self, key: int) -> Sample:
        return {"image": torch.full((MB // 4,), float(key))}


def test_a_stream_in_little_shared_memory_takes_fewer_workers_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streams, "scarce_shared_bytes", lambda: 16 * MB)
    streams._say_fewer.cache_clear()
    for _ in range(2):
        stream = BatchStream(Large(), iter([[n, n] for n in range(9)]), 12, torch.device("cpu"))
        try:
            assert stream.ahead == Ahead(3, 2)
            assert [batch["image"][0, 0].item() for batch in stream] == list(range(9))
        finally:
            stream.close()
    (told,) = [record.getMessage() for record in caplog.records]
    assert "3 of the 12 processes" in told
    assert "--shm-size=1g" in told
    assert "-np 3" in told


def test_a_mistake_of_the_first_case_is_told_with_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "scarce_shared_bytes", lambda: 16 * MB)
    stream = BatchStream(Source(), iter([[3]]), 1, torch.device("cpu"))
    try:
        with pytest.raises(SamunetError, match=r"^Case 3 is cut off"):
            next(stream)
    finally:
        stream.close()


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
            assert len(begun) <= number - 10 + 1 + usual_ahead(workers).batches
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

    def __init__(self, workers: int) -> None:
        self.now, self.taken, self.ahead = 0.0, 0, usual_ahead(workers)

    def __next__(self) -> Sample:
        self.taken += 1
        if self.taken > self.ahead.batches:
            self.now += 0.05
        return {}


@pytest.mark.parametrize(("workers", "told"), [(1, 0.05), (0, 0.0)])
def test_a_time_budget_sees_workers_that_are_slower_than_the_network(
    monkeypatch: pytest.MonkeyPatch, workers: int, told: float
) -> None:
    stream = Slow(workers)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: stream.now))
    assert budget._time_batches(stream, budget_seconds=60.0) == pytest.approx(told)
    assert workers or not stream.taken
