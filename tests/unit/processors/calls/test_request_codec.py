"""A reply becomes a result line."""

import json
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.calls import reply, request_codec
from tidemill.processors.calls.request_codec import Success
from tidemill.processors.failures import NOT_MADE, Answer, CallFailure, FailureKind, Fault
from tidemill.schemas.bounds import TOKENS_MAX
from tidemill.schemas.jsonl import server_error
from tidemill.schemas.jsonl.line import Call
from tidemill.schemas.log import codec

BATCH = "batch_" + 32 * "0"
PLAIN = "/v1/mine"
"""An endpoint whose replies have no field that must be there."""
CHAT = "/v1/chat/completions"
ONE_CALL = Call(1, b'"gpu-1"', 0.5)
WELL = {"choices": [{"index": 0, "message": {"content": "y"}, "finish_reason": "stop"}]}
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)
json_objects = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=10), json_values, max_size=5)


@given(json_objects, st.booleans(), st.integers(200, 299), st.integers(1, 20))
def test_a_reply_passes_through(said: dict[str, Any], indented: bool, status: int, attempts: int) -> None:
    """The line holds the reply as it was, on one line, and its mark says how long it is."""
    body = orjson.dumps(said, option=orjson.OPT_INDENT_2 if indented else 0)
    end = request_codec.judge(Answer(status, body, "abc-1"), PLAIN)
    assert isinstance(end, Success)
    text, mark = request_codec.result(BATCH, 7, b'"r-1"', end, Call(attempts, b'"gpu-1"', 0.5))
    assert text.count(b"\n") == 1
    assert text.endswith(b"\n")
    line = json.loads(text)
    assert line["response"] == {"status_code": status, "request_id": "abc-1", "body": said}
    assert (line["custom_id"], line["error"]) == ("r-1", None)
    tokens = {} if end.tokens is None else {"input_tokens": end.tokens[0], "output_tokens": end.tokens[2]}
    assert line["tidemill"] == {"attempts": attempts, "server": "gpu-1", "seconds": 0.5, **tokens}
    assert (mark.index, mark.size, mark.failed, mark.attempts) == (7, len(text), False, attempts)


@given(st.binary(max_size=40) | json_values.map(orjson.dumps))
def test_only_an_object_is_a_reply(body: bytes) -> None:
    """As strict as a strict reader: orjson accepts each accepted reply, too."""
    try:
        is_object = isinstance(orjson.loads(body), dict)
    except orjson.JSONDecodeError:
        is_object = False
    end = request_codec.judge(Answer(200, body), PLAIN)
    assert isinstance(end, Success) == is_object
    assert reply.is_object(body) == is_object


@given(json_objects.map(orjson.dumps), st.data())
def test_a_truncated_reply_is_retried(body: bytes, data: st.DataObject) -> None:
    """No beginning of a JSON object is one."""
    cut = body[: data.draw(st.integers(0, len(body) - 1))]
    end = request_codec.judge(Answer(200, cut), PLAIN)
    assert isinstance(end, CallFailure)
    assert (end.fault, end.kind) == (Fault.SERVER_OR_LINE, "backend_reply_invalid")


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"\xff"}',
        b'{"a":"x\ny"}',
        b"[1]",
        b"",
        b"null",
        b'{"a":1}x',
        b'{"a":' + b"[" * 100_000,
        b'{"choices":[{"finish_reason":"erro\xf4"}]}',
    ],
)
def test_anything_but_a_json_object_is_invalid(body: bytes) -> None:
    """Bad UTF-8, raw control characters, arrays, nothing, endless depth."""
    assert isinstance(request_codec.judge(Answer(200, body), PLAIN), CallFailure)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, (5, 0, 7, 0)),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            (5, 3, 7, 2),
        ),
        ({"prompt_tokens": 9, "total_tokens": 9}, (9, 0, 0, 0)),
        (
            {
                "input_tokens": 4,
                "input_tokens_details": {"cached_tokens": 1},
                "output_tokens": 6,
                "output_tokens_details": {"reasoning_tokens": 5},
            },
            (4, 1, 6, 5),
        ),
        (None, (0, 0, 0, 0)),
        ("much", None),
        ({"prompt_tokens": -1, "completion_tokens": 1 << 60}, None),
        ({"prompt_tokens": 1.5}, None),
        ({"prompt_tokens": 1.0}, (1, 0, 0, 0)),
        ({"prompt_tokens": "12"}, None),
        ({"prompt_tokens": True}, None),
        ({"prompt_tokens": []}, None),
        ({"prompt_tokens": {"a": 1}}, None),
        ({"prompt_tokens": 5, "completion_tokens": None}, (5, 0, 0, 0)),
        ({"prompt_tokens": 1 << 28, "completion_tokens": 0}, (1 << 28, 0, 0, 0)),
        ({"prompt_tokens": (1 << 28) + 1, "completion_tokens": 0}, None),
        ({"prompt_tokens": 1 << 32}, None),
        ({"prompt_tokens": 1 << 53}, None),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}}, (5, 0, 0, 0)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": -6}}, (5, 0, 0, 0)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": "x"}}, (5, 0, 0, 0)),
        ({"prompt_tokens": 5, "prompt_tokens_details": 3}, (5, 0, 0, 0)),
        ([], None),
        ({}, (0, 0, 0, 0)),
    ],
)
def test_token_counts_of_each_endpoint(usage: object, tokens: request_codec.Tokens) -> None:
    """Chat, embeddings and responses say it in their own words; what cannot be is not known."""
    end = request_codec.judge(Answer(200, orjson.dumps({"usage": usage})), PLAIN)
    assert isinstance(end, Success)
    assert end.tokens == tokens


