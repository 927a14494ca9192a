"""Every free field of every route of the OpenAPI document: at its bound, above it, and far above it.

The fields come from `/openapi.json`, so the corpus has new ones at once; `unbounded` names those without a
bound. A cell is one request with one field changed in an otherwise good request.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from tidemill.api.requests.paging import PAGE_BYTES_MAX

MILLION = 1_000_000
LINE_CHARS = 60_000
"""About what fits into the head of a request; clients do not even send a URL that is longer."""
BODY_BYTES = 1_000_000
"""About what fits into a JSON body."""
WIDTH_MAX = 1 << 20
"""A pattern that lets more characters through is no bound."""

ERROR_BYTES_MAX = 8_192
LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x"}}\n'
UNNAMED = ("Could not read the upload: ", "The JSON body of your request is too complex: ")
BOUNDS = frozenset({
    "string_above_max_length", "array_above_max_length", "object_above_max_properties", "integer_above_max_value",
    "integer_below_min_value",
})  # fmt: skip
HEAD_TOO_LARGE = {414, 431}
STREAMED = "x-streamed"
"""Marks the schema of a body that a route reads while it arrives, within bounds of its own."""

OPAQUE = "x-opaque"
"""Marks the schema of a JSON value that the api passes on unread; the bound of its body is the only one."""

Node = dict[str, Any]
Place = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a request."""

    operation: str
    """Method and path, as in the OpenAPI document."""
    where: str
    """`path`, `query`, `header`, `json` or `form`."""
    place: Place
    schema: Node
    is_key: bool = False
    """Whether it is the key of a map's entry, whose value is at `place`."""

    @property
    def param(self) -> str:
        """Its name in errors."""
        text = ""
        for part in self.place:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
        return text

    @property
    def is_bounded(self) -> bool:
        """Whether its schema bounds it."""
        schema = self.schema
        match schema.get("type"):
            case "string":
                return (
                    "enum" in schema
                    or "const" in schema
                    or schema.get("format") == "binary"
                    or "maxLength" in schema
                    or ("pattern" in schema and width(schema["pattern"]) < WIDTH_MAX)
                )
            case "array":
                return "maxItems" in schema
            case "object":
                return "maxProperties" in schema
            case "integer" | "number":
                return "maximum" in schema and "minimum" in schema
            case "boolean":
                return True
        return False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A field and its value."""

    field: Field
    name: str
    value: Any
    codes: frozenset[str]
    """Allowed codes of the 400; empty if the request may be accepted."""


def width(pattern: str) -> int:
    """The most characters that a pattern lets through."""
    return re._parser.parse(pattern).getwidth()[1]


def operations(description: Node) -> Iterator[tuple[str, Node]]:
    """Method and path of each, and its description."""
    for path, found in description["paths"].items():
        for method, operation in found.items():
            yield f"{method.upper()} {path}", operation


def fields(description: Node) -> Iterator[Field]:
    """All of them."""
    for name, operation in operations(description):
        for parameter in operation.get("parameters", ()):
            yield from _walk(name, parameter["in"], (parameter["name"],), parameter["schema"])
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            if content["schema"].get(STREAMED):
                continue
            where = "form" if kind == "multipart/form-data" else "json"
            for field in content["schema"]["properties"]:
                yield from _walk(name, where, (field,), content["schema"]["properties"][field])


def unbounded(description: Node) -> list[str]:
    """Fields that may be of any size."""
    return [
        f"{field.operation} {field.where} {field.param}" for field in fields(description) if not field.is_bounded
    ]


def _walk(operation: str, where: str, place: Place, schema: Node) -> Iterator[Field]:
    for branch in branches(schema):
        here = Field(operation=operation, where=where, place=place, schema=branch)
        kind = branch.get("type")
        if branch.get(OPAQUE):
            continue
        if kind == "object" and "properties" in branch:
            for name, inner in branch["properties"].items():
                yield from _walk(operation, where, (*place, name), inner)
            continue
        yield here
        if kind == "array":
            yield from _walk(operation, where, (*place, 0), branch.get("items", {}))
        elif kind == "object":
            key = {"type": "string", **branch.get("propertyNames", {}), "value": _value(branch)}
            yield Field(operation=operation, where=where, place=place, schema=key, is_key=True)
            if isinstance(inner := branch.get("additionalProperties", {}), dict):
                yield from _walk(operation, where, (*place, "k"), inner)


def branches(schema: Node) -> list[Node]:
    """The alternatives of a schema, except null, and except those that only vary an object's required fields."""
    if "properties" in schema:
        return [schema]
    found = [
        inner for key in ("anyOf", "oneOf", "allOf") for each in schema.get(key, ()) for inner in branches(each)
    ]
    return found or ([] if schema.get("type") == "null" else [schema])


