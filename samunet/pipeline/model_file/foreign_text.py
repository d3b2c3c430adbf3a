"""Text that came from anyone: what of it may reach a screen, and how deep JSON may be nested."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samunet.errors import SamunetError
from samunet.records import read_json

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""In a name or a licence none of these has a place: control characters, what turns the direction of writing
around, halves of surrogate pairs, which cannot be written."""
STEERING = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x90\x9b\x9d\ud800-\udfff]")
"""What a terminal may obey or not show. Line ends are not, nor are letters that a wrong decoding left at 0x80
to 0x9f."""
DEEPEST = 50
"""Lists and objects within each other; a plan has some ten."""


def read_foreign_json(content: bytes, where: str) -> Any:
    """The JSON of a file that is not unpacked yet; everything in it is a name, so no line ends either.

    Raises:
        SamunetError: it is none, or not to be shown.
    """
    try:
        data = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as fault:
        raise SamunetError(f"{where} is not valid JSON: {fault}.") from fault
    _check_data(data, where, CONTROL)
    return data


def check_foreign_file(path: Path, name: str) -> None:
    """Refuse an unpacked JSON or Markdown file whose text should reach no screen.

    Args:
        name: of the file in the model.

    Raises:
        SamunetError: it holds control characters, is no text, or is nested too deeply.
    """
    if path.suffix == ".json":
        names_only = len(Path(name).parts) > 1  # fold.json; others hold descriptions
        _check_data(read_json(path), name, CONTROL if names_only else STEERING)
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        raise SamunetError(f"{name} is no text: {fault}.") from fault
    _check_text(text, name, STEERING)


def _check_data(data: Any, where: str, forbidden: re.Pattern[str]) -> None:
    """Without recursion, which something that is nested deeply enough would exhaust."""
    level: list[Any] = [data]
    for _ in range(DEEPEST):
        for text in _texts(level):
            _check_text(text, where, forbidden)
        level = [inner for value in level for inner in _within(value)]
        if not level:
            return
    raise SamunetError(f"{where} is nested more than {DEEPEST} deep, which no file of samunet is.")


def _texts(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from value


def _within(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _check_text(text: str, where: str, forbidden: re.Pattern[str]) -> None:
    if forbidden.search(text):
        raise SamunetError(f"{where} holds control characters, which no screen should see.")
