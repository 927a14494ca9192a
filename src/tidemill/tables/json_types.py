"""The type of a column of JSON values: merged over all of them, so that each value fits without loss.

A kind is a name, `[kind]` for a list, or a dict of kinds for an object. Values of several kinds become JSON text.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
import pyarrow as pa

from tidemill.tables import RowError

Kind = str | list["Kind"] | dict[str, "Kind"]

NULL, BOOL, INT, FLOAT, TEXT, JSON = "null", "bool", "int", "float", "text", "json"
FIELDS_MAX: Final = 1_000
"""Fields of an object; one with more becomes JSON text."""
LEVELS_MAX: Final = 16
INT_MAX: Final = (1 << 63) - 1
EXACT_MAX: Final = 1 << 53
"""Integers up to this are exact as floats."""
WIDE: Final = "wide"
"""Integers that a float does not hold exactly."""
_TYPES: Final[dict[str, pa.DataType]] = {
    NULL: pa.string(),
    BOOL: pa.bool_(),
    INT: pa.int64(),
    WIDE: pa.int64(),
    FLOAT: pa.float64(),
    TEXT: pa.string(),
    JSON: pa.string(),
}


def kind_of(value: Any, levels: int = LEVELS_MAX) -> Kind:  # noqa: PLR0911 - one for each kind
    """The kind of a value of JSON."""
    match value:
        case None:
            return NULL
        case bool():
            return BOOL
        case int():
            return JSON if abs(value) > INT_MAX else INT if abs(value) <= EXACT_MAX else WIDE
        case float():
            return FLOAT
        case str():
            return TEXT
        case list() if levels:
            return [merged(*(kind_of(each, levels - 1) for each in value))]
        case dict() if levels and 0 < len(value) <= FIELDS_MAX:
            return {name: kind_of(each, levels - 1) for name, each in value.items()}
    return JSON


def merged(*kinds: Kind) -> Kind:
    """The kind of values of all these kinds."""
    return functools.reduce(_merged, kinds or [NULL])


def _merged(one: Kind, other: Kind) -> Kind:
    if NULL in (one, other):
        return one if other == NULL else other
    if isinstance(one, list) and isinstance(other, list):
        return [_merged(one[0], other[0])]
    if isinstance(one, dict) and isinstance(other, dict):
        names = one | other
        if len(names) > FIELDS_MAX:
            return JSON
        return {name: _merged(one.get(name, NULL), other.get(name, NULL)) for name in names}
    pair = {each for each in (one, other) if isinstance(each, str)}
    return one if one == other else FLOAT if pair == {INT, FLOAT} else WIDE if pair == {INT, WIDE} else JSON


def type_of(kind: Kind) -> pa.DataType:
    """The Arrow type of a kind."""
    if isinstance(kind, str):
        return _TYPES[kind]
    if isinstance(kind, list):
        return pa.list_(type_of(kind[0]))
    return pa.struct([pa.field(name, type_of(each)) for name, each in kind.items()])


def fitted(value: Any, kind: Kind) -> Any:
    """A value of this kind, or of one merged into it, as Arrow takes it.

    Raises:
        RowError: A column of this kind cannot hold it exactly.
    """
    if value is None:
        return None
    if kind == JSON:
        return orjson.dumps(value).decode()
    if isinstance(kind, str) and kind in {FLOAT, INT, WIDE}:
        return _number(value, is_whole=kind != FLOAT)
    if isinstance(kind, list):
        return [fitted(each, kind[0]) for each in value]
    if isinstance(kind, dict):
        # Arrow takes a missing field as null; all of them could be hundreds of times as large as the value.
        return {name: fitted(value[name], each) for name, each in kind.items() if name in value}
    return value


def _number(value: Any, *, is_whole: bool) -> Any:
    if is_whole and not -INT_MAX - 1 <= value <= INT_MAX:
        raise RowError(f"{value} does not fit into 64 bits")
    found = int(value) if is_whole else float(value)
    if found != value:
        raise RowError(f"{value} is not exact as a float")
    return found


def schema_of(kinds: Mapping[str, Kind]) -> pa.Schema:
    """The columns of rows with values of these kinds."""
    return pa.schema([pa.field(name, type_of(kind)) for name, kind in kinds.items()])


class FieldNames:
    """The names of the fields of objects, at any depth, merged over values of any kinds.

    Rows keep their own values with it: a value of another kind in one row changes no other row. Objects with more
    than `FIELDS_MAX` names stay as they are, with all that they contain, in whatever order they come.
    """

    def __init__(self) -> None:
        self._fields: dict[str, FieldNames] = {}
        self._items: FieldNames | None = None
        self._is_full = False

    def add(self, value: Any, levels: int = LEVELS_MAX) -> None:
        """Add the names of a value."""
        if not levels:
            return
        match value:
            case dict() if not self._is_full:
                if len(self._fields) + len(value.keys() - self._fields.keys()) > FIELDS_MAX:
                    self._fields, self._is_full = {}, True
                    return
                for name, each in value.items():
                    fields = self._fields.setdefault(name, _NO_FIELDS)
                    if isinstance(each, dict | list):
                        if fields is _NO_FIELDS:
                            fields = self._fields[name] = FieldNames()
                        fields.add(each, levels - 1)
            case list():
                self._items = self._items or FieldNames()
                for each in value:
                    self._items.add(each, levels - 1)

    def columns(self, row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """These columns of a row, completed; one that it lacks is null."""
        return {name: self._fields.get(name, _NO_FIELDS).completed(row.get(name)) for name in names}

    def completed(self, value: Any) -> Any:
        """The value, in which each object has all the names; those that it lacks are null."""
        match value:
            case dict() if self._fields:
                found = dict.fromkeys(self._fields)
                return found | {name: self._fields[name].completed(each) for name, each in value.items()}
            case list() if self._items is not None:
                return list(map(self._items.completed, value))
        return value


_NO_FIELDS: Final = FieldNames()
"""Of values that are neither objects nor lists."""