def cells(field: Field) -> Iterator[Cell]:
    """The value of a field."""
    if field.is_key:
        for cell in _texts(field):
            value = {cell.value: field.schema["value"]}
            yield Cell(field=field, name=f"{cell.name} key", value=value, codes=cell.codes)
        return
    match field.schema["type"]:
        case "string" if field.schema.get("format") != "binary":
            yield from _texts(field)
        case "array":
            make = partial(_list, least(field.schema.get("items", {}), {}))
            yield from _many(field, "array_above_max_length", field.schema["maxItems"], make)
        case "object":
            yield from _many(
                field,
                "object_above_max_properties",
                field.schema["maxProperties"],
                partial(_map, _value(field.schema)),
            )
        case "integer" | "number":
            yield from _numbers(field)


def _texts(field: Field) -> Iterator[Cell]:
    schema, far = field.schema, MILLION if field.where in {"json", "form"} else LINE_CHARS
    if "enum" in schema or "const" in schema:
        yield Cell(field=field, name="a million", value="x" * far, codes=frozenset({"invalid_value"}))
        return
    most = schema.get("maxLength") or width(schema["pattern"])
    codes = (
        {"string_above_max_length"} if "pattern" not in schema else {"string_above_max_length", "invalid_value"}
    )
    for name, length, refusal in (
        ("bound", most, set()),
        ("above", most + 1, codes),
        ("a million", far, codes),
    ):
        yield Cell(field=field, name=name, value="a" * length, codes=frozenset(refusal))
    if "pattern" not in schema and field.where == "json":
        yield Cell(field=field, name="worst", value="\x01" * most, codes=frozenset())


def _many(field: Field, code: str, most: int, make: Any) -> Iterator[Cell]:
    yield Cell(field=field, name="bound", value=make(most), codes=frozenset())
    yield Cell(field=field, name="above", value=make(most + 1), codes=frozenset({code}))
    size = max(15, len(json.dumps(make(1))) + 8)
    far = BODY_BYTES // size if field.where == "json" else LINE_CHARS // 40
    yield Cell(field=field, name="many", value=make(far), codes=frozenset({code}))


def _list(item: Any, count: int) -> list[Any]:
    """Different items, like this one if it is an object."""
    if isinstance(item, dict):
        return [{name: f"p{n}" if isinstance(part, str) else part for name, part in item.items()}
                for n in range(count)]  # fmt: skip
    return [f"p{number}" for number in range(count)]


def _map(value: Any, count: int) -> dict[str, Any]:
    return {f"k{number}": value for number in range(count)}


def _value(schema: Node) -> Any:
    """A value that a map may have."""
    inner = schema.get("additionalProperties")
    return {} if isinstance(inner, dict) and inner.get("type") == "object" else "v"


def _numbers(field: Field) -> Iterator[Cell]:
    low, high = int(field.schema["minimum"]), int(field.schema["maximum"])
    yield Cell(field=field, name="least", value=low, codes=frozenset())
    yield Cell(field=field, name="bound", value=high, codes=frozenset())
    yield Cell(field=field, name="below", value=low - 1, codes=frozenset({"integer_below_min_value"}))
    if high + 1 < 1 << 63:
        yield Cell(field=field, name="above", value=high + 1, codes=frozenset({"integer_above_max_value"}))


def least(schema: Node, known: Node, name: str = "") -> Any:
    """The smallest value of a schema; `known` has those of some names."""
    return known[name] if name in known else _made(branches(schema)[0], known, largest=False)


def most(schema: Node, known: Node, name: str = "") -> Any:
    """A value of a schema that is as large as it may be, in characters that take the most room in JSON."""
    return known[name] if name in known else _made(branches(schema)[-1], known, largest=True)


def _made(schema: Node, known: Node, *, largest: bool) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "integer":
        return int(schema["maximum" if largest else "minimum"])
    if kind in {"object", "array"}:
        return (_largest if largest else _smallest)(schema, known)
    return _text(schema, largest=largest) if kind == "string" else largest


def _smallest(schema: Node, known: Node) -> Any:
    if schema["type"] == "array":
        return [least(schema["items"], known)] * schema.get("minItems", 0)
    properties = schema.get("properties", {})
    needed = [*schema.get("required", ()), *schema.get("oneOf", [{"required": ()}])[0]["required"]]
    return {each: least(properties[each], known, each) for each in needed}


def _largest(schema: Node, known: Node) -> Any:
    if schema.get(OPAQUE):
        return {}
    if schema["type"] == "array":
        value = str(most({**schema["items"], "anyOf": branches(schema["items"])[:1]}, known))
        return [f"{number:05}{value[5:]}" for number in range(schema["maxItems"])]
    if "properties" in schema:
        others = {name for choice in schema.get("oneOf", ())[1:] for name in choice["required"]}
        inside = schema["properties"].items()
        return {each: most(inner, known, each) for each, inner in inside if each not in others}
    inner = schema["additionalProperties"]
    length, value = schema["propertyNames"]["maxLength"], most(inner, known) if isinstance(inner, dict) else "v"
    return {f"{number:02}" + "\x01" * (length - 2): value for number in range(schema["maxProperties"])}


