"""Frozen dataclass <-> JSON, strict: unknown and missing keys are refused with their path."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from samunet.errors import SamunetError
from samunet.whole_files import write_text

T = TypeVar("T")
BITS = 64
LARGEST_INTEGER = 2**BITS - 1
"""Larger ones fit into no array and no float, and nothing of ours counts so far."""


class RecordError(SamunetError):
    """A JSON value that does not fit its record; the message starts with the path of the key."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Range of a number, written beside its type: `Annotated[int, Bounds(1)]`; both ends belong to it.

    Attributes:
        least / most: the ends.
        above / below: ends that do not belong to it.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def admits(self, value: float) -> bool:
        return math.isfinite(value) and self.least <= value <= self.most and self.above < value < self.below

    def told(self) -> str:
        """`at least 1`, `at least 0 and below 1`, `above 0`."""
        parts = [
            f"at least {self.least:g}" if self.least > -math.inf else "",
            f"above {self.above:g}" if self.above > -math.inf else "",
            f"at most {self.most:g}" if self.most < math.inf else "",
            f"below {self.below:g}" if self.below < math.inf else "",
        ]
        return " and ".join(filter(None, parts)) or "finite"


Count = typing.Annotated[int, Bounds(1)]
Natural = typing.Annotated[int, Bounds(0)]
Positive = typing.Annotated[float, Bounds(above=0)]
NotNegative = typing.Annotated[float, Bounds(0)]
Share = typing.Annotated[float, Bounds(0, 1)]
"""Numbers in their usual ranges; infinity and NaN are in none."""


def to_data(value: Any) -> Any:
    """Turn a record (nested dataclasses, tuples, dicts) into plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_data(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):  # numpy scalars
        return value.item()
    return value


def from_data(cls: type[T], data: Any, where: str = "$") -> T:
    """Build a record of type `cls` from JSON data.

    Args:
        cls: the record.
        data: as `to_data` gives it.
        where: what messages call the record; keys follow a dot, or follow directly where it ends in a space.

    Raises:
        RecordError: a key is unknown or missing, or a value has the wrong type; names the path.
    """
    return typing.cast(T, _convert(cls, data, where))


def _convert(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, data, where)
    if origin is typing.Annotated:
        return _within(args[1:], _convert(args[0], data, where), where)
    if origin is typing.Literal:
        if data not in args:
            raise RecordError(f"{where}: {data!r} is not one of {', '.join(map(repr, args))}.")
        return data
    if origin is tuple:
        return _convert_tuple(args, data, where)
    if origin is list:
        _expect(isinstance(data, list), where, "a list", data)
        return [_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(data)]
    if origin is dict:
        _expect(isinstance(data, dict), where, "an object", data)
        return {key: _convert(args[1], item, _inside(where, key)) for key, item in data.items()}
    if dataclasses.is_dataclass(kind):
        return _convert_record(kind, data, where)
    return _convert_scalar(kind, data, where)


def _within(notes: Sequence[Any], value: Any, where: str) -> Any:
    for bounds in (note for note in notes if isinstance(note, Bounds)):
        if not bounds.admits(value):
            told = bounds.told() if math.isfinite(value) else "a finite number"
            raise RecordError(f"{where}: {value} must be {told}.")
    return value


def _inside(where: str, key: str) -> str:
    """The place of `key` of a record at `where`: `plan.json.folds`, or `--set folds` of an option."""
    return f"{where}{key}" if where.endswith(" ") else f"{where}.{key}"


def _convert_union(args: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in args:
        return None
    error: RecordError | None = None
    for option in args:
        if option is type(None):
            continue
        try:
            return _convert(option, data, where)
        except RecordError as problem:
            error = error or problem
    assert error is not None
    raise error


def _convert_tuple(args: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(data, (list, tuple)), where, "a list such as [2, 5, 8]", data)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    _expect(len(data) == len(args), where, f"{len(args)} values", data)
    return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(args, data)))


def _convert_record(kind: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), where, "an object", data)
    hints = field_types(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    unknown = sorted(set(data) - set(fields))
    required = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(data))
    if unknown or missing:
        parts = [f"unknown keys {unknown}"] * bool(unknown) + [f"missing keys {missing}"] * bool(missing)
        raise RecordError(f"{where.rstrip()}: {' and '.join(parts)}; known keys are {sorted(fields)}.")
    return kind(**{key: _convert(hints[key], item, _inside(where, key)) for key, item in data.items()})


def check_fields(record: Any) -> None:
    """Refuse fields of the wrong type or out of the range beside it, for records that are made in Python.

    Raises:
        RecordError: names the field.
    """
    kinds: Mapping[str, Any] = field_types(record.__class__)
    for name, kind in kinds.items():
        _convert(kind, getattr(record, name), name)


@functools.cache
def field_types(kind: Any) -> dict[str, Any]:
    """Types of a record's fields; one that a subclass declares anew with the plain type keeps its bounds."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for base in filter(dataclasses.is_dataclass, kind.__mro__[1:]):
        for name, hint in typing.get_type_hints(base, include_extras=True).items():
            if typing.get_origin(hint) is typing.Annotated and hints[name] == hint.__origin__:
                hints[name] = hint
    return hints


def _convert_scalar(kind: Any, data: Any, where: str) -> Any:
    if isinstance(data, int) and abs(data) > LARGEST_INTEGER:
        raise RecordError(
            f"{where}: found a number of {data.bit_length()} bits, more than {BITS} are too many."
        )
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if kind is Path and isinstance(data, str):
        return Path(data)
    matches = isinstance(data, kind) and not (kind is int and isinstance(data, bool))
    _expect(matches, where, kind.__name__, data)
    return data


def _expect(condition: bool, where: str, wanted: str, data: Any) -> None:
    if not condition:
        raise RecordError(f"{where}: expected {wanted}, found {type(data).__name__} {str(data)[:60]!r}.")


def content_hash(value: Any) -> str:
    """Sixteen hexadecimal digits that identify the content of a record or of plain JSON data."""
    text = json.dumps(to_data(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_files(paths: Sequence[Path]) -> str:
    """Sixteen hexadecimal digits over the bytes of the files, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any, *, lasting: bool = False) -> None:
    """Write a record or plain data as indented JSON, atomically; see `write_text`."""
    write_text(path, json.dumps(to_data(value), indent=1) + "\n", lasting=lasting)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        SamunetError: the file is absent or is not JSON, or an object in it has a key twice.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key in found if [name for name, _ in pairs].count(key) > 1)
            raise SamunetError(f"{path}: the key {twice!r} stands twice in one object. Keep one of them.")
        return found

    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=distinct)
    except SamunetError:
        raise
    except FileNotFoundError as error:
        raise SamunetError(f"There is no file {path}.") from error
    except (ValueError, RecursionError) as error:  # also bytes that are no text, and numbers without end
        raise SamunetError(f"{path} is not valid JSON: {error}.") from error


def read_record(cls: type[T], path: Path) -> T:
    """Read a JSON file into a record of type `cls`; errors name the file and the key's path."""
    data = read_json(path)
    try:
        return from_data(cls, data)
    except RecordError as error:
        raise SamunetError(f"{path}: {error}") from error
