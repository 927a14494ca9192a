"""What a large reply costs: its values are skipped, and never become millions of objects."""

import tracemalloc
from collections.abc import Callable, Iterator

import msgspec
import orjson
import pytest

from tidemill.processors.calls import request_codec
from tidemill.processors.calls.request_codec import Success
from tidemill.processors.failures import Answer, CallFailure, FailureKind
from tidemill.processors.joined import reply as joined
from tidemill.processors.joined.inputs import Request
from tidemill.schemas.endpoints import ENDPOINTS

CHAT, EMBEDDINGS, IMAGES, SPEECH = (
    "/v1/chat/completions", "/v1/embeddings", "/v1/images/generations", "/v1/audio/transcriptions",
)  # fmt: skip
SIZE = 2 << 20
USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":2}'
CHUNK = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"x":[%b]}}]}\n\n'


def _items(item: bytes) -> bytes:
    return b",".join([item] * (SIZE // (len(item) + 1)))


def _keys() -> bytes:
    return b",".join(b'"%06d":0' % number for number in range(SIZE // 11))


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    """Bytes that were allocated at a time."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{"choices":[%b]}' % _items(b"{}")),
        (CHAT, b'{"choices":[7,%b]}' % _items(b"{}")),
        (CHAT, b'{"choices":[%b]}' % _items(b'{"finish_reason":"xy","error":7}')),
        (CHAT, b'{"choices":[{%b}]}' % _keys()),
        (CHAT, b"{%b}" % _keys()),
        (CHAT, b'{"error":{%b}}' % _keys()),
        (CHAT, b'{"error":{"message":{%b}}}' % _keys()),
        (CHAT, b'{"choices":[{"finish_reason":"error","error":{%b}}]}' % _keys()),
        (CHAT, b'{"choices":[{}],"usage":{"prompt_tokens":"x",%b}}' % _keys()),
        (CHAT, b"[%b]" % _items(b"0")),
        (CHAT, b'data: {"choices":[%b]}\n\n' % _items(b"{}")),
        ("/v1/responses", b'data: {"type":"response.completed","response":{%b}}\n\n' % _keys()),
        (CHAT, b'{"choices":[{}],"x":[%b]}' % _items(b"NaN")),
        (CHAT, b'{"choices":[{}],"x":NaN,"y":[%b]}' % _items(b'""')),
        (CHAT, b'{"choices":[{}],"x":"%b"}' % (rb"\ud800" * (SIZE // 6))),
        (EMBEDDINGS, b'{"choices":[%b],"data":[0]}' % _items(b"{}")),
        (SPEECH, b'{"text":"x",%b}' % _keys()),
        (SPEECH, b'{"text":"x","usage":{"seconds":1,%b}}' % _keys()),
        ("/v1/rerank", b'{"results":[0],"meta":{%b}}' % _keys()),
    ],
)
def test_a_reply_takes_a_few_times_its_size(path: str, body: bytes, status: int, peak: Callable[[], int]) -> None:
    """Whatever its values are; as objects they would take ten times as much and more."""
    request_codec.judge(Answer(status, body), path)
    assert peak() < 4 * len(body) + (2 << 20)


def test_a_large_response_in_a_stream_is_delivered_as_it_is() -> None:
    """With the log probabilities of thousands of tokens, which each of its last events repeats."""
    one = b'{"token":"x","logprob":-1.0,"bytes":[120]}'
    tokens = b",".join([b'{"token":"x","logprob":-1.0,"top_logprobs":[%b]}' % b",".join([one] * 20)] * 3500)
    response = b'{"output":[{"content":[{"text":"x","logprobs":[%b]}]}],"status":"completed",%b}' % (tokens, USAGE)
    body = (
        b'data: {"type":"response.created","response":{"error":null}}\n\n'
        b'data: {"type":"response.output_text.done","logprobs":[%b]}\n\n'
        b'data: {"type":"response.completed","response":%b}\n\n'
    ) % (tokens, response)
    end = request_codec.judge(Answer(200, body), "/v1/responses")
    assert isinstance(end, Success)
    assert (end.body == response, end.tokens) == (True, (3, 0, 2, 0))


def test_a_stream_whose_events_are_small_is_bounded_as_a_whole(peak: Callable[[], int]) -> None:
    """The merged reply would keep the values of all events."""
    body = (CHUNK % (b"{}," * 1000)[:-1]) * 2500
    end = request_codec.judge(Answer(200, body), CHAT)
    assert isinstance(end, CallFailure)
    assert (end.kind, "more than 4000000 values" in end.message) == (FailureKind.UNSUPPORTED_REPLY, True)
    assert peak() < 4 * len(body)


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        (
            CHAT,
            b'{"choices":[{"logprobs":[%b]}],%b}' % (_items(b'{"bytes":[1,2],"logprob":-1}'), USAGE),
            (3, 0, 2, 0),
        ),
        (EMBEDDINGS, b'{"data":[{"embedding":[%b]}],%b}' % (_items(b"-0.25"), USAGE), (3, 0, 2, 0)),
        (IMAGES, b'{"data":[{"b64_json":"%b"},{}]}' % (b"A" * SIZE), (0, 0, 0, 2)),
        (SPEECH, b'{"text":"","duration":"1.5","words":[%b]}' % _items(b'{"word":"x"}'), (0, 0, 0, 2)),
        ("/v1/rerank", b'{"meta":{"tokens":{"input_tokens":9}},"results":[%b]}' % _items(b"{}"), (9, 0, 0, 0)),
        (CHAT, b'{"choices":[{}],"x":[%b],"usage":{"prompt_tokens":7.0}}' % _items(b"0"), (7, 0, 0, 0)),
        (IMAGES, b'{"data":[%b]}' % (b"[" * 300 + b"]" * 300), None),
    ],
    ids=["logprobs", "vectors", "images", "words", "ranks", "floats", "deep"],
)
def test_large_answers_are_delivered(path: str, body: bytes, tokens: request_codec.Tokens | None) -> None:
    """With their counts; where these cannot be known, without."""
    end = request_codec.judge(Answer(200, body), path)
    assert isinstance(end, Success)
    assert (end.body, end.tokens) == (body, tokens)


CHOICE = b'{"index":0,"text":"","finish_reason":"stop"}'
BROKEN = b'{"index":0,"text":"","finish_reason":"error"}'


@pytest.mark.parametrize("usage", [USAGE, b'"usage":{"prompt_tokens":3.0,"completion_tokens":2}'])
@pytest.mark.parametrize(
    ("choices", "kind"),
    [
        ([CHOICE] * 100, None),
        ([CHOICE] * 100 + [BROKEN], FailureKind.BROKEN_OFF),
        ([CHOICE] * 50_000, None),
        ([CHOICE] * 50_000 + [BROKEN], FailureKind.BROKEN_OFF),
        ([b'{"x":[{},{},{},{},{},{},{},{},{}]}'] * 5000, None),
        ([b"{}"] * 10_000, None),
        ([b"{}"] * 30_000, FailureKind.UNSUPPORTED_REPLY),
    ],
    ids=["few", "few-broken", "many", "many-broken", "values", "small", "large"],
)
def test_all_choices_of_a_reply_are_judged(choices: list[bytes], kind: FailureKind | None, usage: bytes) -> None:
    """Those of a large list of very small ones are not read, so it is not delivered."""
    end = request_codec.judge(Answer(200, b'{"choices":[%b],%b}' % (b",".join(choices), usage)), CHAT)
    assert (end.kind if isinstance(end, CallFailure) else end.tokens) == (kind or (3, 0, 2, 0))


@pytest.mark.parametrize("given", [b"", b'"error":null,', b'"error":{},'])
@pytest.mark.parametrize("count", [10, 1_000, 20_000])
def test_an_error_keeps_the_fields_of_the_server(count: int, given: bytes) -> None:
    """However many faults FastAPI found in a request."""
    faults = b"[%b]" % b",".join(
        [b'{"type":"missing","loc":["body","messages",7],"msg":"Field required"}'] * count
    )
    end = request_codec.judge(Answer(422, b'{%b"detail":%b}' % (given, faults)), CHAT)
    assert isinstance(end, CallFailure)
    assert end.body is not None
    body = orjson.loads(end.body)
    assert (body["detail"], body["error"]["type"]) == (orjson.loads(faults), FailureKind.STATUS.value)
    assert body["error"]["message"]
    assert end.body.count(b'"error":') == 1


@pytest.mark.parametrize(
    ("more", "item"),
    [
        (b'"id":"%b"' % (b"x" * SIZE), b'{"index":0}'),
        (b'"usage":{"x":"%b"}' % (b"x" * SIZE), b'{"index":0}'),
        (b'"id":"x"', b'{"index":0,%b,%b}' % (_keys(), _keys())),
        (b'"id":"x"', _items(b"{}")),
    ],
    ids=["id", "usage", "keys", "items"],
)
def test_a_joined_reply_is_not_multiplied(more: bytes, item: bytes, peak: Callable[[], int]) -> None:
    """Each line gets a copy of what the reply has beside its items, so that is small; smaller calls are asked."""
    body = b'{%b,"data":[%b%b]}' % (more, item, b"".join(b',{"index":%d}' % number for number in range(1, 64)))
    request = Request(b'"a"', {"model": msgspec.Raw(b'"m"')}, b'"x"', 1, True, 1, 1)
    with pytest.raises(joined.MixedUpError):
        joined.divided(body, [request] * 64, ENDPOINTS[EMBEDDINGS])
    assert peak() < 4 * len(body)


@pytest.mark.parametrize(
    ("count", "item"),
    [
        (64, {"text": "", "logprobs": {"top_logprobs": [{f"token {n}": -1.5 for n in range(5)}] * 600}}),
        (256, {"text": '":{' * 1000}),
    ],
    ids=["logprobs", "text"],
)
def test_a_joined_reply_is_divided_whatever_its_items_hold(count: int, item: dict[str, object]) -> None:
    """Only fields of items become objects, not the values in them."""
    body = orjson.dumps({"choices": [{"index": number, **item} for number in range(count)]})
    request = Request(b'"a"', {"model": msgspec.Raw(b'"m"')}, b'"x"', 1, True, 1, 1)
    bodies = joined.divided(body, [request] * count, ENDPOINTS["/v1/completions"])
    assert bodies == [orjson.dumps({"choices": [{"index": 0, **item}]})] * count
