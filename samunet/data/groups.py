"""Groups of cases (patient, site, scanner) declared in dataset.json or groups.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samunet.errors import SamunetError

CSV_NAME = "groups.csv"


def read_groups(folder: Path, dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Case name -> group; empty when none are declared.

    `groups` in dataset.json maps a case to its group, or a group to a list of cases. Otherwise groups.csv
    is read: a table with the columns `case` and `group`; further columns are ignored.

    Raises:
        SamunetError: malformed, or both are there and disagree; names file, key or line.
    """
    json_file, csv_file = folder / "dataset.json", folder / CSV_NAME
    declared = _from_json(dataset_json["groups"], json_file) if "groups" in dataset_json else {}
    tabled = _from_csv(csv_file) if csv_file.is_file() else {}
    for case in sorted(declared.keys() & tabled.keys()):
        if declared[case] != tabled[case]:
            raise SamunetError(
                f"Case {case} belongs to group {declared[case]!r} by `groups` of {json_file} but to "
                f"{tabled[case]!r} by {csv_file}. Keep one of the two."
            )
    return {**tabled, **declared}


def _from_json(content: Any, file: Path) -> dict[str, str]:
    if not isinstance(content, Mapping):
        raise SamunetError(f"{file}: key `groups` must map each case to its group.")
    groups: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, list):
            pairs = [(str(case), str(key)) for case in value]
        elif isinstance(value, (str, int)) and not isinstance(value, bool):
            pairs = [(str(key), str(value))]
        else:
            raise SamunetError(
                f"{file}: `groups.{key}` must be a group's name or a list of cases: {value!r}."
            )
        for case, group in pairs:
            if groups.setdefault(case, group) != group:
                raise SamunetError(f"{file}: `groups` puts case {case} into {groups[case]!r} and {group!r}.")
    return groups


def _from_csv(file: Path) -> dict[str, str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SamunetError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    lines = text.splitlines()
    header = lines[0] if lines else ""
    delimiter = max(",;\t", key=header.count)
    table = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    if not {"case", "group"} <= set(table.fieldnames or ()):
        raise SamunetError(f"{file} needs the columns `case` and `group`; its first line is {header!r}.")
    groups: dict[str, str] = {}
    for row in table:
        case, group = (row["case"] or "").strip(), (row["group"] or "").strip()
        if not case or not group:
            raise SamunetError(f"{file}, line {table.line_num}: case or group is empty.")
        if groups.setdefault(case, group) != group:
            raise SamunetError(f"{file}: case {case} is in {groups[case]!r} and in {group!r}.")
    return groups
