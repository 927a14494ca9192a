"""The check of answers against a JSON Schema: faults name their place, and no schema or answer costs much time."""

import contextlib
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tidemill.schemas import json_schema
from tidemill.schemas.json_schema import AnswerError, Checker, SchemaError

REVIEW = {
    "type": "object",
    "properties": {
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"enum": ["good", "bad"]}},
    },
    "required": ["stars"],
    "additionalProperties": False,
}


class Tree(BaseModel):
    """Recursive, with two branches of different names."""

    left: "Tree | None" = None
    right: "Tree | None" = None
    value: int = 0


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b'{"stars": 6}', "at /stars: it is greater than the maximum of 5"),
        (b'{"stars": 1, "tags": ["good", "odd"]}', 'at /tags/1: it is not one of "good" or "bad"'),
        (b"{}", '"stars" is a required property'),
        (b'{"stars": 1, "more": 2}', "Additional properties are not allowed"),
        (b'```json\n{"stars": 1}\n```', "it is not JSON"),
        (b'{"stars": NaN}', "it is not JSON"),
        (b'{"stars": 1', "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b"[" * 100 + b"]" * 100, "levels"),
        (b'"' + b"a" * json_schema.ANSWER_BYTES_MAX + b'"', "bytes"),
    ],
)
def test_a_fault_names_its_place(answer, fault):
    """A fault is short, and says where it is."""
    with pytest.raises(AnswerError) as caught:
        Checker(REVIEW).check(answer)
    assert fault in str(caught.value)
    assert len(str(caught.value)) <= json_schema.FAULT_CHARS_MAX


def test_a_fitting_answer_is_returned():
    """The value is that of the JSON."""
    assert Checker(REVIEW).check(b' {"stars": 4, "tags": []} ') == {"stars": 4, "tags": []}
    tree = {"left": {"right": {"value": 3}}, "right": None}
    assert Checker(Tree.model_json_schema()).check(json.dumps(tree).encode()) == tree


def doubling(levels: int) -> dict[str, Any]:
    """Each definition applies the next one twice."""
    parts = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**parts, f"a{levels}": {"type": "integer"}}, "$ref": "#/$defs/a0"}


def branching(levels: int) -> dict[str, Any]:
    """Each level of an answer doubles what applies."""
    part: dict[str, Any] = {"properties": {"x": {"$ref": "#"}}}
    return {"anyOf": [part | {"required": ["y"]}, part], "maxProperties": levels}


def chain(parts: int) -> dict[str, Any]:
    """Each definition applies the next one."""
    found: dict[str, Any] = {f"a{n}": {"not": {"$ref": f"#/$defs/a{n + 1}"}} for n in range(parts)}
    return {"$defs": {**found, f"a{parts}": True}, "$ref": "#/$defs/a0"}


DRAFT_7 = {"$schema": "http://json-schema.org/draft-07/schema#"}


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"type": "odd"}, "at /type"),
        (DRAFT_7 | {"dependentSchemas": 5}, "dependentSchemas"),
        (DRAFT_7 | {"prefixItems": 5}, "prefixItems"),
        ({"$ref": 5}, "$ref"),
        (chain(600), "inside the other"),
        ({"anyOf": [{"pattern": f"\\w{{600}}{n}"} for n in range(990)]}, "patterns"),
        ({"$defs": {"a": {"patternProperties": {f"{n}{'a' * 100}": True for n in range(30)}}}}, "patterns"),
        ({"pattern": "\\w" * 5_000}, "a pattern of more than"),
        ({"$ref": "http://127.0.0.1:1/a"}, "http://127.0.0.1:1/a"),
        ({"$ref": "file:///etc/passwd"}, "file:///etc/passwd"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"$ref": "#"}, "without an end"),
        ({"$defs": {"a": {"not": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}, "without an end"),
        ({"pattern": "(?=a)b"}, "regex"),
        ({"pattern": "(a{1000}){1000}"}, "regex"),
        ({"properties": {"a": {"$dynamicRef": "#"}}}, "$dynamicRef"),
        ({"properties": {"a": {"$id": "http://a/"}}}, "$id"),
        (doubling(30), "apply to one value"),
        (branching(3), "apply to one value"),
        ({"enum": list(range(5000))}, "apply to one value"),
        ({"description": "a" * (64 << 10)}, "bytes"),
        ({"const": object()}, "JSON"),
        ([], "object"),
    ],
)  # fmt: skip
def test_a_schema_has_bounds(schema, fault):
    """A schema that is invalid, reaches outside or multiplies the work is refused."""
    with pytest.raises(SchemaError) as caught:
        Checker(schema)
    assert fault in str(caught.value)


