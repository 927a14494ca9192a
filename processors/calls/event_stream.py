"""Merges the server-sent events of a server that streams although the request did not ask for it.

Chunks of chat completions and of completions are merged: text is appended, list items are matched by their
`index`, and of any other field the last value counts that is neither null nor an empty text. A stream of responses
ends with the whole reply. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, OpenAI's API
reference, "Streaming".
"""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import orjson

from tidemill.processors.calls.reply import is_object
from tidemill.processors.memory_budget import SMALL_BYTES
from tidemill.schemas import decoded
from tidemill.schemas.jsonl import nesting

_STREAM: Final = re.compile(rb"[\r\n]*(?:data|event|id|retry)?:")
_LINES: Final = re.compile(rb"([^\r\n]*)(?:\r\n|\n|\r|\Z)")
_TEXTS: Final = frozenset({
    "content", "reasoning", "reasoning_content", "refusal", "arguments", "text", "summary", "data", "transcript",
})  # fmt: skip
"""Fields whose text is split over chunks; the last two are those of audio."""
_WHOLE: Final = {"chat.completion.chunk": "chat.completion", "text_completion": "text_completion"}
"""The `object` of a reply, by that of its chunks."""
PARTS_MAX: Final = 4_000_000
"""Arrays, objects, keys and commas of a stream: one of 128,000 tokens of text has 3 million. The merged reply may
keep all of them: some 250 MB."""
EVENT_PARTS_MAX: Final = 500_000
"""Those of one event, which is decoded at once: some 30 ms."""
ITEMS_MAX: Final = 1024
"""Items of one list in which each has an `index`."""
_LAST: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_LAST_TYPE: Final = re.compile(rb'"response\.(?:completed|incomplete|failed)"')


class _Event(msgspec.Struct):
    type: str = ""
    response: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw(b"null")


_known: Final = msgspec.json.Decoder(_Event)


class IncompleteError(Exception):
    """The events do not form a complete reply; the text continues a sentence about the stream."""


class _Text:
    """Pieces of text, joined once."""

    __slots__ = ("pieces",)

    def __init__(self, piece: str) -> None:
        self.pieces = [piece]


class _Items:
    """List items by their `index`."""

    __slots__ = ("by_index",)

    def __init__(self) -> None:
        self.by_index: dict[int, dict[Any, Any]] = {}

    @property
    def ordered(self) -> list[dict[Any, Any]]:
        return [self.by_index[index] for index in sorted(self.by_index)]


def is_stream(body: bytes) -> bool:
    """Whether a body begins like a stream of events."""
    return _STREAM.match(body) is not None


def assembled(body: bytes) -> bytes:
    """The reply of a stream of events, or the error in one of them, as JSON.

    Raises:
        IncompleteError: The events do not form a complete reply.
    """
    if _LAST_TYPE.search(body) and (response := _response(body)) is not None:
        return response
    _check(body, "it", PARTS_MAX)
    whole: dict[str, Any] = {}
    try:
        for event in map(_decoded, _events(body)):
            if event.get("error") and not event.get("choices"):
                return orjson.dumps(event)
            if event.get("type") in _LAST and isinstance(event.get("response"), dict):
                return orjson.dumps(event["response"])
            _merge(whole, event)
        return orjson.dumps(_reply(whole), default=_joined)
    except (RecursionError, orjson.JSONEncodeError) as error:
        raise IncompleteError("one of its events is nested too deeply") from error


def _response(body: bytes) -> bytes | None:
    """The reply in the last event of a stream of responses, as it is; None without one, or after an error."""
    for text in _events(body):
        if b'"error"' in text or _LAST_TYPE.search(text):
            event = decoded(_known, text)
            if event is None or bytes(event.error) != b"null":
                return None
            if event.type in _LAST and is_object(bytes(event.response)):
                return bytes(event.response)
    return None


def _events(body: bytes) -> Iterator[bytes]:
    """The data of each event, up to `[DONE]`."""
    data: list[bytes] = []
    for found in _LINES.finditer(body):
        line = found[1]
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif not line and data:
            text, data = b"\n".join(data), []
            if text.strip() == b"[DONE]":
                return
            yield text


def _check(text: bytes, name: str, parts_max: int) -> None:
    if len(text) > SMALL_BYTES and nesting.parts(text) > parts_max:
        raise IncompleteError(f"{name} has more than {parts_max} values")


def _decoded(text: bytes) -> dict[str, Any]:
    _check(text, "one of its events", EVENT_PARTS_MAX)
    try:
        event = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise IncompleteError("one of its events is not JSON") from error
    if not isinstance(event, dict):
        raise IncompleteError("one of its events is not a JSON object")
    return event


def _merge(into: dict[Any, Any], piece: dict[str, Any]) -> None:
    for name, value in piece.items():
        known = into.get(name)
        if isinstance(value, str) and name in _TEXTS:
            if isinstance(known, _Text):
                known.pieces.append(value)
            else:
                into[name] = _Text(value)
        elif isinstance(value, dict):
            if not isinstance(known, dict):
                known = into[name] = {}
            _merge(known, value)
        elif isinstance(value, list):
            into[name] = _longer(known, value)
        elif name not in into or value not in (None, ""):
            into[name] = value


def _longer(known: Any, items: list[Any]) -> Any:
    """A list with these items added; items with an `index` are keyed by it."""
    if not items:
        return items if known is None else known
    if not all(isinstance(item, dict) and isinstance(item.get("index"), int) for item in items):
        if isinstance(known, list):
            known.extend(items)
            return known
        return items
    kept = known if isinstance(known, _Items) else _Items()
    for item in items:
        _merge(kept.by_index.setdefault(item["index"], {}), item)
    if len(kept.by_index) > ITEMS_MAX:
        raise IncompleteError(f"one of its lists has more than {ITEMS_MAX} items")
    return kept


def _reply(whole: dict[str, Any]) -> dict[str, Any]:
    kind, choices = whole.get("object"), whole.get("choices")
    if not isinstance(kind, str) or kind not in _WHOLE or not isinstance(choices, _Items):
        raise IncompleteError("its events are not chunks of a completion")
    if not all(choice.get("finish_reason") for choice in choices.ordered):
        raise IncompleteError("it ends before the reply does")
    whole["object"] = _WHOLE[kind]
    if _WHOLE[kind] != kind:
        for choice in choices.ordered:
            choice["message"] = _message(choice.pop("delta", None))
    return whole


def _message(delta: Any) -> dict[Any, Any]:
    message = {"role": "assistant", "content": None, **(delta if isinstance(delta, dict) else {})}
    if isinstance(calls := message.get("tool_calls"), _Items):
        # Only chunks number tool calls.
        message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls.ordered]
    return message


def _joined(value: Any) -> Any:
    if isinstance(value, _Text):
        return "".join(value.pieces)
    if isinstance(value, _Items):
        return value.ordered
    raise TypeError
