"""documentation/plan_file.md against the dataclasses: every key, its section, its default."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import plan_page

from samunet.planning.plan import Budget, Configuration, DataConfiguration, Plan

PAGE = plan_page.PAGE.read_text(encoding="utf-8")
SECTIONS = {
    "The plan": Plan,
    "Budget": Budget,
    "Data configurations": DataConfiguration,
    "Configurations": Configuration,
}


def rows(title: str) -> dict[str, str | None]:
    """Key -> default as written (None without a default column) of the first table of a section."""
    section = next(s for s in PAGE.split("\n## ")[1:] if s.startswith(title))
    lines = [line for line in section.splitlines() if line.startswith("|")]
    has_default = "default" in lines[0]
    found: dict[str, str | None] = {}
    for line in lines[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for key in re.findall(r"`(\w+)`", cells[0]):
            found[key] = cells[1].strip("`") if has_default else None
    return found


@pytest.mark.parametrize("title", SECTIONS)
def test_keys_and_defaults(title):
    fields = {field.name: field for field in dataclasses.fields(SECTIONS[title])}
    written = rows(title)
    assert written.keys() == fields.keys()
    for name, default in written.items():
        field = fields[name]
        if default is None:
            assert field.default is dataclasses.MISSING, name
        elif field.default_factory is not dataclasses.MISSING:
            assert json.loads(default) == field.default_factory()
        elif field.default is dataclasses.MISSING:
            assert default == "", name
        else:
            text = field.default if isinstance(field.default, str) else json.dumps(field.default)
            assert default in (text, json.dumps(list(field.default)) if field.default == () else text), name


def test_settings_tables_are_up_to_date():
    """After a change of a Config: run plan_page.py."""
    assert plan_page.with_tables(PAGE) == PAGE
