"""What control groups (Linux) leave to this process: limits of a container, or of a job on a cluster."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of versions 2 and 1: files of a group's limit and use; and of its cached files in memory.stat."""
_CORES = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))


@dataclass(frozen=True)
class ControlGroups:
    """Where the system shows which groups this process is in, and what they may use.

    Attributes:
        root: where the folders of the groups are mounted.
        own: lists the groups of this process.
    """

    root: Path = Path("/sys/fs/cgroup")
    own: Path = Path("/proc/self/cgroup")

    def folders(self, controller: str) -> list[Path]:
        """Of each group that this process is in, from the innermost out; some need not be there.

        A container mostly sees its own group as the outermost, a job on a cluster lies somewhere below.

        Args:
            controller: name that version 1 mounts it by; version 2 has one tree for all.
        """
        inside = {"": PurePosixPath(), controller: PurePosixPath()}
        for names, path in self._own_groups():
            inside.update({name: path for name in names if name in inside})
        return [self.root / name / part for name, path in inside.items() for part in (path, *path.parents)]

    def _own_groups(self) -> Iterator[tuple[list[str], PurePosixPath]]:
        """(controllers, path below their mount); a path that leads out of the mount is its root."""
        try:
            text = self.own.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return
        for line in text.splitlines():
            _, _, told = line.partition(":")
            names, _, path = told.partition(":")
            below = PurePosixPath(path.lstrip("/"))
            yield names.split(","), PurePosixPath() if ".." in below.parts else below


HERE = ControlGroups()


def memory_limit(groups: ControlGroups = HERE) -> int | None:
    """The smallest memory, bytes, that a group of this process may take; None without a limit."""
    return min((limit for limit, _ in _memory_groups(groups)), default=None)


def memory_left(groups: ControlGroups = HERE) -> int | None:
    """The least memory, bytes, that is left of a group's; below 0 where it is exceeded, None without a limit.

    The system shows all of the machine's.
    """
    return min((limit - used for limit, used in _memory_groups(groups) if used is not None), default=None)


def _memory_groups(groups: ControlGroups) -> Iterator[tuple[int, int | None]]:
    """(limit, used) of the groups with a limit; cached files, dropped when memory is wanted, are not used."""
    for folder in groups.folders("memory"):
        for limit_file, used_file, cached in _MEMORY:
            limit, used = (_words(folder / name) for name in (limit_file, used_file))
            if len(limit) == 1 and limit[0].isdecimal():
                known = len(used) == 1 and used[0].isdecimal()
                yield int(limit[0]), max(0, int(used[0]) - _statistic(folder, cached)) if known else None


def _statistic(folder: Path, key: str) -> int:
    words = _words(folder / "memory.stat")
    return next((int(value) for name, value in zip(words[::2], words[1::2]) if name == key), 0)


def core_quota(groups: ControlGroups = HERE) -> int | None:
    """Cores that a container or a job may use at a time (rounded up), None without such a limit.

    The system shows all of the machine's, and threads for all of them stop each other once the share is used.
    """
    quotas = []
    for folder in groups.folders("cpu"):
        for files in _CORES:
            words = [word for file in files for word in _words(folder / file)]
            if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]) > 0:
                quotas.append(max(1, math.ceil(int(words[0]) / int(words[1]))))
    return min(quotas, default=None)


def _words(file: Path) -> list[str]:
    """Of a text file; none where it cannot be read."""
    with suppress(OSError):
        return file.read_text(encoding="ascii", errors="replace").split()
    return []
