"""From a fresh checkout to a running samunet: `python3 start.py demo` and `python3 start.py test`.

Makes a virtual environment, installs samunet there and runs the demo or the tests. Needs only Python's
standard library. pip's own settings (PIP_CONSTRAINT, PIP_INDEX_URL, pip.conf) are respected.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OLDEST = (3, 10)
NEEDED_GB = {"cpu": 2.5, "cuda": 9.0}


def main() -> int:
    """Install where needed, then run what was asked for."""
    arguments, rest = parse()
    if sys.version_info < OLDEST:
        return refuse("samunet needs Python 3.10 or newer; this is " + sys.version.split()[0] + ".")
    environment = arguments.venv.resolve()
    try:
        install(environment)
        if arguments.what == "install":
            return 0
        return run(environment, arguments.what, rest)
    except subprocess.CalledProcessError as failure:
        return refuse("this step failed: " + " ".join(map(str, failure.cmd)))
    except KeyboardInterrupt:
        return 130


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Our own arguments, and the words for the demo or pytest."""
    parser = argparse.ArgumentParser(prog="start.py", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "what", choices=("demo", "test", "install"), help="further words go to the demo or to pytest"
    )
    parser.add_argument(
        "--venv",
        type=Path,
        default=HERE / ".venv",
        help="virtual environment (default .venv beside this file)",
    )
    return parser.parse_known_args()


def refuse(message: str) -> int:
    """Print one message and return the exit code of a mistake."""
    print("start.py: " + message, file=sys.stderr)
    return 2


def program(environment: Path, name: str) -> Path:
    """Path of a program of the virtual environment, on Windows too."""
    windows = os.name == "nt"
    return environment / ("Scripts" if windows else "bin") / (name + ".exe" if windows else name)


def install(environment: Path) -> None:
    """Create the environment and install samunet, unless this very version of its metadata is there."""
    metadata = (HERE / "pyproject.toml").read_bytes() + os.environ.get("PIP_CONSTRAINT", "").encode()
    stamp = environment / "samunet_installed.txt"
    wanted = hashlib.sha256(metadata + str(HERE).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    announce(environment)
    if not program(environment, "python").is_file():
        make_environment(environment)
    python = str(program(environment, "python"))
    subprocess.run([python, "-m", "pip", "install", "--editable", str(HERE) + "[dev]"], check=True)
    stamp.write_text(wanted)


def make_environment(environment: Path) -> None:
    """Create the virtual environment; what could not be finished is removed, or it would pass for whole."""
    was_there = environment.exists()
    try:
        if subprocess.run([sys.executable, "-m", "venv", str(environment)]).returncode == 0:
            return
        sys.exit(
            refuse(
                f"{environment} could not be made, see above. On Debian and Ubuntu this needs a package of "
                "its own: sudo apt install python3-venv"
            )
        )
    except BaseException:  # Ctrl-C too
        if not was_there:
            shutil.rmtree(environment, ignore_errors=True)
        raise


def announce(environment: Path) -> None:
    """Say where things go and how much disk they need."""
    build = "cpu" if sys.platform == "darwin" or os.name == "nt" else "cuda"
    free = shutil.disk_usage(existing(environment)).free / 1e9
    print(
        f"Installing into {environment}: up to {NEEDED_GB[build]:g} GB with the PyTorch that pip takes here "
        f"(about {NEEDED_GB['cpu']:g} GB with its CPU build); {free:.1f} GB are free. This takes minutes."
    )
    if build == "cuda" and shutil.which("nvidia-smi") is None:
        print(
            "No NVIDIA GPU is seen here, so PyTorch's smaller CPU build is enough: set PIP_EXTRA_INDEX_URL "
            "to the CPU index that PyTorch's installation page names, and start again."
        )
    if free < NEEDED_GB["cpu"]:
        print("Warning: this disk is likely too small.")


def existing(folder: Path) -> Path:
    """The folder or its nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def run(environment: Path, what: str, rest: list[str]) -> int:
    """Run the demo or the tests with the environment's own programs."""
    if what == "demo":
        return subprocess.run([str(program(environment, "samunet_demo")), *rest]).returncode
    command = [str(program(environment, "python")), "-m", "pytest", *rest]
    return subprocess.run(command, cwd=str(HERE)).returncode


if __name__ == "__main__":
    sys.exit(main())
