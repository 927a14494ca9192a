"""The token counts of each endpoint's replies, as the references of their servers show them."""

from types import NoneType
from typing import Any

import orjson
import pytest

from tidemill.processors.calls import request_codec
from tidemill.processors.calls.request_codec import Success
from tidemill.processors.failures import Answer, CallFailure, FailureKind, Fault
from tidemill.schemas.endpoints import ENDPOINTS

VLLM = {"id": "x-1", "object": "list", "created": 1, "model": "m"}
VLLM_USAGE = {"prompt_tokens": 56, "total_tokens": 56, "completion_tokens": 0, "prompt_tokens_details": None}
RANKED = {
    "id": "rerank-1",
    "results": [{"index": 1, "relevance_score": 0.99}, {"index": 0, "relevance_score": 0.1}],
}
CLAUDE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
}
TURN = {"input_tokens": 2095, "output_tokens": 503}
DETAILED = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
REPLIES: list[tuple[str, dict[str, Any], tuple[int, int, int, int] | None]] = [
    ("/v1/moderations", {"id": "modr-1", "model": "m", "results": [{"flagged": False}]}, (0, 0, 0, 0)),
    ("/v1/images/generations", {"created": 1, "data": [{"url": "https://x/1.png"}]}, (0, 0, 0, 1)),
    (
        "/v1/images/generations",
        {
            "created": 1,
            "data": [{"b64_json": "aGk="}],
            "usage": {
                "total_tokens": 100,
                "input_tokens": 50,
                "output_tokens": 50,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            },
        },
        (50, 0, 50, 1),
    ),
    ("/v1/rerank", {**RANKED, "usage": {"prompt_tokens": 56, "total_tokens": 56}}, (56, 0, 0, 0)),
    ("/v1/rerank", {**RANKED, "usage": {"total_tokens": 815}}, (815, 0, 0, 0)),
    (
        "/v1/rerank",
        {**RANKED, "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}},
        (0, 0, 0, 0),
    ),
    (
        "/v1/rerank",
        {
            **RANKED,
            "meta": {
                "billed_units": {"input_tokens": 9, "output_tokens": 0, "search_units": 1},
                "tokens": {"input_tokens": 71.0, "output_tokens": 0},
            },
        },
        (71, 0, 0, 0),
    ),
    ("/v1/rerank", {**RANKED, "meta": {"billed_units": {"input_tokens": 9}}}, (9, 0, 0, 0)),
    ("/v1/rerank", {**RANKED, "meta": "none"}, (0, 0, 0, 0)),
    ("/v1/rerank", {**RANKED, "meta": {"tokens": {"input_tokens": -1}}}, None),
    (
        "/v1/score",
        {**VLLM, "data": [{"index": 0, "object": "score", "score": 1.0}], "usage": VLLM_USAGE},
        (56, 0, 0, 0),
    ),
    (
        "/v1/classify",
        {**VLLM, "data": [{"index": 0, "label": "a", "probs": [0.9], "num_classes": 1}], "usage": VLLM_USAGE},
        (56, 0, 0, 0),
    ),
    ("/v1/pooling", {**VLLM, "data": [{"index": 0, "data": [[0.1], [0.2]]}], "usage": VLLM_USAGE}, (56, 0, 0, 0)),
    ("/v1/pooling", {"request_id": None, "created_at": 1, "data": {"made": "by a plugin"}}, (0, 0, 0, 0)),
    ("/v1/images/generations", {"data": [{"url": "a,b"}, {"b64_json": "[]"}]}, (0, 0, 0, 2)),
    ("/v1/images/edits", {"data": [{}], "usage": {"input_tokens": 50, "output_tokens": 9}}, (50, 0, 9, 1)),
    ("/v1/images/edits", {"data": [{}], "usage": {"input_tokens": -1}}, None),
    (
        "/v1/audio/transcriptions",
        {"text": "x", "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 3, "seconds": 9}},
        (14, 0, 3, 0),
    ),
    ("/v1/audio/transcriptions", {"text": "x", "usage": {"type": "duration", "seconds": 8.01}}, (0, 0, 0, 9)),
    ("/v1/audio/translations", {"text": "x", "usage": {"type": "duration", "seconds": 60}}, (0, 0, 0, 60)),
    ("/v1/audio/translations", {"text": "x", "duration": "12.5", "segments": []}, (0, 0, 0, 13)),
    # Not reported, so not billed.
    ("/v1/audio/transcriptions", {"text": "x"}, None),
    ("/v1/audio/transcriptions", {"text": "x", "duration": -1}, None),
    ("/v1/audio/transcriptions", {"text": "x", "duration": 1e300}, None),
    ("/v1/audio/transcriptions", {"text": "x", "usage": {"seconds": [1]}, "duration": 3}, None),
    ("/v1/videos", {"id": "video-1", "object": "video", "status": "queued", "error": None}, (0, 0, 0, 0)),
    ("/v1/messages", {**CLAUDE, "usage": TURN}, (2095, 0, 503, 0)),
    (
        "/v1/messages",
        {
            **CLAUDE,
            "usage": {
                **TURN,
                "cache_creation_input_tokens": 2051,
                "cache_read_input_tokens": 1000,
                "cache_creation": {"ephemeral_5m_input_tokens": 2051, "ephemeral_1h_input_tokens": 0},
                "service_tier": "batch",
            },
        },
        (5146, 1000, 503, 0),
    ),
    (
        "/v1/messages",
        {**CLAUDE, "content": [], "usage": {**TURN, "cache_read_input_tokens": None}},
        (2095, 0, 503, 0),
    ),
    ("/v1/messages", {**CLAUDE, "usage": {**TURN, "cache_read_input_tokens": -1}}, None),
    # A proxy may add the fields of caches to a count that has these tokens already.
    (
        "/v1/chat/completions",
        {"choices": [{}], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "cache_read_input_tokens": 5}},
        (7, 0, 2, 0),
    ),
    ("/v1/chat/completions", {"choices": [{}], "usage": {"total_tokens": 7}}, (0, 0, 0, 0)),
    # SGLang's reasoning tokens.
    (
        "/v1/chat/completions",
        {"choices": [{}], "usage": {"prompt_tokens": 5, "completion_tokens": 70, "reasoning_tokens": 60}},
        (5, 0, 70, 60),
    ),
    # A field of another type takes nothing from the others, and null is as good as absent.
    ("/v1/chat/completions", {"choices": [{}], "usage": {**DETAILED, "total_tokens": "15"}}, (10, 8, 5, 3)),
    ("/v1/chat/completions", {"choices": [{"finish_reason": 1}], "usage": DETAILED}, (10, 8, 5, 3)),
    ("/v1/chat/completions", {"choices": [{"finish_reason": 1}], "usage": None}, (0, 0, 0, 0)),
    (
        "/v1/rerank",
        {**RANKED, "usage": None, "choices": 3, "meta": {"tokens": {"input_tokens": 7}}},
        (7, 0, 0, 0),
    ),
    ("/v1/audio/transcriptions", {"text": "x", "usage": {"seconds": None}, "duration": 8}, (0, 0, 0, 8)),
    ("/v1/chat/completions", {"choices": [{}], "meta": {"tokens": {"input_tokens": 7}}}, (0, 0, 0, 0)),
]


@pytest.mark.parametrize(("path", "body", "tokens"), REPLIES)
def test_the_tokens_of_a_reply(path: str, body: dict[str, Any], tokens: tuple[int, int, int, int] | None) -> None:
    """Input, cached input, output, and reasoning or units; None for impossible counts and unreported audio."""
    end = request_codec.judge(Answer(200, orjson.dumps(body)), path)
    assert isinstance(end, Success)
    assert end.tokens == tokens


@pytest.mark.parametrize("path", [path for path, entry in ENDPOINTS.items() if entry.reply.filled])
def test_a_reply_without_its_list_is_a_failure(path: str) -> None:
    """Empty, absent, or of another type."""
    name = ENDPOINTS[path].reply.filled
    for body in ({}, {name: []}, {name: "text"}):
        end = request_codec.judge(Answer(200, orjson.dumps(body)), path)
        assert isinstance(end, CallFailure)
        assert (end.kind, end.message) == ("error_in_reply", f"The reply has no {name}.")


@pytest.mark.parametrize(
    ("path", "field"), [(path, name) for path, entry in ENDPOINTS.items() for name in entry.reply.fields]
)
def test_a_reply_without_a_field_that_it_needs_is_a_failure(path: str, field: str) -> None:
    """Whatever else it has; an error of vLLM's old shape names its status."""
    if NoneType not in ENDPOINTS[path].reply.fields[field]:
        assert isinstance(request_codec.judge(Answer(200, orjson.dumps({field: None})), path), CallFailure)
    for body, status in (
        ({}, 200),
        ({"detail": "Internal"}, 200),
        ({"object": "error", "message": "boom", "code": 500}, 500),
    ):
        end = request_codec.judge(Answer(200, orjson.dumps(body)), path)
        assert isinstance(end, CallFailure)
        assert (end.kind, end.message, end.status) == ("error_in_reply", f"The reply has no {field}.", status)


RESPONSES = "/v1/responses"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", CLAUDE | {"content": None}),
        (RESPONSES, {"object": "response", "status": "incomplete", "output": None}),
        ("/v1/pooling", {"data": None}),
    ],
)
def test_an_answer_may_have_null_in_place_of_its_content(path: str, body: dict[str, Any]) -> None:
    """So Ollama ends an empty turn."""
    assert isinstance(request_codec.judge(Answer(200, orjson.dumps(body)), path), Success)


