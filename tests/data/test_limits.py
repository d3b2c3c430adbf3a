"""What a container or a job on a cluster may use, from made-up trees of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from samunet.data.limits import ControlGroups, core_quota, memory_left, memory_limit

GIB = 2**30
LIMIT, USED = str(2 * GIB), str(GIB // 2)
JOB = "system.slice/slurmstepd.scope/job_1"
CACHED = "anon 90000\n{} 1000000\nother 7\n"


def tree(root: Path, files: dict[str, str], own: str | None = None) -> ControlGroups:
    """Control groups with these files below their mount; `own` is what /proc/self/cgroup says."""
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if own is not None:
        (root / "own").write_text(own)
    return ControlGroups(root=root / "cgroup", own=root / "own")


def second(folder: str, limit: str, used: str = "0") -> dict[str, str]:
    """Memory of a group as version 2 tells it."""
    names = ("memory.max", "memory.current")
    return {str(Path(folder, name)): f"{value}\n" for name, value in zip(names, (limit, used))}


def first(folder: str, limit: str, used: str = "0") -> dict[str, str]:
    """Memory of a group as version 1 tells it."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    return {str(Path("memory", folder, name)): f"{value}\n" for name, value in zip(names, (limit, used))}


@pytest.mark.parametrize(
    ("files", "own"),
    [
        (second(JOB, LIMIT, USED), f"0::/{JOB}/step_0/task_0\n"),
        ({**second(JOB, LIMIT, USED), **second(f"{JOB}/step_0", "max")}, f"0::/{JOB}/step_0\n"),
        (first("slurm/uid_7/job_1", LIMIT, USED), "4:memory:/slurm/uid_7/job_1/step_0\n0::/\n"),
        (first("", LIMIT, USED), "4:memory:/docker/3f0a\n"),  # the container's own is mounted
        (second("", LIMIT, USED), "0::/\n"),
        (second("", LIMIT, USED), "0::/../../outside\n"),
        (second("", LIMIT, USED), None),
    ],
)
def test_memory_of_a_job_or_container(tmp_path: Path, files: dict[str, str], own: str | None) -> None:
    groups = tree(tmp_path, files, own)
    assert memory_limit(groups) == 2 * GIB
    assert memory_left(groups) == 2 * GIB - GIB // 2


def test_the_smallest_limit_of_all_levels_counts(tmp_path: Path) -> None:
    """What is left may be decided by a larger one, which others use too."""
    files = {
        **second("a", str(8 * GIB), str(7 * GIB)),
        **second("a/b", "max"),
        **second("a/b/c", str(4 * GIB), str(GIB)),
        **second("a/other", str(GIB)),
    }
    groups = tree(tmp_path, files, "0::/a/b/c\n")
    assert memory_limit(groups) == 4 * GIB
    assert memory_left(groups) == GIB


@pytest.mark.parametrize(
    ("files", "key"),
    [
        (second("a", "1600000", "1590000"), "inactive_file"),
        (first("a", "1600000", "1590000"), "total_inactive_file"),
    ],
)
def test_cached_files_are_free_memory(tmp_path: Path, files: dict[str, str], key: str) -> None:
    own = "3:memory:/a\n0::/a\n"
    groups = tree(tmp_path, files, own)
    assert memory_left(groups) == 10_000
    statistics = str(Path(next(iter(files))).with_name("memory.stat"))
    assert memory_left(tree(tmp_path, {statistics: CACHED.format(key)}, own)) == 1_010_000


@pytest.mark.parametrize("files", [{}, second("a", "max"), second("a", "half"), {"a/memory.max": "1000\n"}])
def test_no_limit_of_memory(tmp_path: Path, files: dict[str, str]) -> None:
    """Nothing is left to say where a group does not tell what it uses."""
    groups = tree(tmp_path, files, "0::/a\n")
    assert memory_left(groups) is None
    assert memory_limit(groups) in (None, 1000)


@pytest.mark.parametrize(
    ("files", "own", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 2),
        ({"cpu.max": "50000 100000\n"}, None, 1),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({f"{JOB}/cpu.max": "400000 100000\n"}, f"0::/{JOB}/step_0\n", 4),
        ({"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "800000 100000\n"}, "0::/a/b\n", 2),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "0::/\n", 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "0::/\n", None),
        (
            {"cpu/job/cpu.cfs_quota_us": "300000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            "5:cpu,cpuacct:/job/task\n",
            3,
        ),
        ({"other/cpu.max": "100000 100000\n"}, "a line of another kind\n0::/a\n", None),
        ({}, None, None),
    ],
)
def test_cores_of_a_job_or_container(
    tmp_path: Path, files: dict[str, str], own: str | None, quota: int | None
) -> None:
    assert core_quota(tree(tmp_path, files, own)) == quota
