"""The body of a create, in any chunks."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.api.anthropic.request_body import RequestReader
from tidemill.schemas.jsonl.nesting import DEPTH_MAX
from tidemill.schemas.resources.error import ApiError

REQUESTS_MAX = 4
LINE_BYTES_MAX = 20_000
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)
PARAMS = st.dictionaries(st.text(max_size=9).filter(lambda name: name != "stream"), VALUES, max_size=4)
SPACES = st.text(" \t\r\n", max_size=3)
GOOD = {"custom_id": "a", "params": {"model": "m", "max_tokens": 1, "messages": []}}


def lines(body: bytes, *sizes: int) -> list[bytes]:
    """The lines of a body that arrives in chunks of these sizes, the last of them again and again."""
    reader, found, at = RequestReader(requests_max=REQUESTS_MAX, line_bytes_max=LINE_BYTES_MAX), [], 0
    for size in (*sizes, *([sizes[-1] if sizes else 1 << 20] * len(body))):
        if at >= len(body):
            break
        found.append(reader.feed(body[at : at + size]))
        at += size
    reader.finish()
    return b"".join(found).splitlines(keepends=True)


def fault(body: bytes | dict, *sizes: int) -> str:
    """The message of the error of a body."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApiError) as caught:
        lines(body, *sizes)
    return str(caught.value)


@given(st.lists(PARAMS, min_size=1, max_size=REQUESTS_MAX), SPACES, st.booleans(), st.lists(st.integers(1, 40)))
def test_lines_have_the_requests_in_any_chunks(params, space, ascii_only, sizes):
    """Each with its `custom_id`, and `params` as they were."""
    each = [
        f'{{"custom_id"{space}:"r-{i}",{space}"params":{json.dumps(p, ensure_ascii=ascii_only)}{space}}}'
        for i, p in enumerate(params)
    ]
    body = f'{space}{{"requests":{space}[{f"{space},".join(each)}]{space}}}{space}'.encode(
        "utf-8", "surrogatepass"
    )
    try:
        body.decode()
    except UnicodeDecodeError:
        assert "not valid JSON" in fault(body, *sizes)
        return
    found = lines(body, *sizes)
    assert [json.loads(line) for line in found] == [
        {"custom_id": f"r-{i}", "method": "POST", "url": "/v1/messages", "body": p} for i, p in enumerate(params)
    ]


