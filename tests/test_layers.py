"""The shape of the code: imports only go down, files and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "samunet"
LONGEST_FILE = 400
LONGEST_FUNCTION = 60

EVERYWHERE = {"errors", "listing", "records", "whole_files", "workspace"}
MAY_IMPORT = {
    "data": set(),
    "networks": set(),
    "evaluation": {"data"},
    "planning": {"data", "networks"},
    "preprocessing": {"data", "networks", "planning"},
    "trainers": {"data", "networks", "planning", "preprocessing", "evaluation"},
    "inference": {"data", "networks", "planning", "preprocessing", "evaluation", "trainers"},
}
MAY_IMPORT["pipeline"] = {*MAY_IMPORT["inference"], "inference"}
MAY_IMPORT["cli"] = {*MAY_IMPORT["pipeline"], "pipeline"}

FILES = sorted(PACKAGE.rglob("*.py"))


def imported_parts(source: str, file: Path) -> Iterator[tuple[int, str]]:
    """(line, part of samunet) for every import, in functions and under TYPE_CHECKING too, relative ones too.

    `import_module("samunet.x")` and lazily resolved strings are outside its reach.
    """
    package = ("samunet", *file.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [base] if base != "samunet" else [f"samunet.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "samunet" and len(parts) > 1:
                yield node.lineno, parts[1]


def faults_of(source: str, file: Path) -> list[str]:
    parts = file.relative_to(PACKAGE).parts
    part = parts[0] if len(parts) > 1 else ""
    own = (
        {part, "__version__"} if part in MAY_IMPORT else set()
    )  # modules beside the folders use each other only
    allowed = EVERYWHERE | MAY_IMPORT.get(part, set()) | own
    return [
        f"{file.relative_to(ROOT)}:{line} imports samunet.{name}, which {part or 'a top module'} must not"
        for line, name in imported_parts(source, file)
        if name not in allowed
    ]


def test_imports_go_down_only() -> None:
    faults = [fault for file in FILES for fault in faults_of(file.read_text(encoding="utf-8"), file)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "line",
    [
        "from samunet.trainers.loop import fit",
        "import samunet.pipeline",
        "from samunet import inference",
        "def f():\n    from samunet.inference import predictor",
        "if TYPE_CHECKING:\n    from ..cli import common",
    ],
)
def test_a_planted_violation_is_caught(line: str) -> None:
    assert faults_of(line, PACKAGE / "planning" / "planted.py")


def test_every_folder_has_a_place_in_the_order() -> None:
    folders = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    assert folders == set(MAY_IMPORT)


def test_files_and_functions_stay_short() -> None:
    faults = []
    for file in FILES:
        source = file.read_text(encoding="utf-8")
        if source.count("\n") > LONGEST_FILE:
            faults.append(f"{file.relative_to(ROOT)} has {source.count(chr(10))} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    faults.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines")
    assert not faults, "\n".join(faults)


def test_light_folders_do_not_name_torch() -> None:
    """data, planning and evaluation work without torch (it is asked for by nobody's `import` there)."""
    faults = []
    for file in FILES:
        if file.relative_to(PACKAGE).parts[0] not in ("data", "planning", "evaluation"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] in ("torch", "torchvision") for name in names):
                faults.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not faults, "\n".join(faults)
