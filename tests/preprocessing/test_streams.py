"""Batches made ahead by worker processes, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from samunet.errors import SamunetError
from samunet.preprocessing.streams import BatchStream, Sample
from samunet.trainers.budget import _time_batches


class Source:
    """Twice its key; key 3 is a mistake of the user's."""

    def sample(self, key: int) -> Sample:
        if key == 3:
            raise SamunetError("Case 3 is cut off. Preprocess it again.")
        return {"value": torch.tensor([2.0 * key])}


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
    """A twentieth of a second a sample."""

    def sample(self, key: int) -> Sample:
        time.sleep(0.05)
        return {"value": torch.tensor([float(key)])}


@pytest.mark.parametrize(("workers", "least"), [(1, 0.05), (0, 0.0)])
def test_a_time_budget_sees_workers_that_are_slower_than_the_network(workers: int, least: float) -> None:
    """Sleep never ends early, so the bound holds on a busy machine too."""
    stream = BatchStream(Slow(), iter([[k] for k in range(100)]), workers, torch.device("cpu"))
    try:
        seconds = _time_batches(stream, workers, budget_seconds=60.0)
    finally:
        stream.close()
    assert seconds >= 0.7 * least  # the first of four timed batches may have been made before
    assert workers or seconds < 0.04  # nothing was made
