"""Replies that are not plain JSON: delivered where other clients deliver them, else ended with the reason."""

import contextlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.calls import event_stream, request_codec
from tidemill.processors.calls.request_codec import Success
from tidemill.processors.failures import Answer, CallFailure, FailureKind, Fault
from tidemill.schemas.jsonl.line import Call

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
texts = st.text(st.characters(codec="utf-8"), max_size=20)


def delivered(body: bytes, endpoint: str = CHAT) -> dict[str, Any]:
    """The body of the line that comes of a reply; every strict reader takes it."""
    end = request_codec.judge(Answer(200, body), endpoint)
    assert isinstance(end, Success), end
    text, _ = request_codec.result("batch_x", 0, b'"a"', end, Call(1, b'"gpu-1"', 0.5))
    assert len(text.decode().splitlines()) == 1
    found: dict[str, Any] = orjson.loads(text)["response"]["body"]
    return found


def reply(content: str) -> bytes:
    """A reply of one choice, whose message is this JSON text."""
    return b'{"choices":[{"message":%b}]}' % content.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ("[NaN, Infinity,-Infinity]", [None, None, None]),
        (r'{"a":"NaN","b\"":NaN,"c":"-Infinity\\"}', {"a": "NaN", 'b"': None, "c": "-Infinity\\"}),
        (
            r'"half \ud83d, low \udE00, whole \ud83d\ude00, none \\ud83d"',
            "half \ufffd, low \ufffd, whole 😀, none \\ud83d",
        ),
        ('"as bytes \ud83d!"', "as bytes \ufffd!"),
        ('"two halves \ud83d\ude00"', "two halves 😀"),
        ('"one\u2028two\u2029three\u0085four"', "one\u2028two\u2029three\u0085four"),
    ],
)
def test_replies_that_other_clients_accept_are_delivered(message: str, value: object) -> None:
    """At the first try, and as JSON."""
    assert delivered(reply(message)) == {"choices": [{"message": value}]}
    assert delivered(b"\xef\xbb\xbf" + reply(message)) == {"choices": [{"message": value}]}


@pytest.mark.parametrize("end", ["NaN", "NaN\\", 'NaN"'])
def test_a_string_without_an_end_is_read_once(end: str) -> None:
    """Not once more from each of its quotes, which would take hours."""
    body = b'{"choices":[{"message":"' + b'\\"' * 400_000 + end.encode()
    assert isinstance(request_codec.judge(Answer(200, body), CHAT), CallFailure)


@pytest.mark.parametrize("number", ["1" * 5000, "-0", "1e999", "0.1" + "0" * 400, "1E-400", "[" * 500 + "]" * 500])
def test_numbers_are_kept_as_they_were_written(number: str) -> None:
    """Whatever a reader makes of them."""
    end = request_codec.judge(Answer(200, reply(number)), CHAT)
    assert isinstance(end, Success)
    assert end.body == reply(number)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"a":' + b"[" * 100_000,
        b"data: {}\n\n",
        b"data: x\n\n",
        b":\n",
    ],
)
def test_replies_that_no_retry_would_change_end_the_line(body: bytes) -> None:
    """With a reason."""
    end = request_codec.judge(Answer(200, body), CHAT)
    assert isinstance(end, CallFailure)
    assert (end.fault, end.kind) == (Fault.LINE, "backend_reply_unsupported")
    compressed = request_codec.judge(Answer(200, b"", encoding="br"), CHAT)
    assert isinstance(compressed, CallFailure)
    assert (compressed.fault, compressed.kind) == (Fault.LINE, "backend_reply_unsupported")
    assert "br" in compressed.message


def stream(*chunks: object, end: str = "\n") -> bytes:
    """Server-sent events; the last one ends the stream."""
    data = [f"data: {json.dumps(chunk)}{end}{end}" for chunk in chunks]
    return f": a comment{end}{''.join(data)}data: [DONE]{end}{end}".encode()


