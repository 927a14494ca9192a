"""Checks answers of models against a JSON Schema, in bounded time: for the service and for its client.

A schema is untrusted. It may refer only to its own parts, its patterns match in linear time, and the work that an
answer can cause is counted beforehand: applicators like `anyOf` and `$ref` may apply exponentially many parts to
one value, and an enumeration compares each of its items.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import jsonschema_rs
import orjson

from tidemill.schemas.jsonl import nesting

SCHEMA_BYTES_MAX: Final = 64 << 10
DEPTH_MAX: Final = 64
"""Levels of a schema, and of an answer."""
ANSWER_BYTES_MAX: Final = 512 << 10
PATTERN_BYTES_MAX: Final = 64 << 10
"""Size of a compiled pattern: larger ones need more time for each character."""
PATTERNS_MAX: Final = 100
PATTERN_CHARS_MAX: Final = 512
PATTERNS_CHARS_MAX: Final = 2_048
"""Length of all patterns together; the time to compile one grows with its square, to 0.15 s in all."""
CHAIN_MAX: Final = 500
"""Nested parts, also through references: the compiler recurses into each."""
APPLIED_MAX: Final = 1_000
"""Parts of a schema that apply to one value, counting each item of an enumeration."""
CHECKS_MAX: Final = 1_000_000
"""Parts of a schema that apply to all values of an answer: about a second of work."""
STEPS_MAX: Final = 200_000
"""Steps of counting the work: a tenth of a second."""
FAULT_CHARS_MAX: Final = 300

_LISTS: Final = ("allOf", "anyOf", "oneOf")
_PARTS: Final = ("not", "if", "then", "else")
_MAPS: Final = ("dependentSchemas", "dependencies")
_INNER: Final = ("additionalProperties", "propertyNames", "additionalItems", "contains", "items")
_REFUSED: Final = (
    "$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor", "unevaluatedProperties", "unevaluatedItems",
)  # fmt: skip
_ANY: Final = ""
"""Stands for every name of a property, and every place of an item."""


class SchemaError(ValueError):
    """A JSON Schema is invalid, or exceeds the bounds; the text says why."""


class AnswerError(ValueError):
    """An answer does not fit its schema; the text names the place and the fault."""


class Checker:
    """A schema to check answers against; for use by one thread at a time."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Compile a schema.

        Raises:
            SchemaError: It is invalid, or exceeds the bounds.
        """
        try:
            text = orjson.dumps(schema)
        except (TypeError, RecursionError) as error:
            raise SchemaError(f"the schema is not JSON: {error}") from error
        if len(text) > SCHEMA_BYTES_MAX:
            raise SchemaError(f"the schema has {len(text):,} bytes; at most {SCHEMA_BYTES_MAX:,} are allowed")
        if nesting.exceeds(text, DEPTH_MAX):
            raise SchemaError(f"the schema has more than {DEPTH_MAX} levels")
        if not isinstance(found := orjson.loads(text), dict):
            raise SchemaError("the schema is not an object")
        _check_patterns(found)
        self.applied = _Count(found).applied(found, DEPTH_MAX)
        """Parts of the schema that may apply to one value."""
        try:
            self._validator = jsonschema_rs.validator_for(
                found,
                mask="it",
                offline=True,
                validate_formats=False,  # `regex` would compile any pattern of an answer
                pattern_options=jsonschema_rs.RegexOptions(PATTERN_BYTES_MAX, PATTERN_BYTES_MAX),
            )
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            raise SchemaError(f"the schema is invalid: {_text(error)}") from error

    def check(self, answer: bytes) -> Any:
        """The value of an answer, which is JSON text in UTF-8.

        Raises:
            AnswerError: It is not JSON, does not fit the schema, or exceeds the bounds.
        """
        if len(answer) > ANSWER_BYTES_MAX or nesting.exceeds(answer, DEPTH_MAX):
            raise AnswerError(f"it has more than {ANSWER_BYTES_MAX:,} bytes or {DEPTH_MAX} levels")
        try:
            value = orjson.loads(answer)
        except orjson.JSONDecodeError as error:
            raise AnswerError(f"it is not JSON: {error}"[:FAULT_CHARS_MAX]) from error
        if (nesting.parts(answer) + 1) * self.applied > CHECKS_MAX:
            raise AnswerError("it has more values than can be checked against this schema")
        try:
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            raise AnswerError(_text(error)) from error
        return value


def _text(error: Exception) -> str:
    if not isinstance(error, jsonschema_rs.ValidationError):
        return str(error)[:FAULT_CHARS_MAX]
    place = "".join(f"/{part}" for part in error.instance_path)
    return f"{f'at {place}: ' if place else ''}{error.message}"[:FAULT_CHARS_MAX]


class _Count:
    """Counts the parts of a schema that may apply to one value."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._steps = 0
        self._known: dict[tuple[int, int], tuple[int, dict[str, int]]] = {}
        self._open: set[tuple[int, int]] = set()

    def applied(self, part: Any, levels: int) -> int:
        """The most parts that apply to one value: that of `part`, or one up to `levels` levels below it."""
        here, below = self._reached(part, levels)
        return max(here, below.get(_ANY, 0) + max((n for name, n in below.items() if name), default=0))

    def _reached(self, part: Any, levels: int) -> tuple[int, dict[str, int]]:
        """The parts that apply to the value of `part`, and by name the most that apply to one below it."""
        self._step()
        if not isinstance(part, dict):
            return 1, {}
        if (found := self._known.get(key := (id(part), levels))) is not None:
            return found
        if key in self._open:
            raise SchemaError("the schema refers to itself without an end")
        if len(self._open) == CHAIN_MAX:
            raise SchemaError(f"more than {CHAIN_MAX} parts of the schema apply one inside the other")
        self._open.add(key)
        here, below = 1 + len(_list(part, "enum")), dict[str, int]()
        for more in _applied_here(self._root, part):
            count, names = self._reached(more, levels)
            here += count
            for name, reached in names.items():
                self._add(below, name, reached)
        if levels:
            for name, inner in _applied_below(part):
                self._add(below, name, self.applied(inner, levels - 1))
        self._open.discard(key)
        if here > APPLIED_MAX:
            raise SchemaError(f"more than {APPLIED_MAX:,} parts of the schema apply to one value")
        self._known[key] = here, below
        return here, below

    def _add(self, below: dict[str, int], name: str, count: int) -> None:
        self._step()
        below[name] = total = below.get(name, 0) + count
        if total > APPLIED_MAX:
            raise SchemaError(f"more than {APPLIED_MAX:,} parts of the schema may apply to one value")

    def _step(self) -> None:
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise SchemaError("the schema is too complex: it refers to its own parts too often")