BROKEN_OFF = FailureKind.BROKEN_OFF, 200


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"status": "completed"}, None),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, None),
        ({}, None),
        ({"status": None}, None),
        ({"status": "queued", "usage": None}, (FailureKind.UNSUPPORTED_REPLY, 200)),
        ({"status": "in_progress"}, (FailureKind.UNSUPPORTED_REPLY, 200)),
        ({"status": 7}, (FailureKind.UNSUPPORTED_REPLY, 200)),
        ({"status": "cancelled"}, BROKEN_OFF),
        ({"status": "cancelled", "usage": {"input_tokens": "odd"}}, BROKEN_OFF),
        ({"status": "failed", "error": None}, BROKEN_OFF),
        ({"status": "failed", "error": {"code": "server_error", "message": "x"}}, BROKEN_OFF),
        ({"status": "failed", "error": {"code": "rate_limit_exceeded"}}, (FailureKind.ERROR_IN_REPLY, 429)),
        ({"status": "failed", "error": {"code": "invalid_prompt"}}, (FailureKind.ERROR_IN_REPLY, None)),
    ],
)
def test_only_a_response_that_ended_is_an_answer(
    fields: dict[str, Any], end: tuple[str, int | None] | None
) -> None:
    """A response that still runs can never be delivered; one that the server broke off is asked again."""
    body = {"id": "resp_1", "object": "response", "output": [], "error": None, **fields}
    found = request_codec.judge(Answer(200, orjson.dumps(body)), RESPONSES)
    assert end == (None if isinstance(found, Success) else (found.kind, found.status))
    if isinstance(found, CallFailure):
        is_retried = found.kind is FailureKind.BROKEN_OFF or found.status == 429
        assert found.fault is (Fault.SERVER_OR_LINE if is_retried else Fault.LINE)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("reason", ["error", "abort", "cancelled", "timeout"])
