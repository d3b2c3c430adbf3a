"""The shape of the code: imports only go down, files and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "samunet"
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
LONGEST_CLASS = 250
MOST_PARAMETERS = 6
MORE_PARAMETERS = {
    "inference/predictor.py Predictor.load": "called in notebooks, where a record would be in the way",
}
"""Functions with more, each with its reason."""

EVERYWHERE = {"errors", "file_locks", "listing", "progress", "records", "whole_files", "workspace"}
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


Function = ast.FunctionDef | ast.AsyncFunctionDef


def definitions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, Function | ast.ClassDef, bool]]:
    """(dotted name, definition, whether a class holds it) of every function and class, nested ones too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            name = f"{inside}{child.name}"
            yield name, child, isinstance(node, ast.ClassDef)
            yield from definitions(child, f"{name}.")
        else:
            yield from definitions(child, inside)


def parameters(function: Function, is_method: bool) -> int:
    """How many parameters a caller sees: without `self` and `cls`, `*args` and `**more` as one each."""
    told = function.args
    number = len(told.posonlyargs) + len(told.args) + len(told.kwonlyargs)
    number += (told.vararg is not None) + (told.kwarg is not None)
    is_static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
    return number - (is_method and not is_static)


def limit_faults(source: str, file: str, exceptions: Mapping[str, str] = MORE_PARAMETERS) -> list[str]:
    faults = []
    if source.count("\n") > LONGEST_FILE:
        faults.append(f"{file} has {source.count(chr(10))} lines")
    for name, node, is_method in definitions(ast.parse(source)):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        longest = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
        if length > longest:
            faults.append(f"{file}:{node.lineno} {name} has {length} lines")
        if isinstance(node, ast.ClassDef) or f"{file} {name}" in exceptions:
            continue
        number = parameters(node, is_method)
        if number > MOST_PARAMETERS:
            faults.append(f"{file}:{node.lineno} {name} has {number} parameters")
    return faults


def test_files_classes_functions_and_their_parameters_stay_few() -> None:
    faults = [
        fault
        for file in FILES
        for fault in limit_faults(file.read_text(encoding="utf-8"), file.relative_to(PACKAGE).as_posix())
    ]
    assert not faults, "\n".join(faults)


def test_every_exception_is_needed() -> None:
    for place in MORE_PARAMETERS:
        file = place.partition(" ")[0]
        told = limit_faults((PACKAGE / file).read_text(encoding="utf-8"), file, exceptions={})
        assert any(f"{place.partition(' ')[2]} has" in fault for fault in told), place


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("pass\n" * 401, "planted.py has 401 lines"),
        ("def f():\n" + "    pass\n" * 60, "planted.py:1 f has 61 lines"),
        ("class A:\n" + "    x = 1\n" * 250, "planted.py:1 A has 251 lines"),
        ("def f(a, b, c, d, e, /, g, *, h): ...\n", "planted.py:1 f has 7 parameters"),
        ("def f(a, b, c, d, e, *f, **g): ...\n", "planted.py:1 f has 7 parameters"),
        ("class A:\n    def f(self, a, b, c, d, e, f, g): ...\n", "planted.py:2 A.f has 7 parameters"),
        ("class A:\n    def f(self, a, b, c, d, e, f): ...\n", None),
        ("class A:\n    @staticmethod\n    def f(a, b, c, d, e, f, g): ...\n", "A.f has 7 parameters"),
    ],
)
def test_a_planted_excess_is_caught(source: str, told: str | None) -> None:
    faults = limit_faults(source, "planted.py")
    assert len(faults) == (told is not None)
    assert told is None or told in faults[0]


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