NUMBERS = (
    st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.none()
    | st.booleans()
    | st.text()
)
COUNTS = st.dictionaries(
    st.sampled_from(["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens"]),
    NUMBERS,
)
DETAILS = st.dictionaries(
    st.sampled_from(["prompt_tokens_details", "output_tokens_details"]),
    st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens"]), NUMBERS) | NUMBERS,
)


@given(
    usage=st.builds(lambda counts, details: {**counts, **details}, COUNTS, DETAILS) | NUMBERS | st.lists(NUMBERS)
)
def test_impossible_counts_lose_no_line(usage: object) -> None:
    """And each billed count fits into every column and sum."""
    body = json.dumps({"usage": usage, "choices": []}).encode()
    end = request_codec.judge(Answer(200, body), PLAIN)
    assert isinstance(end, Success)
    assert end.body == body
    read, cached, written, reasoning = end.tokens or (0, 0, 0, 0)
    assert 0 <= cached <= read <= TOKENS_MAX
    assert 0 <= reasoning <= written <= TOKENS_MAX
    text, mark = request_codec.result("batch_x", 0, b'"a"', end, ONE_CALL)
    headers = codec.lines_headers("batch_x", [mark])
    assert codec.lines_marks(headers, len(text)) == ("batch_x", [mark])


@pytest.mark.parametrize("number", [b"1e999", b"-0", b"1" * 5000, b"[" * 500 + b"]" * 500, b"1.0e3"])
def test_large_numbers_pass_through(number: bytes) -> None:
    """The line keeps its answer; odd token counts are unknown or 0."""
    end = request_codec.judge(Answer(200, b'{"usage":{"prompt_tokens":%b}}' % number), PLAIN)
    assert isinstance(end, Success)
    assert end.tokens in (None, (0, 0, 0, 0), (1000, 0, 0, 0))


def line_of(outcome: Answer | FailureKind, endpoint: str = CHAT) -> dict[str, Any]:
    """The error line of a call that failed."""
    end = request_codec.judge(outcome, endpoint)
    assert isinstance(end, CallFailure)
    text, mark = request_codec.failed(BATCH, 0, b'"a"', end, Call(10, b'"gpu-1"', 0.5))
    assert (mark.failed, mark.usage, mark.size, mark.attempts) == (True, (0, 0, 0, 0), len(text), 10)
    line: dict[str, Any] = json.loads(text)
    return line


@pytest.mark.parametrize("status", [302, 400, 401, 404, 422, 429, 500, 503])
def test_an_error_line_quotes_the_server(status: int) -> None:
    """With its status; a JSON object with an `error` as it is, anything else as a message in OpenAI's shape."""
    own = {"error": {"message": "Previous response with id 'x' not found.", "code": 404}, "n": 10**50}
    for body, expected in (
        (json.dumps(own).encode(), own),
        (b"\xef\xbb\xbf" + json.dumps(own).encode(), own),
        (b" prompt is too long: 9000 > 8192\n", "prompt is too long: 9000 > 8192"),
        (b'["no"]', '["no"]'),
        (b"<html>" + b"x" * 100_000, "<html>" + "x" * (server_error.QUOTED_BYTES_MAX - 6) + "…"),
        ("zu groß".encode("latin-1"), "zu gro\ufffd"),
        (b"", f"The backend answered with status {status}."),
    ):
        line = line_of(Answer(status, body, "abc"))
        assert line["error"] is None
        assert (line["response"]["status_code"], line["response"]["request_id"]) == (status, "abc")
        said = line["response"]["body"]
        assert said == expected if isinstance(expected, dict) else said["error"]["message"] == expected
        assert isinstance(expected, dict) or set(said["error"]) == {"message", "type", "param", "code"}


