"""Run a console command as a user would, and record its time, peak memory and words."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

LONGEST_PAUSE = 10.0
"""Seconds between two samples of a command's memory."""


@dataclass(frozen=True)
class Measured:
    """One finished command.

    `peak_memory_gb` is the largest sum of proportional set sizes (resident size on systems without them) over
    the command and its children, sampled every second (after ten minutes every ten), in units of 1e9 bytes;
    `peak_process_gb` the largest resident size of a single process.
    """

    command: str
    seconds: float
    peak_memory_gb: float
    peak_process_gb: float


class CommandFailed(RuntimeError):
    """A command ended with another code than 0; the message ends with its last words."""


def run_command(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> Measured:
    """Run `command` with its output in `log`.

    Raises:
        CommandFailed: exit code other than 0.
    """
    words = [str(word) for word in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with open(log, "w") as output:
        output.write(f"$ {shlex.join(words)}\n")
        output.flush()
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        watch = _MemoryWatch(process.pid)
        watch.start()
        code = process.wait()
        watch.stop()
    seconds = time.perf_counter() - start
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise CommandFailed(f"{shlex.join(words)}\nended with {code}; last words of {log}:\n{tail}")
    shown = shlex.join([Path(words[0]).name, *words[1:]])
    return Measured(shown, round(seconds, 1), round(watch.total_gb, 3), round(watch.largest_gb, 3))


def run_until(command: Sequence[str | Path], log: Path, product: Path, pause: float = 0.5) -> None:
    """Run `command` with its output in `log` until the file `product` is there, then end it and its children.

    Raises:
        CommandFailed: it ended without the file.
    """
    words = [str(word) for word in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as output:
        output.write(f"$ {shlex.join(words)}\n")
        output.flush()
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        while not product.exists() and process.poll() is None:
            time.sleep(pause)
        for member in family_of(process.pid):
            with suppress(psutil.Error):
                member.kill()  # a command that is asked to end may clear up, and take the file along
        process.wait()
    if not product.exists():
        raise CommandFailed(f"{shlex.join(words)}\nended without {product}; see {log}")


class _MemoryWatch(threading.Thread):
    """Samples the memory of a process and its children: once a second, later every ten."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.total_gb = 0.0
        self.largest_gb = 0.0
        self._pid = pid
        self._begun = time.perf_counter()
        self._ended = threading.Event()

    def run(self) -> None:
        pause = 0.1
        while not self._ended.wait(pause):
            # Asking takes longer the more memory there is: a command that runs for hours is asked less.
            pause = min(LONGEST_PAUSE, max(1.0, (time.perf_counter() - self._begun) / 60))
            total = largest = 0.0
            for process in family_of(self._pid):
                try:
                    memory = process.memory_full_info()
                except psutil.Error:
                    continue
                total += getattr(memory, "pss", memory.rss)
                largest = max(largest, memory.rss)
            self.total_gb = max(self.total_gb, total / 1e9)
            self.largest_gb = max(self.largest_gb, largest / 1e9)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def family_of(pid: int) -> list[psutil.Process]:
    """A process and its children; empty once it has ended."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


class ResultsFile:
    """A JSON file of finished steps by name, saved after each, so that an interrupted benchmark goes on.

    It may be carried to another machine: a recorded step whose product is not there is done again.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"header": dict(header), "steps": {}}
        if path.exists():
            self.content = json.loads(path.read_text())

    @property
    def steps(self) -> dict[str, Any]:
        return self.content["steps"]

    def require(self, setup: Mapping[str, Any], advice: str = "") -> None:
        """Results of another setup are not continued: their steps would pass for this one's.

        Args:
            setup: entries of the header that all steps depend on.

        Raises:
            SystemExit: the header says something else.
        """
        present = {key: self.content["header"].get(key) for key in setup}
        if present != setup:
            raise SystemExit(
                f"{self.path} was made with {present}, not {dict(setup)}. Take another --work{advice}."
            )

    def save(self, step: str, value: Any) -> None:
        """Record a finished step."""
        self.steps[step] = asdict(value) if isinstance(value, Measured) else value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n")
        temporary.replace(self.path)

    def measure(
        self,
        step: str,
        command: Sequence[str | Path],
        log: Path,
        environment: Mapping[str, str] | None = None,
        product: Path | None = None,
    ) -> None:
        """Run and record a command, unless it is recorded and what it makes (`product`) exists."""
        if step in self.steps and (product is None or product.exists()):
            print(f"have  {step}", flush=True)
            return
        print(f"start {step}", flush=True)
        measured = run_command(command, log, environment)
        self.save(step, measured)
        print(f"done  {step}: {measured.seconds:.0f} s, {measured.peak_memory_gb:.2f} GB", flush=True)


def machine_load() -> tuple[float, float, float] | None:
    """Mean number of running processes over 1, 5 and 15 minutes, where the system tells it."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def run_facts(folder: Path) -> dict[str, Any]:
    """What a training was by its own record: settings, schedule, weights, cache, versions; and the commit."""
    record = json.loads((folder / "run.json").read_text())
    kept = ("configuration", "phases", "weights", "cache", "precision", "hardware", "versions")
    return {**{name: record[name] for name in kept}, "commit": code_commit()}


def code_commit() -> str | None:
    """Commit of the repository that this file lies in, where git knows it."""
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> dict[str, Any]:
    """Processor, cores, memory, torch and the thread setting, for the head of a result file."""
    import torch

    from samunet.trainers.devices import processor_name

    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "date": time.strftime("%Y-%m-%d"),
    }