def test_an_answer_that_the_server_broke_off_is_asked_again(path: str, reason: str) -> None:
    """Also if it came as a stream of events."""
    kind = "chat.completion.chunk" if path == "/v1/chat/completions" else "text_completion"
    choices = [{"index": 0, "text": "The t", "delta": {"content": "The t"}, "finish_reason": reason}]
    stream = b"data: " + orjson.dumps({"object": kind, "choices": choices}) + b"\n\ndata: [DONE]\n\n"
    for body in (orjson.dumps({"choices": choices}), stream):
        end = request_codec.judge(Answer(200, body), path)
        assert isinstance(end, CallFailure)
        assert (end.kind, end.status, end.fault) == (*BROKEN_OFF, Fault.SERVER_OR_LINE)


def test_the_status_that_a_choice_names_counts() -> None:
    """Its fault need not be the server's."""
    choice = {"index": 0, "finish_reason": "error", "error": {"message": "no", "code": 403}}
    end = request_codec.judge(Answer(200, orjson.dumps({"choices": [choice]})), "/v1/chat/completions")
    assert isinstance(end, CallFailure)
    assert (end.kind, end.status, end.message) == (FailureKind.ERROR_IN_REPLY, 403, "no")


@pytest.mark.parametrize("more", [{}, {"stop_reason": None}])
def test_a_message_without_a_stop_reason_is_asked_again(more: dict[str, Any]) -> None:
    """So vLLM ends one if its engine aborts."""
    body = {name: value for name, value in CLAUDE.items() if name != "stop_reason"} | more
    end = request_codec.judge(Answer(200, orjson.dumps(body)), "/v1/messages")
    assert isinstance(end, CallFailure)
    assert (end.kind, end.status) == BROKEN_OFF
    assert end.message == "The server broke its answer off: The reply has no stop_reason."


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"type": "server_error", "code": None}, 500),
        ({"type": "tokens", "code": "rate_limit_exceeded"}, 429),
        ({"type": "requests"}, 429),
        ({"type": "invalid_request_error", "code": "context_length_exceeded"}, None),
    ],
)
def test_errors_of_openais_shape(error: dict[str, Any], status: int | None) -> None:
    """A 2xx may have a transient error, which is retried, or a verdict on the request, which is not."""
    end = request_codec.judge(Answer(200, orjson.dumps({"error": {"message": "x", **error}})), "/v1/completions")
    assert isinstance(end, CallFailure)
    assert (end.status, end.fault) == (status, Fault.LINE if status is None else Fault.SERVER_OR_LINE)


@pytest.mark.parametrize(
    ("kind", "status", "fault", "is_overload"),
    [
        ("overloaded_error", 529, Fault.SERVER_OR_LINE, True),
        ("rate_limit_error", 429, Fault.SERVER_OR_LINE, True),
        ("api_error", 500, Fault.SERVER_OR_LINE, False),
        ("authentication_error", 401, Fault.ACCESS_OR_LINE, False),
    ],
)
def test_errors_of_anthropics_shape(kind: str, status: int, fault: Fault, is_overload: bool) -> None:
    """A full server refuses with 529, as others do with 503; a 2xx with an error has the status of its type."""
    body = orjson.dumps({"type": "error", "error": {"type": kind, "message": "Overloaded"}, "request_id": "req_1"})
    for answered in (status, 200):
        end = request_codec.judge(Answer(answered, body), "/v1/messages")
        assert isinstance(end, CallFailure)
        assert (end.status, end.fault, end.is_overload, end.body) == (status, fault, is_overload, body)
