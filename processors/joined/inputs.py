"""Reads the input of a line, and writes the body of a call that has the inputs of several lines.

An input is a text or an array of token ids. The values of all fields stay as they were written.
"""

from typing import Final, NamedTuple

import msgspec

from tidemill.schemas import UNREADABLE
from tidemill.schemas.endpoints import Endpoint
from tidemill.schemas.jsonl import line as shapes

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items: Final = msgspec.json.Decoder(list[msgspec.Raw])
_text: Final = msgspec.json.Decoder(str)
_texts: Final = msgspec.json.Decoder(list[str])
_tokens: Final = msgspec.json.Decoder(list[int])
_token_lists: Final = msgspec.json.Decoder(list[list[int]])
_number: Final = msgspec.json.Decoder(int | None)


class Request(NamedTuple):
    """The request of a line."""

    custom_id: bytes
    """JSON text."""
    parameters: dict[str, msgspec.Raw]
    """All fields of the body but the input."""
    content: bytes
    """The inputs as JSON, in the form of the elements of an array."""
    inputs: int
    is_text: bool
    """Whether the inputs are texts, and not arrays of token ids."""
    weight: int
    """In proportion to the tokens of the inputs: bytes of text, or token ids."""
    answers: int
    """Items that the reply's list has for the line."""

    def is_like(self, other: "Request") -> bool:
        """Whether one call may ask for both."""
        return self.is_text == other.is_text and self.parameters == other.parameters


def request(text: bytes, endpoint: Endpoint) -> Request | None:
    """The request of a line; None if it cannot be asked together with others."""
    try:
        line = shapes.parse(text)
        parameters = _fields.decode(line.body)
        content, inputs, is_text, weight = _read(bytes(parameters.pop(endpoint.prompt)))
        number = (
            _number.decode(parameters[endpoint.answers])
            if endpoint.answers and endpoint.answers in parameters
            else 1
        )
    except (KeyError, *UNREADABLE):
        return None
    answers = inputs * (1 if number is None else number)
    if not inputs or answers < inputs:
        return None
    return Request(bytes(line.custom_id), parameters, content, inputs, is_text, weight, answers)


def body(requests: list[Request], endpoint: Endpoint) -> bytes:
    """The body of one call for several lines that are alike."""
    array = b"[%b]" % b",".join(request.content for request in requests)
    return msgspec.json.encode({**requests[0].parameters, endpoint.prompt: msgspec.Raw(array)})


def _read(value: bytes) -> tuple[bytes, int, bool, int]:
    """Content, number of inputs, whether they are texts, and weight.

    Raises:
        MsgspecError: It is neither a text nor an array of token ids, nor an array of one of these kinds.
    """
    if value.startswith(b'"'):
        return value, 1, True, _bytes(_text.decode(value))
    items = _items.decode(value)
    first = bytes(items[0])[:1] if items else b""
    if first == b'"':
        return value[1:-1], len(items), True, sum(map(_bytes, _texts.decode(value)))
    if first == b"[":
        return value[1:-1], len(items), False, sum(map(len, _token_lists.decode(value)))
    return value, min(1, len(items)), False, len(_tokens.decode(value))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))
