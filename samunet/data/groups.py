"""Where cases come from: groups (sites, scanners) and patients, declared in dataset.json or groups.csv."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.workspace import DATASET_FILE

CSV_NAME = "groups.csv"
KINDS = ("group", "patient")
"""Columns of the table; in the plural, keys of dataset.json."""

Unit = Literal["case", "group", "patient"]


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where cases come from, by case name; empty where nothing is declared.

    Attributes:
        groups: site, scanner or patient.
        patients: whose cases these are; then groups are no patients.
    """

    groups: Mapping[str, str] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)

    @property
    def units(self) -> Mapping[str, str]:
        """What statistics draw as one: the patient, or the group where no patients are declared, since it may
        be one. A case that is not in it stands for itself."""
        return self.patients or self.groups

    @property
    def unit(self) -> Unit:
        """What `units` are."""
        return "patient" if self.patients else "group" if self.groups else "case"

    @property
    def without_groups(self) -> Origins:
        """As if no groups were declared, which are sites or scanners."""
        return Origins(patients=self.patients)

    def merged(self, other: Origins) -> Origins:
        """Both, the other one's word above this one's."""
        return Origins(groups={**self.groups, **other.groups}, patients={**self.patients, **other.patients})

    def of_cases(self, names: Iterable[str]) -> Origins:
        """Of these cases alone."""
        kept = set(names)
        return Origins(
            groups={case: group for case, group in self.groups.items() if case in kept},
            patients={case: patient for case, patient in self.patients.items() if case in kept},
        )


def read_origins(folder: Path, dataset_json: Mapping[str, Any]) -> Origins:
    """What is declared of where cases come from.

    `groups` and `patients` in dataset.json map a case to its group or patient, or a group or patient to a
    list of cases. groups.csv is a table with the column `case` and `group`, `patient` or both; others in it
    are ignored.

    Raises:
        SamunetError: malformed, or both are there and disagree; names file, key or line.
    """
    json_file, csv_file = folder / DATASET_FILE, folder / CSV_NAME
    tabled = _from_csv(csv_file) if csv_file.is_file() else {}
    found: dict[str, dict[str, str]] = {}
    for kind in KINDS:
        key = f"{kind}s"
        declared = _from_json(dataset_json[key], key, json_file) if key in dataset_json else {}
        table = tabled.get(kind, {})
        for case in sorted(declared.keys() & table.keys()):
            if declared[case] != table[case]:
                raise SamunetError(
                    f"Case {case} belongs to {kind} {declared[case]!r} by `{key}` of {json_file} but to "
                    f"{table[case]!r} by {csv_file}. Keep one of the two."
                )
        found[key] = {**table, **declared}
    return Origins(**found)


def origins_of_cases(origins: Origins, names: Iterable[str], ending: str, folder: Path) -> Origins:
    """What is declared of a dataset's cases; a table may list others too.

    Raises:
        SamunetError: a name that is a case's file and not its name.
    """
    known = set(names)
    for name in sorted({*origins.groups, *origins.patients} - known):
        bare = name.removesuffix(ending)
        meant = next((part for part in (bare, bare[:-5]) if part != name and part in known), None)
        if meant is not None:
            raise SamunetError(
                f"{folder}: {CSV_NAME} or dataset.json declares where {name} comes from. That is a file; "
                f"a case is named without channel and ending: {meant}."
            )
    return origins.of_cases(known)


UnitName = tuple[bool, str]
"""A patient, say, whose cases belong together: whether it is declared, and its name, else the case's."""


def units_in_order(names: Sequence[str], origins: Origins) -> tuple[UnitName, ...]:
    """The units of these cases, as `unit_numbers` counts them."""
    return tuple(dict.fromkeys(_unit_names(names, origins)))


def unit_numbers(names: Sequence[str], origins: Origins) -> np.ndarray:
    """(N,) number of the unit of each case, 0 to U - 1."""
    numbers = {unit: number for number, unit in enumerate(units_in_order(names, origins))}
    return np.array([numbers[unit] for unit in _unit_names(names, origins)], int)


def _unit_names(names: Sequence[str], origins: Origins) -> list[UnitName]:
    units = origins.units
    return [(name in units, units.get(name, name)) for name in names]


def of_known_units(units: Mapping[str, str], train: Iterable[str], names: Iterable[str]) -> set[str]:
    """The cases among `names` whose unit (`Origins.units`: patient, say) has cases in training: a network
    that knows a patient says nothing about a new one."""
    known = {units[name] for name in train if name in units}
    return {name for name in names if units.get(name) in known}


def undeclared(groups: Mapping[str, str], names: Iterable[str]) -> str:
    """`3 cases have no group: a, b, c`; empty where all or none have one."""
    lacking = sorted(name for name in names if name not in groups)
    if not groups or not lacking:
        return ""
    return f"{len(lacking)} case{'s have' if len(lacking) > 1 else ' has'} no group: {listed(lacking)}"


def unmatched(origins: Origins, declared: Origins, names: Iterable[str]) -> str:
    """`2 names that are no cases (g1, g2), and none of the cases (a, b)`; empty where a case is declared, or
    nothing is."""
    others = sorted({*declared.groups, *declared.patients})
    if not others or origins.groups or origins.patients:
        return ""
    foreign = f"{len(others)} name{'s that are no cases' if len(others) > 1 else ' that is no case'}"
    return f"{foreign} ({listed(others)}), and none of the cases ({listed(sorted(names))})"


def _from_json(content: Any, key: str, file: Path) -> dict[str, str]:
    kind = key.removesuffix("s")
    if not isinstance(content, Mapping):
        raise SamunetError(f"{file}: key `{key}` must map each case to its {kind}.")
    found: dict[str, str] = {}
    for name, value in content.items():
        if isinstance(value, list):
            pairs = [(str(case).strip(), str(name).strip()) for case in value]
        elif isinstance(value, (str, int)) and not isinstance(value, bool):
            pairs = [(str(name).strip(), str(value).strip())]
        else:
            raise SamunetError(
                f"{file}: `{key}.{name}` must be a {kind}'s name or a list of cases: {value!r}."
            )
        for case, one in pairs:
            if not case or not one:
                raise SamunetError(f"{file}: `{key}.{name}` has an empty name of a case or {kind}.")
            if found.setdefault(case, one) != one:
                raise SamunetError(f"{file}: `{key}` puts case {case} into {found[case]!r} and {one!r}.")
    return found


def _from_csv(file: Path) -> dict[str, dict[str, str]]:
    """Column -> case -> value."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SamunetError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    lines = text.splitlines()
    header = lines[0] if lines else ""
    delimiter = max(",;\t", key=header.count)
    table = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    columns = [str(name).strip().lower() for name in table.fieldnames or ()]
    table.fieldnames = columns
    kinds = [kind for kind in KINDS if kind in columns]
    if "case" not in columns or not kinds:
        raise SamunetError(
            f"{file} needs the column `case`, and `group`, `patient` or both; its first line is {header!r}."
        )
    found: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
    for row in table:
        case = (row["case"] or "").strip()
        for kind in kinds:
            value = (row[kind] or "").strip()
            if not case or not value:
                raise SamunetError(f"{file}, line {table.line_num}: case or {kind} is empty.")
            if found[kind].setdefault(case, value) != value:
                raise SamunetError(f"{file}: case {case} is in {found[kind][case]!r} and in {value!r}.")
    return found
