"""Worker processes: order, errors, death."""

from __future__ import annotations

import os

import pytest

from samunet.data.workers import free_memory_bytes, map_in_workers, worker_count
from samunet.errors import SamunetError


def double(value: int) -> int:
    return 2 * value


def die(value: int) -> int:
    os._exit(9)


def fail(value: int) -> int:
    raise SamunetError(f"case {value} is broken")


@pytest.mark.parametrize("workers", [1, 2])
def test_order_and_progress(workers):
    seen = []
    found = map_in_workers(double, range(5), workers, str, lambda done, total: seen.append((done, total)))
    assert found == [0, 2, 4, 6, 8]
    assert seen[-1] == (5, 5)


def test_errors_of_a_task_come_through():
    with pytest.raises(SamunetError, match=r"case \d is broken"):
        map_in_workers(fail, [0, 1], 2, str)


def test_a_worker_that_dies_names_its_cases():
    with pytest.raises(SamunetError, match="hippo_3"):
        map_in_workers(die, [3], 2, "hippo_{}".format)


def test_worker_count_obeys_memory_and_the_user():
    assert worker_count(3, 1000, 10) <= 3
    assert worker_count(8, free_memory_bytes(), 10) == 1
    assert worker_count(8, 1000, 1) == 1
