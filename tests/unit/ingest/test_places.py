"""A fault names its line, its field, the expected and the found value."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checking import ABSENT, CHAT, fault, line, request_body

from tidemill.ingest.files import validation
from tidemill.schemas.jsonl import malformed
from tidemill.schemas.jsonl.lines import LINE_BYTES_MAX

GOOD = line("good")
KINDS = {
    "null": None, "a boolean": True, "an integer": 7, "a number": 0.5, "a string": "x", "an array": [1],
    "an object": {"a": 1},
}  # fmt: skip
WANTED = {"custom_id": "a string", "method": "a string", "url": "a string", "body": "an object"}
BROKEN = [
    (b"\xef\xbb\xbf" + line("b"), "Byte 1: a byte order mark"),
    (line("b").replace(b'"b"', b'"b\0"'), 'Column 16: unexpected control character in string; found "\\u0000'),
    (line("b").replace(b'"b"', b'"\\ud800"'), "Column 15: no low surrogate in string"),
    (
        line("b").replace(b'"method"', b"method"),
        'Column 18: unexpected character, expected a string key; found "meth',
    ),
    (line("b")[:-1] + b",}", "trailing comma is not allowed"),
    (line("b")[:30], "Column 31: the line ends before its JSON does"),
    (line("b") + line("c"), "more text follows the JSON"),
    (line("b").replace(b"}", b"\xe4}", 1), "0xe4 is not UTF-8"),
    (b"a,b,c", 'Column 1: unexpected character, expected a JSON value; found "a,b,c"'),
    (b"\x1f\x8b\x08\x00", "Byte 1: the content is compressed with gzip"),
]


@pytest.mark.parametrize(("broken", "said"), BROKEN)
@pytest.mark.parametrize("first", [True, False])
def test_a_json_error_names_its_position(broken, said, first):
    """Line, column or byte, and the text there, in the first line and in later ones."""
    lines = (broken, GOOD) if first and not broken.startswith(b"\xef") else (GOOD, b"", broken)
    error = fault(*lines)
    assert (error.code, error.line) == ("invalid_json_line", lines.index(broken) + 1)
    assert said in error.message


@pytest.mark.parametrize("text", [b'{"a":01}', b'{"a":1,}', b"{a:1}", b'{"a":"\xe4"}', b'{"a":', b'{"a":1}}'])
def test_a_json_error_of_a_long_line_names_its_byte(text, monkeypatch):
    """The skipping parser gives the position."""
    monkeypatch.setattr(malformed, "LONG_BYTES", 0)
    assert malformed.reason(text).startswith(("Byte ", "At its end: "))


@given(
    field=st.sampled_from(sorted(WANTED)), kind=st.sampled_from(sorted(KINDS)), before=st.integers(0, 3),
    is_long=st.booleans(),
)  # fmt: skip
def test_a_field_of_a_wrong_type_is_named(field, kind, before, is_long):
    """The message has the expected and the found type, in short and long lines."""
    if kind == WANTED[field]:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "LONG_LINE_BYTES", 0 if is_long else 1 << 20)
        error = fault(
            *(line(str(n)) for n in range(before)), orjson.dumps(json.loads(GOOD) | {field: KINDS[kind]})
        )
    assert (error.code, error.param, error.line) == ("invalid_type", field, before + 1)
    assert error.message == f"Invalid type for '{field}': expected {WANTED[field]}, but got {kind} instead."


@given(st.data())
def test_a_mutated_line_is_a_request_or_a_named_fault(data):
    """Mutations drop, double or replace a byte."""
    at = data.draw(st.integers(0, len(GOOD) - 1))
    new = data.draw(st.sampled_from([b"", GOOD[at : at + 1] * 2, b"\0", b'"', b",", b"{", b"\\", b"\xff", b"'"]))
    mutant = GOOD[:at] + new + GOOD[at + 1 :]
    found = check_of(mutant)
    if found is None:
        assert json.loads(mutant)["url"] == CHAT
        return
    assert found.line == 2
    if found.code == "invalid_json_line":
        assert "Column " in found.message or "Byte " in found.message
    else:
        assert found.param is not None
        assert found.param.removeprefix("body.") in found.message.lower() or "model" in found.message


def check_of(mutant: bytes):
    """The fault of a line behind a valid one."""
    try:
        return fault(line("first"), mutant)
    except AssertionError:
        return None


@pytest.mark.parametrize(
    ("bad", "param", "said"),
    [
        (line("b", body=ABSENT), "body", "Missing required parameter: 'body'."),
        (line("b", method="GET"), "method", "Only POST is supported, but it is 'GET'."),
        (line("b", url="/v1/x"), "url", f"Expected '{CHAT}', but got '/v1/x'."),
        (line("first"), "custom_id", "Line 1 has it too."),
        (line("b", body=request_body(model="other")), "body.model", "this one began with 'm'."),
        (b"x" * (LINE_BYTES_MAX + 1), None, f"maximum of {LINE_BYTES_MAX} bytes (limit: line_bytes_max)."),
    ],
)
def test_a_fault_names_the_expected_and_the_found_value(bad, param, said):
    """A blank line before it counts in the line number."""
    error = fault(line("first"), b"", bad)
    assert (error.line, error.param) == (3, param)
    assert said in error.message


def test_a_first_line_without_a_body_is_a_fault_of_that_line():
    """It is not a fault of the file."""
    error = fault(line("a", body=ABSENT), GOOD)
    assert (error.line, error.param, error.code) == (1, "body", "missing_required_parameter")
