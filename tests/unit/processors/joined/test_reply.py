"""Lines joined into one call get each its own reply back, whatever the server answers."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.processors.calls import reply as replies
from tidemill.processors.joined import inputs, reply
from tidemill.schemas.endpoints import ENDPOINTS

EMBEDDINGS = ENDPOINTS["/v1/embeddings"]
COMPLETIONS = ENDPOINTS["/v1/completions"]
texts = st.text(max_size=20)
tokens = st.lists(st.integers(0, 99_999), min_size=1, max_size=5)
counts = st.integers(0, 100_000)


def _line(body: dict[str, Any], *, is_ascii: bool = True) -> bytes:
    line = {"custom_id": "a", "method": "POST", "url": "", "body": body}
    return json.dumps(line, ensure_ascii=is_ascii, indent=1).encode(errors="replace")


def _asked(endpoint: Any, values: list[Any], **parameters: Any) -> list[inputs.Request]:
    found = [
        inputs.request(_line({"model": "m", **parameters, endpoint.prompt: value}), endpoint) for value in values
    ]
    assert None not in found
    return found


def _flat(values: list[Any]) -> list[Any]:
    """The inputs of several lines in one array."""
    return [one for value in values for one in (value if _is_many(value) else [value])]


def _is_many(value: Any) -> bool:
    return isinstance(value, list) and isinstance(value[0], str | list)


def _details(usage: dict[str, Any]) -> dict[tuple[str, ...], int]:
    found = {}
    for name, value in usage.items():
        if isinstance(value, dict):
            found |= {(name, inner): number for inner, number in value.items()}
        else:
            found[name,] = value
    return {name: value for name, value in found.items() if name[0] != "tidemill"}


@given(
    st.one_of(
        st.lists(st.one_of(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=8),
        st.lists(st.one_of(tokens, st.lists(tokens, min_size=1, max_size=3)), min_size=1, max_size=8),
    ),
    counts,
    st.randoms(use_true_random=False),
)
def test_each_line_gets_the_vectors_of_its_own_inputs(values: list[Any], used: int, chance: random.Random) -> None:
    """In any order of the items, each line has its own from index 0 on, and its part of the usage."""
    asked = _asked(EMBEDDINGS, values, dimensions=2, encoding_format="float")
    body = json.loads(inputs.body(asked, EMBEDDINGS))
    assert body == {"model": "m", "dimensions": 2, "encoding_format": "float", "input": _flat(values)}
    items = [{"object": "embedding", "index": n, "embedding": [repr(one)]} for n, one in enumerate(body["input"])]
    chance.shuffle(items)
    usage = {"prompt_tokens": used, "total_tokens": used}
    whole = {"object": "list", "data": items, "model": "m", "usage": usage}
    found = [json.loads(each) for each in reply.divided(json.dumps(whole).encode(), asked, EMBEDDINGS)]
    for value, own in zip(values, found, strict=True):
        wanted = [
            {"object": "embedding", "index": n, "embedding": [repr(one)]} for n, one in enumerate(_flat([value]))
        ]
        assert own == {"object": "list", "data": wanted, "model": "m", "usage": own["usage"]}
        assert own["usage"].pop("tidemill") == {"apportioned": True}
        assert own["usage"]["prompt_tokens"] == own["usage"]["total_tokens"]
    assert sum(own["usage"]["prompt_tokens"] for own in found) == used


@given(
    st.lists(st.one_of(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.tuples(counts, counts),
    st.floats(0, 1),
)
def test_each_line_gets_the_choices_of_its_own_prompts(
    values: list[Any], n: int, used: tuple[int, int], part: float
) -> None:
    """With `n` choices a prompt, in order; all counts add up, and no part of a count is larger than it."""
    asked = _asked(COMPLETIONS, values, n=n)
    given_, made = used
    choices = [
        {"index": number, "text": f"{number % n} of {one}", "finish_reason": "stop", "logprobs": None}
        for number, one in enumerate(one for one in _flat(values) for _ in range(n))
    ]
    usage = {
        "prompt_tokens": given_, "completion_tokens": made, "total_tokens": given_ + made,
        "prompt_tokens_details": {"cached_tokens": int(part * given_), "audio_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": int(part * made)},
    }  # fmt: skip
    whole = json.dumps({"id": "cmpl-1", "choices": choices, "usage": usage}).encode()
    bodies = reply.divided(whole, asked, COMPLETIONS)
    sums = [0, 0, 0, 0]
    for value, body in zip(values, bodies, strict=True):
        own = json.loads(body)
        wanted = [f"{number} of {one}" for one in _flat([value]) for number in range(n)]
        assert [choice["text"] for choice in own["choices"]] == wanted
        assert [choice["index"] for choice in own["choices"]] == list(range(len(wanted)))
        found = _details(own["usage"])
        assert found["total_tokens",] == found["prompt_tokens",] + found["completion_tokens",]
        assert found["prompt_tokens_details", "cached_tokens"] <= found["prompt_tokens",]
        assert found["completion_tokens_details", "reasoning_tokens"] <= found["completion_tokens",]
        billed = replies.read(body, "/v1/completions")
        assert isinstance(billed, tuple)
        sums = [a + b for a, b in zip(sums, billed, strict=True)]
    assert tuple(sums) == replies.read(whole, "/v1/completions")


@given(st.integers(0, 1 << 28), st.lists(st.integers(0, 1 << 20), min_size=1, max_size=40))
def test_shares_are_exact(total: int, weights: list[int]) -> None:
    """Their sum is the total, and each differs from its exact part by less than one."""
    found = reply.shares(total, weights)
    whole = sum(weights)
    assert sum(found) == total
    for share, weight in zip(found, weights, strict=True):
        exact = total * weight / whole if whole else total / len(weights)
        assert abs(share - exact) < 1 + 1e-6


@pytest.mark.parametrize(
    "indices",
    [[0, 1], [0, 1, 2, 3], [0, 1, 1], [1, 2, 3], [0, 1, None], [0, 1, "2"], [0, 1, True], [0, 1, -1], [0, 1, 2.5]],
)
def test_a_reply_that_does_not_fit_belongs_to_no_line(indices: list[Any]) -> None:
    """Too few items, too many, a repeated index, none, or one that is no number."""
    asked = _asked(EMBEDDINGS, ["a", "b", "c"])
    items = [{"index": index, "embedding": [0]} for index in indices]
    for body in ({"data": items}, {"data": [{"embedding": [0]}] * 3}, {"data": {}}, {}):
        with pytest.raises(reply.MixedUpError):
            reply.divided(json.dumps(body).encode(), asked, EMBEDDINGS)


def test_impossible_counts_stay_impossible() -> None:
    """Such a usage is not billed to any line; a count as a float is shared like any other."""
    asked = _asked(EMBEDDINGS, ["a", "b"])
    data = [{"index": n, "embedding": [0]} for n in range(2)]
    for usage in (
        {"prompt_tokens": -2},
        {"prompt_tokens": 1 << 40},
        {"prompt_tokens": "2"},
        {"prompt_tokens": 2.5},
    ):
        bodies = reply.divided(json.dumps({"data": data, "usage": usage}).encode(), asked, EMBEDDINGS)
        assert [replies.read(body, "/v1/embeddings") for body in bodies] == [None, None]
    bodies = reply.divided(json.dumps({"data": data, "usage": {"prompt_tokens": 3.0}}).encode(), asked, EMBEDDINGS)
    assert [replies.read(body, "/v1/embeddings") for body in bodies] == [(2, 0, 0, 0), (1, 0, 0, 0)]
    for usage in (None, [], 7):
        for body in reply.divided(json.dumps({"data": data, "usage": usage}).encode(), asked, EMBEDDINGS):
            assert json.loads(body)["usage"] == usage


@pytest.mark.parametrize(
    "value",
    [None, 7, {}, [], [7, "a"], ["a", 7], [[7], "a"], ["a", ["b"]], [[[7]]], [{"text": "a"}], [1.5], [True]],
)
def test_other_inputs_go_alone(value: Any) -> None:
    """Only texts and arrays of token ids are joined, and never in one array."""
    assert inputs.request(_line({"input": value}), EMBEDDINGS) is None


def test_only_lines_with_the_same_parameters_go_together() -> None:
    """Whatever their order; texts and token ids do not mix, and a line without an input goes alone."""
    (first,) = _asked(EMBEDDINGS, ["a"], user="u", dimensions=3)
    assert first.is_like(
        inputs.request(_line({"dimensions": 3, "input": "b", "model": "m", "user": "u"}), EMBEDDINGS)
    )
    assert not first.is_like(*_asked(EMBEDDINGS, [[1, 2]], user="u", dimensions=3))
    for other in (
        {"user": "v", "dimensions": 3},
        {"user": "u"},
        {"user": "u", "dimensions": 3, "encoding_format": "base64"},
    ):
        assert not first.is_like(*_asked(EMBEDDINGS, ["a"], **other))
    assert inputs.request(_line({"messages": []}), EMBEDDINGS) is None
    for n in (0, -1, "2", 1.5):
        assert inputs.request(_line({"prompt": "a", "n": n}), COMPLETIONS) is None
    assert inputs.request(_line({"prompt": "a", "n": None}), COMPLETIONS).answers == 1
