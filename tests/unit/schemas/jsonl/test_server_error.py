"""The error in a server's body, in every shape that servers have."""

import tracemalloc

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.schemas.jsonl import server_error
from tidemill.schemas.jsonl.server_error import ServerError


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"error": {"message": "long", "type": "t", "code": "c", "param": "p"}},
            ServerError("long", "t", "c", "p"),
        ),
        ({"error": "long", "error_type": "Validation"}, ServerError("long")),
        ({"object": "error", "message": "long", "type": "t", "code": 400}, ServerError("long", "t", 400)),
        ({"detail": "Not Found"}, ServerError("Not Found")),
        ({"type": "about:blank", "detail": "no"}, ServerError("no")),
        ({"detail": [{"loc": ["body"], "msg": "one"}, {"msg": "two"}, 7]}, ServerError("one; two")),
        ({"detail": {"error": {"message": "inner"}}}, ServerError("inner")),
        ({"error": {"type": "t"}, "message": "beside"}, ServerError("beside", "t")),
        ({"error": {"message": " "}, "detail": "below"}, ServerError("below")),
        ({"error": None, "message": "m"}, ServerError("m")),
        ({"error": ["no"]}, ServerError()),
        ({}, ServerError()),
    ],
)
def test_the_error_is_found(body, expected):
    """`error` first, then a message, then `detail`."""
    assert server_error.read(orjson.dumps(body)) == expected


def test_a_body_without_one_is_quoted():
    """Cut, and whatever its bytes are."""
    assert server_error.message(b" <h1>busy</h1>\n") == "<h1>busy</h1>"
    assert server_error.message(b'{"a":1}') == '{"a":1}'
    assert server_error.message(b"x" * 5000) == "x" * server_error.QUOTED_BYTES_MAX + "…"
    assert server_error.message(b'{"error":"' + b"x" * 5000 + b'"}') == "x" * server_error.CHARS_MAX
    assert server_error.message(b"\xff") == "\ufffd"


@pytest.mark.parametrize(
    "body",
    [
        b'{"detail":[' + b"{}," * 300_000 + b"{}]}",
        b'{"error":{"message":[' + b'{"msg":"m"},' * 80_000 + b"{}]}}",
        b'{"error":{"code":[' + b"{}," * 300_000 + b"{}]}}",
        b'{"message":"","more":' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    ],
)
def test_a_large_body_takes_no_memory(body):
    """Of a shape that is not OpenAI's: its values would take many times its size, so it is quoted."""
    tracemalloc.start()
    try:
        assert server_error.message(body) == server_error.quoted(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(body) / 4


def test_an_error_in_a_large_body_is_found():
    """Beside values that are not read."""
    texts = {"message": "no", "type": "t", "code": 7, "param": ["x" * 80_000]}
    body = orjson.dumps({"input": [{}] * 100_000, "error": {"input": [{}] * 100_000, **texts}})
    assert server_error.read(body) == ServerError("no", "t", 7)


NAMES = st.sampled_from(["error", "message", "detail", "msg", "type", "x"])
VALUES = st.recursive(
    st.none() | st.text() | st.integers(-(2**63), 2**63),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
)


@given(VALUES)
def test_every_body_has_a_message(value):
    """A text of the body, or its beginning."""
    body = orjson.dumps(value)
    assert server_error.message(body) == server_error.read(body).message or server_error.quoted(body)
    assert server_error.message(body)
