"""Worker processes: order, errors, death."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from samunet.data.workers import (
    available_cores,
    core_quota,
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
    with pytest.raises(SamunetError, match="hippo_3") as caught:
        map_in_workers(die, [3], 2, "hippo_{}".format)
    assert 'if __name__ == "__main__":' in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "limit", "used", "key"),
    [
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
def test_cached_files_are_free_memory(folder, limit, used, key, monkeypatch):
    files = {limit: "1600000\n", used: "1590000\n", "memory.stat": f"anon 90000\n{key} 1400000\nother 7\n"}

    def read(self):
        if str(self.parent) != folder or self.name not in files:
            raise FileNotFoundError
        return files[self.name]

    monkeypatch.setattr(Path, "read_text", read)
    assert free_memory_bytes() == 1_410_000
    del files["memory.stat"]
    assert free_memory_bytes() == 10_000


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.cfs_quota_us": "300000\n", "cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_container_may_have_fewer_cores_than_it_sees(files, quota, monkeypatch):
    def read(self):
        if self.name not in files:
            raise FileNotFoundError
        return files[self.name]

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert core_quota() == quota
    assert available_cores() == (quota or 64)
    assert worker_count(None, 1000, 100) <= available_cores()


def test_worker_count_obeys_memory_and_the_user():
    assert worker_count(3, 1000, 10) <= 3
    assert worker_count(8, free_memory_bytes(), 10) == 1
    assert worker_count(8, 1000, 1) == 1