@given(st.data(), st.lists(st.integers(1, 9), min_size=1))
def test_any_bytes_give_lines_or_the_same_error_in_any_chunks(data, sizes):
    """A body with an altered part, a cut, or noise in it; a line is always JSON."""
    body = bytearray(json.dumps({"requests": [GOOD | {"custom_id": str(i)} for i in range(3)]}, indent=1).encode())
    at = data.draw(st.integers(0, len(body)))
    noise = data.draw(st.binary(max_size=3) | st.sampled_from([b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\"]))
    body[at : at + data.draw(st.integers(0, 5))] = noise
    whole, pieces = outcome(bytes(body), 1 << 20), outcome(bytes(body), *sizes)
    assert whole == pieces
    assert isinstance(whole, list) or whole.startswith("400 ")
    for line in whole if isinstance(whole, list) else ():
        orjson.loads(line)


def outcome(body: bytes, *sizes: int) -> list[bytes] | str:
    """The lines, or the message of the error."""
    try:
        return lines(body, *sizes)
    except ApiError as error:
        return f"{error.status} {error}"


def test_values_keep_their_text():
    """Numbers keep their digits, strings their escapes; a request is one line."""
    body = (
        b'{"requests":[{"params":{"a": 1.10, "b":\n"\\u00e9\\n", "c": 12345678901234567890123},"custom_id":"x"}]}'
    )
    (line,) = lines(body)
    assert line == (
        b'{"custom_id":"x","method":"POST","url":"/v1/messages","body":'
        b'{"a": 1.10, "b": "\\u00e9\\n", "c": 12345678901234567890123}}\n'
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "requests: Field required"),
        ([], "Input should be an object"),
        ({"requests": {}}, "requests: Input should be a valid list"),
        ({"requests": None}, "requests: Input should be a valid list"),
        ({"requests": []}, "requests: List should have at least 1 item after validation, not 0"),
        ({"requests": [GOOD], "x": 1}, "x: Extra inputs are not permitted"),
        ({"x": [GOOD]}, "x: Extra inputs are not permitted"),
        ({"requests": [7]}, "requests.0: Input should be an object"),
        ({"requests": [{"params": {}}]}, "requests.0.custom_id: Field required"),
        ({"requests": [{"custom_id": 7, "params": {}}]}, "requests.0.custom_id: Input should be a valid string"),
        (
            {"requests": [{"custom_id": "a b", "params": {}}]},
            "requests.0.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
        ),
        (
            {"requests": [GOOD, {"custom_id": "x" * 65, "params": {}}]},
            "requests.1.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'",
        ),
        ({"requests": [GOOD, GOOD]}, "requests.1.custom_id: It must be unique, and requests.0 has it too"),
        ({"requests": [{"custom_id": "a"}]}, "requests.0.params: Field required"),
        ({"requests": [{"custom_id": "a", "params": []}]}, "requests.0.params: Input should be an object"),
        ({"requests": [GOOD | {"body": {}}]}, "requests.0.body: Extra inputs are not permitted"),
        (
            {"requests": [{"custom_id": "a", "params": {"stream": True}}]},
            "requests.0.params.stream: Streaming is not supported in a batch",
        ),
        (
            {"requests": [GOOD | {"custom_id": str(i)} for i in range(REQUESTS_MAX + 1)]},
            f"requests: List should have at most {REQUESTS_MAX} items (limit: file_lines_max)",
        ),
        (b"", "The request body is not valid JSON: unexpected end of data (byte 1)"),
        (b'{"requests":[{"custom_id":"a"', "The request body is not valid JSON: unexpected end of data (byte 30)"),
        (b'{"requests":[}', "The request body is not valid JSON: unexpected character (byte 14)"),
        (b'{"requests":[{}]} x', "requests.0.custom_id: Field required"),
        (
            b'{"requests":[{"custom_id":"a","params":{}}]} x',
            "The request body is not valid JSON: unexpected content after document (byte 46)",
        ),
        (
            b'{"requests":[{"custom_id":"a","params":{]}]}',
            "The request body is not valid JSON: requests.0, from byte 14 on: Column 28: unexpected character",
        ),
    ],
)
def test_an_error_names_the_request_and_the_field(body, said):
    """Whatever the chunks."""
    for size in (1, 7, 1 << 20):
        assert fault(body, size).startswith(said)


def test_a_stream_that_is_off_is_no_fault():
    """Some clients send it."""
    assert lines(json.dumps({"requests": [{"custom_id": "a", "params": {"stream": False}}]}).encode())


def test_json_inside_a_request_that_is_invalid_is_found_at_its_place():
    """The reason is that of a line of a file."""
    said = fault(b'{"requests":[{"custom_id":"a","params":{"x":tru}}]}')
    assert said.startswith("The request body is not valid JSON: requests.0, from byte 14 on: Column 32: ")
    assert "UTF-8" in fault(b'{"requests":[{"custom_id":"a","params":{"x":"\xff"}}]}')


def test_a_request_is_held_up_to_its_bound():
    """In size, also if it never ends, and in levels."""
    start = b'{"requests":[{"custom_id":"a","params":{"x":'
    with pytest.raises(ApiError) as caught:
        lines(start + b'"' + b"a" * 2 * LINE_BYTES_MAX, 1000)
    assert (caught.value.status, caught.value.body.param) == (413, "requests.0")
    with pytest.raises(ApiError) as caught:
        lines(start + b'"' + b"a" * (LINE_BYTES_MAX - 50) + b'"}}]}')
    assert caught.value.status == 413
    assert lines(start + b"[" * (DEPTH_MAX - 2) + b"]" * (DEPTH_MAX - 2) + b"}}]}", 50)
    assert "nested deeper" in fault(start + b"[" * (DEPTH_MAX - 1) + b"]" * (DEPTH_MAX - 1) + b"}}]}", 50)
    assert "nested deeper" in fault(start + b"[" * 10_000, 50)
