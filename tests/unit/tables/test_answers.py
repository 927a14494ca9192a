"""Schemas as columns: the types of their properties, and bounds on what refers to itself."""

import orjson
import pytest

from tidemill.tables.answers import PARTS_MAX, kind_of_answers
from tidemill.tables.columns import ChatReader
from tidemill.tables.json_types import INT, JSON, NULL, TEXT
from tidemill.tables.replies import result_of

THING = {"type": "object", "properties": {"n": {"type": "integer"}}}


def count(kind):
    """The kinds in a kind."""
    inner = kind.values() if isinstance(kind, dict) else kind if isinstance(kind, list) else ()
    return 1 + sum(map(count, inner))


@pytest.mark.parametrize(
    "schema",
    [
        {**THING, "type": ["object", "null"]},
        {"anyOf": [THING, {"type": "null", "description": "nothing to say"}]},
        {"oneOf": [{"$ref": "#/$defs/thing"}, {"type": "null"}], "$defs": {"thing": THING}},
        {"enum": [{"n": 1}, {"n": 2}, None]},
    ],
)
def test_a_nullable_object_has_its_properties(schema):
    """The answer null has null in each."""
    reader = ChatReader(schema)
    assert [field.name for field in reader.fields] == ["answer", "n"]
    for answer, values in (("null", ["null", None]), ('{"n":1}', ['{"n":1}', 1])):
        body = {"choices": [{"message": {"content": answer}}]}
        line = orjson.dumps({"custom_id": "1", "response": {"body": body}})
        assert reader.read(result_of(line)) == (values, None)


def test_what_contains_itself_is_json():
    """So that its columns have an end, also if it does so several times."""
    children = {f"c{at}": {"$ref": "#/$defs/n"} for at in range(3)}
    node = {"type": "object", "properties": {"name": {"type": "string"}, **children}}
    assert kind_of_answers({"$ref": "#/$defs/n", "$defs": {"n": node}}) == {
        "name": TEXT, "c0": JSON, "c1": JSON, "c2": JSON,
    }  # fmt: skip
    tree = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
    assert kind_of_answers(tree) == {"next": {"next": JSON}}


def test_what_is_used_twice_has_its_type_twice():
    """Up to a bound: references that double each other at each level would have millions of fields."""
    twice = {"type": "object", "properties": {name: {"$ref": "#/$defs/thing"} for name in "ab"}}
    assert kind_of_answers({**twice, "$defs": {"thing": THING}}) == {"a": {"n": INT}, "b": {"n": INT}}
    levels = {
        f"l{at}": {"type": "object", "properties": {name: {"$ref": f"#/$defs/l{at + 1}"} for name in "abcd"}}
        for at in range(14)
    }
    kind = kind_of_answers({"$ref": "#/$defs/l0", "$defs": {**levels, "l14": THING}})
    assert count(kind) <= 4 * PARTS_MAX
    assert kind_of_answers({"type": "null"}) == NULL
