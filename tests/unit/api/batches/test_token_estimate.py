"""Estimates of lines by the plain rule that the answer names."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.api.batches import token_estimate
from tidemill.api.batches.token_estimate import LONG_LINE_BYTES, MODELS_MAX, TokenEstimate, measured
from tidemill.schemas.jsonl.nesting import DEPTH_MAX

CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"


def reckoned(endpoint: str, *bodies: dict) -> TokenEstimate:
    found = TokenEstimate(endpoint)
    for body in bodies:
        found.add(orjson.dumps({"custom_id": "a", "body": {"model": "m"} | body}))
    return found


def said(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("endpoint", "body", "tokens"),
    [
        (CHAT, {"messages": said("x" * 40)}, 14),
        (CHAT, {"messages": said("x" * 41) + said("")}, 11 + 8),
        (CHAT, {"messages": said("größe € 四")}, 4 + 4),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 8}]}]}, 6),
        (CHAT, {"messages": [], "tools": [{"type": "function"}]}, 6),
        (CHAT, {"messages": None}, 0),
        (
            CHAT,
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {
                                "id": "call_1",
                                "type": "function",
                                "function": {"name": "look", "arguments": "x" * 36},
                            },
                        ],
                    }
                ]
            },
            4 + 10,
        ),
        (
            "/v1/messages",
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"q": "x" * 28}},
                        ],
                    }
                ]
            },
            4 + 10,
        ),
        ("/v1/responses", {"input": [{"type": "function_call", "name": "look", "arguments": "x" * 36}]}, 10),
        ("/v1/embeddings", {"messages": said("x" * 8)}, 2 + 4),
        ("/v1/completions", {"prompt_embeds": "A" * 800}, 0),
        ("/v1/completions", {"prompt": ["x" * 8, "x" * 8]}, 4),
        ("/v1/completions", {"prompt": [1, 2, 3]}, 3),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, 3),
        ("/v1/responses", {"input": "x" * 8, "instructions": "x" * 8}, 4),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x" * 8}]}]}, 2),
        (EMBED, {"input": ["x" * 400, "x" * 400]}, 200),
        ("/v1/moderations", {"input": "x" * 8}, 2),
        ("/v1/images/generations", {"prompt": "x" * 8}, 2),
        ("/v1/rerank", {"query": "x" * 8, "documents": ["x" * 4, {"text": "x" * 4}, "x" * 4]}, 3 * 2 + 3),
        ("/v1/score", {"text_1": "x" * 8, "text_2": ["x" * 4, "x" * 4]}, 2 * 2 + 2),
        ("/v1/score", {"queries": ["x" * 8, "x" * 4], "documents": ["x" * 4, "x" * 8]}, 6),
        ("/v1/score", {"data_1": "x" * 8}, 2),
        ("/v1/classify", {"input": ["x" * 8]}, 2),
        ("/v1/pooling", {"messages": said("x" * 8)}, 2 + 4),
        ("/v1/messages", {"messages": said("x" * 8), "max_tokens": 7, "system": "x" * 8}, 4 + 4),
    ],
)
def test_input_tokens(endpoint, body, tokens):
    """Four bytes of text a token, four tokens a message; token ids are counted."""
    found = reckoned(endpoint, body)
    assert (found.models["m"].lines, found.models["m"].input_tokens) == (1, tokens)


@pytest.mark.parametrize(
    ("endpoint", "body", "most"),
    [
        (CHAT, {"max_tokens": 10}, 10),
        (CHAT, {"max_completion_tokens": 10, "max_tokens": 5, "n": 3}, 30),
        (CHAT, {"max_tokens": "10"}, None),
        (CHAT, {"max_tokens": True}, None),
        (CHAT, {}, None),
        ("/v1/responses", {"max_output_tokens": 7}, 7),
        ("/v1/messages", {"max_tokens": 7}, 7),
        ("/v1/images/generations", {"prompt": "x"}, None),
        ("/v1/rerank", {"query": "x", "documents": ["x"]}, 0),
        ("/v1/completions", {"max_tokens": 10, "prompt": ["a", "b"]}, 20),
        ("/v1/completions", {"max_tokens": 10, "prompt": [1, 2, 3]}, 10),
        ("/v1/completions", {"max_tokens": 50, "prompt_embeds": ["AAAA"] * 8}, 400),
        ("/v1/completions", {"max_tokens": 10, "prompt": ["a", "b"], "prompt_embeds": "AAAA", "n": 2}, 60),
        (EMBED, {"input": "x"}, 0),
    ],
)
def test_the_maximum_of_output_tokens(endpoint, body, most):
    """The line's own maximum, for each of its answers; without one there is no bound."""
    found = reckoned(endpoint, body).models["m"]
    assert found.lines_without_max == (most is None)
    assert found.output_tokens_max == (most or 0)


