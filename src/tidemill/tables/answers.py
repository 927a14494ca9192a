"""Answers as columns: the kinds of a JSON Schema, and whether it keeps to strict mode."""

from collections.abc import Mapping
from typing import Any, Final

from tidemill.schemas.json_schema import referred
from tidemill.tables.json_types import BOOL, FLOAT, INT, JSON, LEVELS_MAX, NULL, TEXT, Kind, kind_of, merged

_PLAIN: Final[dict[str, Kind]] = {"string": TEXT, "integer": INT, "number": FLOAT, "boolean": BOOL}
_NULL: Final = "null"
PARTS_MAX: Final = 10_000
"""Parts of a schema that get a type, each counted where it is referred to; the others become JSON text."""


def kind_of_answers(schema: Mapping[str, Any]) -> Kind:
    """The kind of the answers of a checked schema; a dict has the properties that the schema names."""
    return _Kinds(schema).kind(schema, LEVELS_MAX)


def is_strict(schema: Any) -> bool:
    """Whether each object of a schema requires all its properties and allows no other, as strict mode demands."""
    if isinstance(schema, list):
        return all(map(is_strict, schema))
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if schema.get("type") == "object" or isinstance(properties, dict):
        names = properties if isinstance(properties, dict) else {}
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != set(names):
            return False
    return all(map(is_strict, schema.values()))


class _Kinds:
    """Finds the kinds of the parts of a checked schema."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._open: list[str] = []
        """The references on the way to the part."""
        self._parts = 0

    def kind(self, part: Any, levels: int) -> Kind:
        """The kind of a part: JSON text if it allows values of several kinds, or contains itself."""
        before = len(self._open)
        while isinstance(part, dict) and "$ref" in part:
            if part["$ref"] in self._open:
                part = None
            else:
                self._open.append(part["$ref"])
                part = referred(self._root, part["$ref"])
        self._parts += 1
        is_typed = isinstance(part, dict) and levels and self._parts <= PARTS_MAX
        kind = self._of(part, levels - 1) if is_typed else JSON
        del self._open[before:]
        return kind

    def _of(self, part: dict[str, Any], levels: int) -> Kind:  # noqa: PLR0911 - one for each kind
        if "enum" in part or "const" in part:
            return merged(*map(kind_of, part.get("enum", [part.get("const")])))
        given = part.get("type")
        kinds = [each for each in (given if isinstance(given, list) else [given]) if each != _NULL]
        if not kinds:
            return NULL
        kind = kinds[0] if len(kinds) == 1 else None
        if kind in _PLAIN:
            return _PLAIN[kind]
        if kind == "array" and "items" in part and "prefixItems" not in part:
            return [self.kind(part["items"], levels)]
        if kind == "object" and part.get("properties"):
            return {name: self.kind(each, levels) for name, each in part["properties"].items()}
        for name in ("anyOf", "oneOf"):
            if name in part and kind is None:
                return merged(*(self.kind(each, levels) for each in part[name]))
        return JSON
