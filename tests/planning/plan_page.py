"""Settings tables of documentation/plan_file.md: `python tests/planning/plan_page.py` writes them anew."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

from samunet.planning.methods import MethodConfig
from samunet.planning.methods.adapter3d import AdapterConfig
from samunet.planning.methods.autosam import AutoSamConfig
from samunet.planning.methods.cnn import CnnConfig
from samunet.planning.methods.desam import DesamConfig
from samunet.planning.methods.linear import LinearConfig
from samunet.planning.methods.student import StudentConfig
from samunet.planning.methods.unet import UNetConfig
from samunet.planning.sam_config import PaperHeadConfig, SamHeadConfig, SkipHeadConfig
from samunet.records import field_types

PAGE = Path(__file__).resolve().parents[2] / "documentation" / "plan_file.md"
BEGIN, END = "<!-- settings: written by tests/planning/plan_page.py -->", "<!-- end of settings -->"
SECTIONS = {
    MethodConfig: "Every method",
    SamHeadConfig: "`2d_linear`, `2d_cnn`, `2d_autosam`, `2d_desam`",
    PaperHeadConfig: "`2d_linear`, `2d_cnn`, `2d_autosam`",
    SkipHeadConfig: "`2d_cnn`, `2d_autosam`",
    LinearConfig: "`2d_linear`",
    CnnConfig: "`2d_cnn`",
    AutoSamConfig: "`2d_autosam`",
    DesamConfig: "`2d_desam`",
    AdapterConfig: "`3d_adapter`",
    StudentConfig: "`3d_student`",
    UNetConfig: "`2d_unet`, `3d_unet`",
}


def described_fields(record: type) -> dict[str, str]:
    """Fields that the class itself declares, with the string under each."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for node, after in zip(definition.body, [*definition.body[1:], None]):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = ast.unparse(after) if isinstance(after, ast.Expr) else ""
            found[node.target.id] = " ".join(str(ast.literal_eval(text)).split()) if text else ""
    return found


def tables() -> str:
    """All tables, markers included."""
    lines = [BEGIN]
    for record, title in SECTIONS.items():
        fields = described_fields(record)
        if not fields:
            continue
        defaults = {field.name: field.default for field in dataclasses.fields(record)}
        kinds = field_types(record)
        lines += ["", f"**{title}**", "", "| setting | default | values | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{name}` | {shown(defaults[name])} | {allowed(kinds[name])} | {text} |"
            for name, text in fields.items()
        ]
    return "\n".join([*lines, "", END])


def allowed(kind: Any) -> str:
    """A type in the reader's words, with the range of a number."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return f"{allowed(arguments[0])} {arguments[1].told()}"
    if origin is typing.Literal:
        return ", ".join(map(str, arguments))
    if origin in (types.UnionType, typing.Union):
        return allowed(next(part for part in arguments if part is not type(None)))
    if origin is tuple:
        return f"list of {allowed(arguments[0])}"
    return {int: "whole", float: "number", bool: "true, false", str: "text"}[kind]


def shown(value: object) -> str:
    if value is None:
        return "null"
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def with_tables(page: str) -> str:
    """The page with its settings section replaced."""
    before, rest = page.split(BEGIN)
    return before + tables() + rest.split(END)[1]


def main() -> int:
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