def test_our_error_is_beside_the_servers_answer() -> None:
    """And takes its place nowhere; where nothing was said, the line says so."""
    end = request_codec.judge(Answer(404, b'{"detail":"Not Found"}'), CHAT)
    assert isinstance(end, CallFailure)
    line = json.loads(request_codec.failed(BATCH, 0, b'"a"', request_codec.unserved(end, CHAT), ONE_CALL)[0])
    error = {"message": "Not Found", "type": "backend_error", "param": None, "code": None}
    assert line["response"]["body"] == {"detail": "Not Found", "error": error}
    assert line["error"]["code"] == "endpoint_not_served"
    page = line_of(Answer(200, b"<html>busy</html>"))
    assert (page["response"]["status_code"], page["error"]["code"]) == (200, "backend_reply_invalid")
    assert page["response"]["body"]["error"]["message"] == "<html>busy</html>"
    for broken in request_codec.UNANSWERED:
        line = line_of(broken)
        assert line["response"] is None
        assert line["error"]["code"] == broken.value
        assert line["error"]["message"]
        assert ("tidemill" in line) is (broken not in NOT_MADE)


@pytest.mark.parametrize(
    ("location", "end"),
    [
        (
            "http://gpu-1:8000/v1/x/?key=secret#a",
            " and redirects to http://gpu-1:8000/v1/x/, which Tidemill does not follow.",
        ),
        ("/v1/x", " and redirects to /v1/x, which Tidemill does not follow."),
        ("https://user:secret@gpu-1/", "."),
        ("http://gpu-1/\xff", "."),
        ("/" + "x" * 300, "."),
        (None, "."),
    ],
)
def test_a_redirect_says_where_to(location: str | None, end: str) -> None:
    """Usually to the address that the settings should have: a slash too many, or http in place of https."""
    found = request_codec.judge(Answer(307, b"", location=location), CHAT)
    assert isinstance(found, CallFailure)
    assert found.message == f"The backend answered with status 307{end}"
    assert orjson.loads(found.body)["error"]["message"] == found.message


FLAT = b'{"object":"error", "message":"too long","type":"BadRequestError","param":"messages","code":400,"n":1.10}'


@pytest.mark.parametrize(
    ("body", "message", "kind", "kept"),
    [
        (FLAT, "too long", "BadRequestError", b'"n":1.10'),
        (b'{"detail":"Not Found"}', "Not Found", "backend_error", b'"detail":"Not Found"'),
        (b'{"detail":[{"loc":["body"],"msg":"field required"}]}', "field required", "backend_error", b'"loc"'),
        (b'{"error":null,"message":"busy"}', "busy", "backend_error", b'"message":"busy"'),
        (b'{"reason":7}', '{"reason":7}', "backend_error", b'"reason":7'),
        (b"{}", "The backend answered with status 400.", "backend_error", b""),
    ],
)
def test_a_body_without_an_error_gets_one(body: bytes, message: str, kind: str, kept: bytes) -> None:
    """In OpenAI's shape, beside the server's own fields, so that clients find the reason where OpenAI has it."""
    end = request_codec.judge(Answer(400, body), CHAT)
    assert isinstance(end, CallFailure)
    param = "messages" if kind == "BadRequestError" else None
    assert orjson.loads(end.body)["error"] == {"message": message, "type": kind, "param": param, "code": None}
    assert kept in end.body


@pytest.mark.parametrize("body", [b'{"error":"no model","error_type":"x"}', b'{"error":{"code":1e999}}'])
def test_an_error_of_a_server_stays_as_it_is(body: bytes) -> None:
    """Whatever it has."""
    end = request_codec.judge(Answer(400, body), CHAT)
    assert isinstance(end, CallFailure)
    assert end.body is body


FAULTY: list[tuple[object, int | None, str]] = [
    ({"error": {"message": "upstream", "code": 502}}, 502, "upstream"),
    ({"error": {"message": "slow down", "code": "429"}, **WELL}, 429, "slow down"),
    ({"error": {"message": "bad", "type": "invalid_request_error", "code": None}}, None, "bad"),
    ({"error": {"message": "bad", "status": 400, "code": "context_length_exceeded"}}, 400, "bad"),
    ({"error": {"message": "bad", "code": 7}}, None, "bad"),
    ({"error": "no engine"}, None, "no engine"),
    ({"error": ["no", "engine"]}, None, '["no","engine"]'),
    ({"error": {"message": "x" * 5000}}, None, "x" * 1000),
    (
        {
            "choices": [
                {"finish_reason": "stop"},
                {"finish_reason": "error", "error": {"code": 429, "message": "m"}},
            ]
        },
        429,
        "m",
    ),
    ({"choices": []}, 200, "The reply has no choices."),
    ({"choices": None}, 200, "The reply has no choices."),
    ({"id": "x"}, 200, "The reply has no choices."),
]