def _applied_here(root: dict[str, Any], part: dict[str, Any]) -> Iterator[Any]:
    """The parts that apply to the same value."""
    for name in _REFUSED:
        if name in part:
            raise SchemaError(f"the schema has {name}, which is not supported")
    if "$id" in part and part is not root:
        raise SchemaError("a part of the schema has $id, which is not supported")
    if "$ref" in part:
        if not isinstance(ref := part["$ref"], str):
            raise SchemaError("the schema is invalid: $ref is not a string")
        yield referred(root, ref)
    for name in _LISTS:
        yield from _list(part, name)
    for name in _PARTS:
        if name in part:
            yield part[name]
    for name in _MAPS:
        yield from _map(part, name).values()


def _applied_below(part: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The parts that apply to values below, each with the name of a property or an item, or `_ANY`."""
    for name, inner in _map(part, "properties").items():
        yield f".{name}", inner
    for number, inner in enumerate(_list(part, "prefixItems")):
        yield f"[{number}", inner
    for inner in _map(part, "patternProperties").values():
        yield _ANY, inner
    for name in _INNER:
        if name in part:
            inner = part[name]
            yield from ((_ANY, each) for each in (inner if isinstance(inner, list) else [inner]))


def _list(part: dict[str, Any], name: str) -> list[Any]:
    """An array of a part; refuses other types, which some drafts ignore."""
    if not isinstance(found := part.get(name, []), list):
        raise SchemaError(f"the schema is invalid: {name} is not an array")
    return found


def _map(part: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(found := part.get(name, {}), dict):
        raise SchemaError(f"the schema is invalid: {name} is not an object")
    return found


def _check_patterns(schema: dict[str, Any]) -> None:
    """Check the number and the size of the different patterns, which are compiled once each."""
    found, left = set[str](), list[Any]([schema])
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left.extend(value.values())
            if isinstance(pattern := value.get("pattern"), str):
                found.add(pattern)
            if isinstance(patterns := value.get("patternProperties"), dict):
                found.update(patterns)
        elif isinstance(value, list):
            left.extend(value)
    if any(len(pattern) > PATTERN_CHARS_MAX for pattern in found):
        raise SchemaError(f"the schema has a pattern of more than {PATTERN_CHARS_MAX} characters")
    if len(found) > PATTERNS_MAX or sum(map(len, found)) > PATTERNS_CHARS_MAX:
        raise SchemaError(
            f"the schema has more than {PATTERNS_MAX} patterns, or {PATTERNS_CHARS_MAX:,} characters of them"
        )


def referred(root: Mapping[str, Any], ref: str) -> Any:
    """The part of a schema that a reference names by a JSON Pointer (RFC 6901).

    Raises:
        SchemaError: It names something else.
    """
    if ref != "#" and not ref.startswith("#/"):
        raise SchemaError(f"$ref is {ref[:100]!r}; only parts of the schema are allowed, like #/$defs/item")
    found: Any = root
    for word in ref[2:].split("/") if ref != "#" else ():
        step = word.replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(step)] if isinstance(found, list) else found[step]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise SchemaError(f"$ref is {ref[:100]!r}, which the schema does not have") from error
    return found
