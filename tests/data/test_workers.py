"""Worker processes: order, errors, death."""

from __future__ import annotations

import os

import pytest

from samunet.data import workers
from samunet.data.workers import (
    available_cores,
    each_in_workers,
    free_memory_bytes,
    map_in_workers,
    worker_count,
)
from samunet.errors import SamunetError


def double(value: int) -> int:
    return 2 * value


def die(value: int) -> int:
    os._exit(9)


def fail(value: int) -> int:
    raise SamunetError(f"case {value} is broken")


@pytest.mark.parametrize("number", [1, 2])
def test_order_and_progress(number):
    seen = []
    found = map_in_workers(double, range(5), number, str, lambda done, total: seen.append((done, total)))
    assert found == [0, 2, 4, 6, 8]
    assert seen[-1] == (5, 5)


def test_errors_of_a_task_come_through():
    with pytest.raises(SamunetError, match=r"case \d is broken"):
        map_in_workers(fail, [0, 1], 2, str)


def test_a_worker_that_dies_names_its_cases():
    with pytest.raises(SamunetError, match="hippo_3") as caught:
        map_in_workers(die, [3], 2, "hippo_{}".format)
    assert 'if __name__ == "__main__":' in str(caught.value)


def die_on_three(value: int) -> int:
    return os._exit(9) if value == 3 else double(value)


def test_the_others_of_a_worker_that_dies_are_finished():
    found = {one.index: one for one in each_in_workers(die_on_three, range(6), 2)}
    assert [i for i, one in found.items() if one.died] == [3]
    assert [found[i].result for i in (0, 1, 2, 4, 5)] == [0, 2, 4, 8, 10]
    with pytest.raises(SamunetError, match="while hippo_3 was worked on"):
        map_in_workers(die_on_three, range(6), 2, "hippo_{}".format)


def test_too_little_memory_for_one_case_is_told(caplog):
    assert worker_count(8, 2 * free_memory_bytes(), 10) == 1
    assert "The largest case takes about" in caplog.text


@pytest.mark.parametrize(("left", "free"), [(10_000, 10_000), (-5, 0)])
def test_free_memory_is_what_is_left_of_the_jobs(left, free, monkeypatch):
    monkeypatch.setattr(workers, "memory_left", lambda: left)
    assert free_memory_bytes() == free


@pytest.mark.parametrize("left", [None, 2**62])
def test_free_memory_is_at_most_the_machines(left, monkeypatch):
    monkeypatch.setattr(workers, "memory_left", lambda: left)
    assert 10_000 < free_memory_bytes() < 2**50


@pytest.mark.parametrize("quota", [None, 2, 100])
def test_a_container_may_have_fewer_cores_than_it_sees(quota, monkeypatch):
    monkeypatch.setattr(workers, "core_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert available_cores() == min(64, quota or 64)
    assert worker_count(None, 1000, 100) <= available_cores()


def test_worker_count_obeys_memory_and_the_user():
    assert worker_count(3, 1000, 10) <= 3
    assert worker_count(8, free_memory_bytes(), 10) == 1
    assert worker_count(8, 1000, 1) == 1