@pytest.mark.parametrize(("content", "status", "words"), FAULTY)
def test_a_failure_with_status_200_is_a_failure(content: object, status: int | None, words: str) -> None:
    """It is taken as the status in it says, and ends as an error line with the server's words, unbilled."""
    body = orjson.dumps(content)
    end = request_codec.judge(Answer(200, body), CHAT)
    assert isinstance(end, CallFailure)
    assert (end.kind, end.status, end.message, end.body) == ("error_in_reply", status, words, body)
    as_status = request_codec.judge(Answer(status if status not in {None, 200} else 400, b"{}"), CHAT)
    assert isinstance(as_status, CallFailure)
    assert (end.fault, end.is_full) == (as_status.fault, as_status.is_full)
    line = line_of(Answer(200, body))
    assert line["error"] == {"code": "error_in_reply", "message": words}
    assert line["response"]["body"] == content


@pytest.mark.parametrize(
    "content",
    [
        WELL,
        {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "error"}, "finish_reason": "length"}], "error": None},
        {"choices": [{"message": {"content": '"error"'}, "finish_reason": None}], "error": {}},
        {"choices": ["odd", "error"]},
    ],
)
def test_a_success_with_error_words_is_a_success(content: object) -> None:
    """A reply may be empty, and may speak of errors."""
    assert isinstance(request_codec.judge(Answer(200, orjson.dumps(content)), CHAT), Success)
    assert isinstance(request_codec.judge(Answer(200, orjson.dumps(content) + b" "), "/v1/completions"), Success)


def test_each_endpoint_has_its_own_list() -> None:
    """Embeddings have data; a response may have no output."""
    for body in (b'{"data":[]}', b'{"data":[ \n]}', b'{"data":{}}', b'{"choices":[{}]}'):
        assert isinstance(request_codec.judge(Answer(200, body), "/v1/embeddings"), CallFailure)
    assert isinstance(request_codec.judge(Answer(200, b'{"data":[{"embedding":[1]}]}'), "/v1/embeddings"), Success)
    assert isinstance(request_codec.judge(Answer(200, b'{"output":[],"error":null}'), "/v1/responses"), Success)
    failed = request_codec.judge(
        Answer(200, b'{"status":"failed","error":{"code":"server_error"}}'), "/v1/responses"
    )
    assert isinstance(failed, CallFailure)


@given(st.text() | st.none())
def test_a_malformed_request_id_is_replaced(given_id: str | None) -> None:
    """What a backend sends is taken only if it can do no harm."""
    name = request_codec.request_id(given_id, BATCH, 3, 2)
    assert name in {given_id, f"{BATCH}-3-2"}
    odd = request_codec.sent_id(f"{given_id}\r\n", 3, 2)
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in odd)
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in name)


@given(st.integers(0, 80_000))
def test_retry_after_in_seconds_and_as_a_date(seconds: int) -> None:
    """Both forms mean the same; a date in the past means now."""
    now = 1_800_000_000.0
    date = format_datetime(datetime.fromtimestamp(now + seconds, UTC), usegmt=True)
    assert request_codec.wait_seconds(str(seconds), now) == seconds
    assert request_codec.wait_seconds(date, now) == seconds
    assert request_codec.wait_seconds(date, now + 100_000) == 0


@given(st.text())
def test_a_malformed_retry_after_is_ignored(text: str) -> None:
    """It never raises, and never asks for more than a day."""
    wait = request_codec.wait_seconds(text, 0.0)
    assert wait is None or 0 <= wait <= 86_400


@pytest.mark.parametrize("form", ['{"usage":%s}', '{"choices":%s}', '{"error":{"message":%s}}', "%s"])
def test_a_reply_of_any_depth_is_judged(form: str) -> None:
    """The decoder meets its own bound in each place at another depth, and that is never the fault of the line."""
    for depth in (*range(900, 1050), 100_000):
        body = (form % ("[" * depth + "]" * depth)).encode()
        assert isinstance(request_codec.judge(Answer(200, body), CHAT), CallFailure | Success)
