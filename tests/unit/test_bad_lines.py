"""Bad lines of a file, each with its fault: code, param and message; of them a batch fails."""

import json
from typing import Any

import orjson
import pytest
from support.faults import LIST, NUMBER, OBJECT, TEXT, TRUE, long, rows

from tidemill.api.requests import reading
from tidemill.api.requests.bodies import Append
from tidemill.configuration.settings import Settings
from tidemill.ingest.files.validation import Checker, Rules
from tidemill.ingest.files.verdict import Failed
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.jsonl.lines import Splitter
from tidemill.schemas.resources.error import ApiError

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"

LineFault = tuple[str, str | None, str]
"""Code, param, and how the message begins; the line is the first."""


def line_kind(param: str, expected: str, got: str) -> LineFault:
    return "invalid_type", param, f"Invalid type for '{param}': expected {expected}, but got {got} instead."


def line_missing(param: str) -> LineFault:
    return "missing_required_parameter", param, f"Missing required parameter: '{param}'."


def line_needed(name: str) -> LineFault:
    return "invalid_request", f"body.{name}", f"{name.capitalize()} parameter is required."


BROKEN: LineFault = ("invalid_json_line", None, "This line is not parseable as valid JSON.")
NO_OBJECT: LineFault = ("invalid_request", None, "Each line must be a JSON dictionary object, but this one is ")
ABSENT = object()
CHAT_BODY = {"model": "m", "messages": []}
NO_METHOD: LineFault = (
    "invalid_method", "method", "Invalid method for this request. Only POST is supported, but it is ",
)  # fmt: skip
NO_URL: LineFault = (
    "invalid_url", "url", "The URL provided for this request does not match the batch endpoint. Expected ",
)  # fmt: skip

RAW_LINES: list[tuple[bytes, LineFault]] = [
    *((line, BROKEN) for line in (
        b"{", b"nonsense", b'{"a":NaN}', b'{"a":1,}', b'{"a":1} x', b"\xff", b'{"a":"\xe4"}', b"'a'",
        b'{"a":"\\ud800"}',
        b'{"a":01}', b'{"a":"\x01"}', b"\x00", b'{"a":1}{"b":2}', b"{}\xef\xbb\xbf",
    )),
    *((line, NO_OBJECT) for line in (b"[]", b'"a"', b"1", b"null", b"true", b"-0.5", b"[{}]")),
    (b"{}", line_missing("custom_id")),
    (b"[" * 129 + b"]" * 129, (
        "invalid_json_line", None, "This line is nested deeper than the maximum of 128 levels.",
    )),
]  # fmt: skip
FIELD_LINES: list[tuple[dict[str, Any], LineFault]] = [
    *(({name: ABSENT}, line_missing(name)) for name in ("custom_id", "method", "url", "body")),
    *(({name: wrong}, line_kind(name, TEXT, got)) for name in ("custom_id", "method", "url") for wrong, got in (
        (None, "null"), (1, NUMBER), ([], LIST), (True, TRUE),
    )),
    *(({"body": wrong}, line_kind("body", OBJECT, got)) for wrong, got in (
        (None, "null"), ("{}", TEXT), ([], LIST), (1, NUMBER),
    )),
    ({"custom_id": ""}, ("empty_string", "custom_id",
                         "Invalid 'custom_id': empty string. Expected a string with minimum length 1.")),
    ({"custom_id": "c" * 513}, ("string_above_max_length", "custom_id", long("custom_id", 512, 513)[3])),
    *(({"method": method}, NO_METHOD) for method in ("GET", "post", "POST ", "")),
    *(({"url": url}, NO_URL) for url in ("", "/v1/embeddings", "/v1/chat/completions/", "/chat/completions",
                                         "https://example.com/v1/chat/completions")),
    ({"body": CHAT_BODY | {"stream": True}}, ("streaming_unsupported", "body.stream",
                                              "Chat Completions: Streaming is not supported in the Batch API.")),
    ({"body": CHAT_BODY | {"stream": "yes"}}, line_kind("body.stream", "a boolean", TEXT)),
    *(({"body": {"messages": [], "model": model}}, line_needed("model")) for model in (None, "")),
    ({"body": {"messages": []}}, line_needed("model")),
    ({"body": {"messages": [], "model": 1}}, line_kind("body.model", TEXT, NUMBER)),
    ({"body": {"messages": [], "model": "nonexistent-model-xyz"}}, (
        "model_not_found", "body.model",
        "The provided model 'nonexistent-model-xyz' is not supported by the Batch API.",
    )),
    ({"body": {"messages": [], "model": "embed"}}, (
        "model_not_supported", "body.model",
        "The model 'embed' does not serve /v1/chat/completions; it serves /v1/embeddings.",
    )),
    ({"body": {"model": "m"}}, line_needed("messages")),
    ({"body": {"model": "m", "messages": None}}, line_needed("messages")),
]  # fmt: skip


def checked(line: bytes) -> LineFault:
    """The only fault of a file of one line."""
    models = {"m": ENDPOINTS, "embed": (EMBEDDINGS,)}
    checker = Checker(Rules(endpoint=CHAT, models=models, lines_max=50_000, bytes_max=209_715_200))
    splitter = Splitter()
    for found in [*splitter.feed(line), *splitter.finish()]:
        checker.check([found])
    verdict = checker.verdict()
    assert isinstance(verdict, Failed)
    (error,) = verdict.errors
    assert error.line == 1
    return error.code, error.param, error.message


@pytest.mark.parametrize(("line", "expected"), rows(RAW_LINES))
def test_a_line(line, expected):
    """Lines that are not requests."""
    code, param, message = checked(line)
    assert (code, param, message[: len(expected[2])]) == expected


@pytest.mark.parametrize(("change", "expected"), rows(FIELD_LINES))
def test_a_field_of_a_line(change, expected):
    """A request with one field that is not as it has to be."""
    request = {"custom_id": "a", "method": "POST", "url": CHAT, "body": CHAT_BODY} | change
    line = orjson.dumps({name: field for name, field in request.items() if field is not ABSENT})
    code, param, message = checked(line)
    assert (code, param, message[: len(expected[2])]) == expected


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("custom_id", ""), ("custom_id", "c" * 513), ("custom_id", []), ("custom_id", True), ("custom_id", ABSENT),
        ("body", ABSENT), ("body", "{}"), ("body", []), ("body", True),
    ],
)  # fmt: skip
def test_a_request_in_a_create_has_the_fault_of_a_line(name, wrong):
    """The same code and message, at another place."""
    request = {"custom_id": "a", "method": "POST", "url": CHAT, "body": CHAT_BODY} | {name: wrong}
    text = orjson.dumps({field: value for field, value in request.items() if value is not ABSENT})
    with pytest.raises(ApiError) as caught:
        reading.body(Append, b'{"sequence": 1, "requests": [%b]}' % text, Settings())
    found = caught.value.body
    assert found.param.startswith("requests[0].")
    said = found.message.replace(found.param, name)
    assert (found.code, found.param.removeprefix("requests[0]."), said) == checked(text)


def test_the_table_is_large():
    """Sixty and more, all of them different."""
    assert len(RAW_LINES) + len(FIELD_LINES) >= 60
    for table in (RAW_LINES, FIELD_LINES):
        assert len({json.dumps(row, default=repr) for row in table}) == len(table)