def chunk(delta: object, finish: str | None = None, index: int = 0, **more: object) -> dict[str, Any]:
    """A chunk of a chat completion."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "choices": [choice], "usage": None, **more}


@given(
    contents=st.lists(st.lists(texts, min_size=1, max_size=5), min_size=1, max_size=3),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_a_stream_of_a_chat_is_merged(contents: list[list[str]], end: str) -> None:
    """As if it had not been one, with the tokens that its last chunk counts."""
    chunks = [chunk({"role": "assistant", "content": ""}, index=n) for n in range(len(contents))]
    chunks += [chunk({"content": text}, index=n) for n, pieces in enumerate(contents) for text in pieces]
    chunks += [chunk({}, "stop", n) for n in range(len(contents))]
    body = stream(*chunks, {**chunk({}), "choices": [], "usage": USAGE}, end=end)
    assert delivered(body) == {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "choices": [
            {
                "index": n,
                "message": {"role": "assistant", "content": "".join(pieces)},
                "logprobs": None,
                "finish_reason": "stop",
            }
            for n, pieces in enumerate(contents)
        ],
        "usage": USAGE,
    }
    end_of_it = request_codec.judge(Answer(200, body), CHAT)
    assert isinstance(end_of_it, Success)
    assert end_of_it.tokens == (3, 0, 2, 0)


def test_audio_is_merged() -> None:
    """Its data and its words, piece by piece."""
    pieces = [
        {"id": "a", "data": "AAAA", "transcript": "he"},
        {"data": "BBBB", "transcript": "llo", "expires_at": 9},
    ]
    (choice,) = delivered(stream(*(chunk({"audio": piece}) for piece in pieces), chunk({}, "stop")))["choices"]
    audio = {"id": "a", "data": "AAAABBBB", "transcript": "hello", "expires_at": 9}
    assert choice["message"] == {"role": "assistant", "content": None, "audio": audio}


def test_tool_calls_and_probabilities_are_merged() -> None:
    """Calls by their numbers, which the whole does not have; lists grow."""
    token = {"token": "a", "logprob": -0.5}
    first = {"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
    second = {"index": 1, "id": "c1", "type": "function", "function": {"name": "g", "arguments": ""}}
    # Some servers send the fields of a call again, empty.
    rest = {"index": 0, "id": "", "function": {"name": "", "arguments": ":1}"}}
    pieces = [
        chunk({"tool_calls": [first]}),
        chunk({"tool_calls": [second]}),
        chunk({"tool_calls": [rest]}, "tool_calls"),
    ]
    for piece in pieces:
        piece["choices"][0]["logprobs"] = {"content": [token], "refusal": None}
    (choice,) = delivered(stream(*pieces))["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
            {"id": "c1", "type": "function", "function": {"name": "g", "arguments": ""}},
        ],
    }
    assert choice["logprobs"] == {"content": [token] * 3, "refusal": None}


def test_streams_of_other_endpoints_are_merged() -> None:
    """Completions have text; the last event of a response is the whole."""
    pieces = [
        {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": finish}]}
        for text, finish in (("one ", None), ("two", "length"))
    ]
    assert delivered(stream(*pieces), "/v1/completions") == {
        "object": "text_completion",
        "choices": [{"index": 0, "text": "one two", "finish_reason": "length"}],
    }
    whole = {"object": "response", "output": [], "usage": {"input_tokens": 1, "output_tokens": 2}}
    typed = [
        {"type": "response.output_text.delta", "delta": "x"},
        {"type": "response.completed", "response": whole},
    ]
    assert delivered(stream(*typed), "/v1/responses") == whole


def test_an_error_in_a_stream_is_an_error_in_the_reply() -> None:
    """With the status that it names."""
    end = request_codec.judge(
        Answer(200, stream(chunk({"content": "x"}), {"error": {"message": "no", "code": 502}})), CHAT
    )
    assert isinstance(end, CallFailure)
    assert (end.kind, end.status, end.message) == ("error_in_reply", 502, "no")


def test_an_error_before_a_response_is_an_error_in_the_reply() -> None:
    """The first of both counts."""
    events = {"error": {"message": "no"}}, {"type": "response.completed", "response": {"status": "completed"}}
    end = request_codec.judge(Answer(200, stream(*events)), "/v1/responses")
    assert isinstance(end, CallFailure)
    assert (end.kind, end.message) == ("error_in_reply", "no")


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([b"data: ", b"{", b"}", b'"index":', b"[", b"]", b"1", b"\n"])).map(b"".join)
)
def test_merging_any_bytes_raises_no_other_error(data: bytes) -> None:
    """They are put together, or they are not."""
    with contextlib.suppress(event_stream.IncompleteError):
        assert isinstance(orjson.loads(event_stream.assembled(b"data:" + data)), dict)


def test_merging_takes_linear_time() -> None:
    """In time that grows as it does, and with a bound on its items."""
    long = stream(*[chunk({"content": "x" * 50})] * 20_000, chunk({}, "stop"))
    assert len(delivered(long)["choices"][0]["message"]["content"]) == 1_000_000
    wide = stream(*[chunk({}, "stop", index) for index in range(event_stream.ITEMS_MAX + 1)])
    with pytest.raises(event_stream.IncompleteError, match="more than"):
        event_stream.assembled(wide)


@pytest.mark.parametrize(
    ("body", "media_type", "kind"),
    [
        (b'[{"index":0,"score":0.9}]', "application/json", FailureKind.UNSUPPORTED_REPLY),
        (b"ID3\x04\xff\xfb", "Audio/MPEG; x=y", FailureKind.UNSUPPORTED_REPLY),
        (b"\x00\x01", "application/vnd.apache.arrow.stream", FailureKind.UNSUPPORTED_REPLY),
        (b"--a", "multipart/mixed; boundary=a", FailureKind.UNSUPPORTED_REPLY),
        # What a server or its gateway sends for a while, whatever type it has.
        (b' "hello"\n', None, FailureKind.INVALID_REPLY),
        (b"null", None, FailureKind.INVALID_REPLY),
        (b"0", "text/plain", FailureKind.INVALID_REPLY),
        (b"[ ]", "application/json", FailureKind.INVALID_REPLY),
        (b"maintenance", "application/octet-stream", FailureKind.INVALID_REPLY),
        (b'{"choices":[{"mess', "application/octet-stream", FailureKind.INVALID_REPLY),
        (b'{"choices":[{"mess', "application/vnd.api+json", FailureKind.INVALID_REPLY),
        (b"", "application/octet-stream", FailureKind.INVALID_REPLY),
        (b"", "audio/mpeg", FailureKind.INVALID_REPLY),
        (b'[{"index":0', "application/json", FailureKind.INVALID_REPLY),
        (b"", None, FailureKind.INVALID_REPLY),
        (b"<html>busy</html>", "text/html; charset=utf-8", FailureKind.INVALID_REPLY),
        (b"<Error/>", "application/xml", FailureKind.INVALID_REPLY),
        (b"busy", "", FailureKind.INVALID_REPLY),
        (b"busy", "no type", FailureKind.INVALID_REPLY),
    ],
)
def test_a_form_that_stays_the_same_ends_the_line(body: bytes, media_type: str | None, kind: FailureKind) -> None:
    """A cut reply, a text or a page may differ at the next call; a whole array, or sound, may not."""
    found = request_codec.judge(Answer(200, body, media_type=media_type), CHAT)
    assert isinstance(found, CallFailure)
    fault = Fault.LINE if kind is FailureKind.UNSUPPORTED_REPLY else Fault.SERVER_OR_LINE
    assert (found.kind, found.fault) == (kind, fault)