def test_media_is_reported_but_not_counted():
    """An image of a megabyte is not a quarter of a million tokens."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (1 << 20)}}
    found = reckoned(CHAT, {"messages": [{"role": "user", "content": [image, {"type": "text", "text": "x" * 4}]}]})
    assert (found.models["m"].media, found.models["m"].input_tokens) == (1, 5)


def test_unreadable_lines():
    """They are counted apart, as are lines of more models than an estimate has."""
    found = TokenEstimate(CHAT)
    for line in (None, b"{", b"[]", b"{}", b'{"body":1}', b'{"body":{}}', b'{"body":{"model":7}}', b"[" * 5000):
        found.add(line)
    assert (found.unreadable, found.models) == (8, {})
    for number in range(MODELS_MAX + 5):
        found.add(b'{"body":{"model":"m%d"}}' % number)
    assert (found.unreadable, len(found.models)) == (8 + 5, MODELS_MAX)


@pytest.mark.parametrize("field", ["tools", "functions", "response_format", "text", "messages", "other"])
def test_a_line_with_too_many_levels_is_unreadable(field):
    """Ingest refuses it too."""
    found = TokenEstimate(CHAT)
    for levels, count in ((DEPTH_MAX - 2, 0), (DEPTH_MAX - 1, 1), (300, 2)):
        found.add(b'{"body":{"model":"m","%b":%b}}' % (field.encode(), b"[" * levels + b"]" * levels))
        assert found.unreadable == count
    assert found.models["m"].lines == 1


@pytest.mark.parametrize(
    "fields", [b'"model":"m","max_tokens":1e999', b'"model":"\xff"', b'"model":"m","n":1e999']
)
def test_a_line_of_very_many_parts_with_an_unreadable_field(fields, monkeypatch):
    """It is unreadable, as a shorter line is."""
    for size in (LONG_LINE_BYTES, 0):
        monkeypatch.setattr(token_estimate, "LONG_LINE_BYTES", size)
        monkeypatch.setattr(token_estimate, "PARTS_MAX", 50)
        found = TokenEstimate(CHAT)
        found.add(b'{"body":{%b,"messages":[%b[]]}}' % (fields, b"[]," * 60))
        assert (found.unreadable, found.models) == (1, {})


json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["content", "text", "n", "max_tokens"]), inner)
    ),
)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "input", "n", "max_tokens", "tools"]), json))
def test_any_body_is_counted_or_unreadable(body):
    """It raises nothing."""
    for endpoint in (CHAT, EMBED):
        found = reckoned(endpoint, body)
        assert found.models["m"].lines + found.unreadable == 1
    assert min(measured(body)) >= 0


def test_a_line_of_very_many_parts_counts_as_text(monkeypatch):
    """Parsing 8 MiB of them would take seconds; the length is a bound too."""
    monkeypatch.setattr(token_estimate, "LONG_LINE_BYTES", 0)
    monkeypatch.setattr(token_estimate, "PARTS_MAX", 50)
    found = TokenEstimate(CHAT)
    line = orjson.dumps({"body": {"model": "m", "max_tokens": 7, "n": 2, "messages": [[]] * 60}})
    for text in (line, line[:-1], b"[" * 2_000, orjson.dumps({"body": {"messages": [[]] * 60}})):
        found.add(text)
    assert found.unreadable == 3
    (lines, tokens, most) = (
        found.models["m"].lines,
        found.models["m"].input_tokens,
        found.models["m"].output_tokens_max,
    )
    assert (lines, tokens, most) == (1, -(-len(line) // 4), 14)