def test_a_pattern_takes_linear_time():
    """The classic pattern for backtracking ends, on the longest answer."""
    checker = Checker({"type": "string", "pattern": "^(a+)+$"})
    with pytest.raises(AnswerError):
        checker.check(b'"' + b"a" * (json_schema.ANSWER_BYTES_MAX - 3) + b'b"')


def test_an_answer_is_no_pattern():
    """A format of an old draft does not compile what the model wrote."""
    assert Checker(DRAFT_7 | {"format": "regex"}).check(b'"("') == "("


keywords = st.sampled_from(
    [
        *json_schema._LISTS, *json_schema._PARTS, *json_schema._MAPS, *json_schema._INNER, *json_schema._REFUSED,
        "$id", "$ref", "$defs", "definitions", "enum", "const", "type", "properties", "prefixItems", "required",
        "pattern", "patternProperties", "format", "minLength", "multipleOf", "uniqueItems", "$vocabulary", "id",
    ]
)  # fmt: skip
drafts = st.sampled_from(
    [
        "http://json-schema.org/draft-04/schema#", "http://json-schema.org/draft-06/schema#", DRAFT_7["$schema"],
        "https://json-schema.org/draft/2019-09/schema", "https://json-schema.org/draft/2020-12/schema", "http://a/",
    ]
)  # fmt: skip
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(["#", "#/$defs/a", "#/properties/a", "object", "string", "", "(", "a+"])
)  # fmt: skip
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keywords | st.sampled_from("ab") | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(keywords, leaves | anything, min_size=1, max_size=3), drafts)
@settings(max_examples=500, deadline=None)
def test_any_json_may_come_as_a_schema(schema, draft):
    """It is a schema, or an error says why not."""
    try:
        checker = Checker({"$schema": draft, **schema})
    except SchemaError:
        return
    for answer in (b"1", b'"a"', b'{"a": [1, {"b": null}]}'):
        with contextlib.suppress(AnswerError):
            checker.check(answer)


def test_an_answer_of_many_values_is_not_checked():
    """Its values times the parts of the schema are bounded."""
    checker = Checker({"items": {"enum": [{"a": n} for n in range(900)]}})
    with pytest.raises(AnswerError, match="more values"):
        checker.check(b"[" + b",".join([b'{"a":899}'] * 2000) + b"]")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)
kinds = st.sampled_from(["object", "array", "string", "integer", "boolean", "null"])
schemas = st.recursive(
    st.builds(lambda kind: {"type": kind}, kinds) | st.builds(lambda value: {"enum": [value]}, values),
    lambda inner: st.one_of(
        st.builds(
            lambda of: {"properties": of, "required": sorted(of)[:1]},
            st.dictionaries(st.sampled_from("ab"), inner),
        ),
        st.builds(lambda of: {"items": of}, inner),
        st.builds(lambda of: {"anyOf": of}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda of: {"not": of}, inner),
    ),
    max_leaves=5,
)


@given(schemas, values)
def test_it_agrees_with_the_reference_library(schema, value):
    """An answer fits if it fits for jsonschema, which is another implementation."""
    try:
        found = Checker(schema).check(json.dumps(value).encode())
    except AnswerError:
        assert not jsonschema.Draft202012Validator(schema).is_valid(value)
    else:
        assert found == value
        assert jsonschema.Draft202012Validator(schema).is_valid(value)
