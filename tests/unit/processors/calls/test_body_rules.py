"""Fields that the settings of a model change in its bodies."""

import json
from typing import Any

import msgspec
import pytest

from tidemill.configuration.servers import Model
from tidemill.processors.calls.body_rules import body_rules

BODY = (
    b'{"model": "alias", "metadata": {"model": "own"}, "temperature": 0.10, "seed": 18446744073709551616, '
    b'"input": "\\u00e9", "n": null}'
)


def rules(**settings: Any) -> Any:
    return body_rules("own", Model.model_validate({"servers": ["gpu-1"], **settings}))


@pytest.mark.parametrize("settings", [{}, {"aliases": ["alias"]}, {"upstream_model": "there"}])
def test_a_body_with_the_right_name_passes_through(settings: dict[str, Any]) -> None:
    """Not even its bytes are copied."""
    name = settings.get("upstream_model", "own")
    first, last = b'{"model":"%b","n":1}', b'{"metadata": {"model": "alias"}, "temperature": 0.10, "model" : "%b"}'
    for body in (first % name.encode(), last % name.encode()):
        for given in (body, memoryview(body), msgspec.Raw(body)):
            assert rules(**settings).apply(given) is given


@pytest.mark.parametrize("name", ["ow", "own2", '\\"own', "alias", ""])
def test_another_name_is_replaced(name: str) -> None:
    """Also one that begins like the right one."""
    for begin in (b'{"model":"%b","n":1}', b'{"model": "%b", "n": 1}'):
        assert json.loads(rules().apply(begin % name.encode())) == {"model": "own", "n": 1}


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({}, {"model": b'"own"'}),
        ({"aliases": ["alias"]}, {"model": b'"own"'}),
        ({"upstream_model": "there"}, {"model": b'"there"'}),
        ({"body_defaults": {"temperature": 1, "n": 2, "top_k": [1]}}, {"model": b'"own"', "top_k": b"[1]"}),
        (
            {"upstream_model": "there", "body_forced": {"temperature": 1, "n": {"a": None}}},
            {"model": b'"there"', "temperature": b"1", "n": b'{"a":null}'},
        ),
    ],
)
def test_fields_are_set(settings: dict[str, Any], changed: dict[str, bytes]) -> None:
    """A default where the line has none, not even null; all other values stay as they were written."""
    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
    before, after = decoder.decode(BODY), decoder.decode(rules(**settings).apply(BODY))
    expected = {name: bytes(value) for name, value in before.items()} | changed
    assert {name: bytes(value) for name, value in after.items()} == expected


def test_a_body_that_is_no_object() -> None:
    """Is the fault of its line."""
    with pytest.raises(msgspec.MsgspecError):
        rules(upstream_model="x").apply(json.dumps([1]).encode())