def _text(schema: Node, *, largest: bool) -> str:
    if not largest:
        return "a" * max(1, schema.get("minLength", 1))
    if "pattern" in schema:
        return "a" * schema.get("maxLength", width(schema["pattern"]))
    return "\x01" * schema["maxLength"]


def build(
    description: Node, known: Node, field: Field, value: Any, *, largest: bool = False, line: bytes = LINE
) -> tuple[str, str, Node]:
    """A good request of an operation, but for the value of one field: method, path, options of an httpx client.

    Args:
        description: Of the API.
        known: Values by the names of fields, like ids of existing objects.
        field: The field.
        value: Its value.
        largest: Whether the other fields of a body are as large as they may be, or not there.
        line: What files hold.
    """
    method, path = field.operation.split(" ")
    content = description["paths"][path][method.lower()].get("requestBody", {}).get("content", {})
    for name, text in (known | ({field.place[0]: value} if field.where == "path" else {})).items():
        path = path.replace(f"{{{name}}}", str(text))
    options: Node = {}
    if (body := content.get("application/json")) is not None:
        schema = body["schema"]
        good = (most if largest and STREAMED not in schema else least)(schema, known)
        options["json"] = put(good, schema, field.place, value) if field.where == "json" else good
    if (body := content.get("multipart/form-data")) is not None:
        options |= _form(body["schema"]["properties"], field, value, line)
    parameters = description["paths"][path_of(field)][method.lower()].get("parameters", ())
    needed = {one["name"] for one in parameters if one["in"] == "query" and one["required"]}
    options["params"] = {name: known[name] for name in needed}
    if field.where == "query":
        name, *rest = field.place
        pairs = value if isinstance(value, dict) else dict.fromkeys(rest, value)
        options["params"] |= {f"{name}[{key}]": text for key, text in pairs.items()} or {name: str(value)}
    if field.where == "header":
        options["headers"] = {field.place[0]: str(value)}
    return method, path, options


def path_of(field: Field) -> str:
    """The path of its operation, as the description has it."""
    return field.operation.split(" ")[1]


def _form(properties: Node, field: Field, value: Any, line: bytes) -> Node:
    files = {name: ("f", line) for name, each in properties.items() if each.get("format") == "binary"}
    fields = {"purpose": "batch"} if "purpose" in properties else {}
    if field.where == "form":
        fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        fields[str(field.place[0])] = str(value)
    return {"data": fields, "files": files}


def check(answer: httpx.Response, cell: Cell) -> None:
    """Check that the answer to a cell is bounded, no 500, and names the field."""
    about = f"{cell.field.operation}: {cell.field.where} {cell.field.param}, {cell.name}: {answer.status_code}"
    assert answer.status_code < 500, about
    if answer.status_code < 400:
        assert not cell.codes, about
        assert len(answer.content) <= PAGE_BYTES_MAX + 1_000, about
        return
    assert len(answer.content) <= ERROR_BYTES_MAX, about
    error = answer.json()["error"]
    about += f" {error}"
    if "code" not in error:
        # Anthropic's errors have a type and a message.
        assert (
            answer.status_code in HEAD_TOO_LARGE
            or not cell.codes
            or cell.field.param in error["message"]
            or (cell.field.where == "path" and answer.status_code == 404)
        ), about
        return
    if not cell.codes:
        assert error["code"] not in BOUNDS, about
    elif answer.status_code in HEAD_TOO_LARGE:
        assert cell.field.where not in {"json", "form"}, about
    elif cell.field.where == "path":
        assert answer.status_code == 404, about
    elif error["message"].startswith(UNNAMED):
        # The readers of forms and bodies stop at their bounds, and do not say at which field.
        assert answer.status_code == 400, about
    else:
        assert answer.status_code == 400, about
        assert error["code"] in cell.codes, about
        assert error["param"].startswith(cell.field.param), about


def put(node: Any, schema: Node, place: Place, value: Any) -> Any:
    """A body with a value at a path; missing parents are made from the schema."""
    if not place:
        return value
    part, *rest = place
    branch = _towards(schema, part)
    if isinstance(part, int):
        return [put(None, branch.get("items", {}), tuple(rest), value)]
    if "properties" not in branch:
        return {part: put(None, branch.get("additionalProperties", {}), tuple(rest), value)}
    inner = branch["properties"]
    base = node if isinstance(node, dict) and set(node) <= set(inner) else least(branch, {"from": "0"})
    return {**base, part: put(base.get(part), inner[part], tuple(rest), value)}


def _towards(schema: Node, part: str | int) -> Node:
    """The branch of a schema that has a part."""
    for branch in branches(schema):
        if isinstance(part, int) and branch.get("type") == "array":
            return branch
        if branch.get("type") == "object" and part in branch.get("properties", {part: 1}):
            return branch
    return schema
