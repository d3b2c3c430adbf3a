"""`-h` of every command is quick and small: it imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

HEAVY = ("numpy", "scipy", "torch", "SimpleITK", "matplotlib", "PIL", "tifffile", "blosc2", "rich")
COMMANDS = {e.name: e.value for e in entry_points(group="console_scripts") if e.value.startswith("samunet.")}

PROBE = """
import importlib, json, sys
module, _, function = {target!r}.partition(":")
sys.argv = [{name!r}, "-h"]
code = getattr(importlib.import_module(module), function)(["-h"])
print("@" + json.dumps([code, sorted({{m.split(".")[0] for m in sys.modules}})]))
"""


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_imports_nothing_heavy(name: str) -> None:
    source = PROBE.format(target=COMMANDS[name], name=name)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stdout.rsplit("@", 1)[1])
    assert code == 0
    assert f"usage: {name}" in done.stdout
    assert not set(HEAVY) & set(modules)


def test_all_commands_are_found() -> None:
    assert len(COMMANDS) >= 10


def test_importing_samunet_imports_nothing_heavy() -> None:
    source = f"import sys, samunet; sys.exit(any(m in sys.modules for m in {HEAVY!r}))"
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0
