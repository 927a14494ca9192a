"""Equal lines of a batch: what makes two lines equal, and the list of copies that ingest leaves for results.

A copy is a line that equals an earlier one of its batch, the original. The list has a JSON array for each copy,
sorted by the original's index, then by its own.
"""

import hashlib
from typing import Annotated, Final

import msgspec

from tidemill.schemas import UNREADABLE
from tidemill.schemas.bounds import BATCH_LINES_MAX

DIGEST_BYTES: Final = 16
Index = Annotated[int, msgspec.Meta(ge=0, lt=BATCH_LINES_MAX)]


class Copy(msgspec.Struct, frozen=True, array_like=True):
    """A line that gets the answer to an earlier one."""

    original: Index
    index: Index
    custom_id: msgspec.Raw
    """The copy's, as JSON."""


class _Line(msgspec.Struct):
    custom_id: msgspec.Raw
    body: dict[str, msgspec.Raw]


_lines: Final = msgspec.json.Decoder(_Line)
_copies: Final = msgspec.json.Decoder(Copy)
_encoder: Final = msgspec.json.Encoder()
_NULL: Final = msgspec.Raw(b"null")


class Request(msgspec.Struct, frozen=True):
    """The fields of a line that the search for equal lines needs."""

    custom_id: bytes
    """As JSON."""
    digest: bytes
    """Equal for equal bodies."""
    temperature: object
    """The field of the body; None without it, or if it is too large a number."""


def request_of(data: bytes) -> Request:
    """Read a line that ingest has checked.

    Two bodies are equal if they have the same fields in any order, each with the same text. Inside a field the
    order counts: a server may show the properties of a tool or a schema to the model in the order it gets them.
    """
    found = _lines.decode(data)
    body = found.body
    text = _encoder.encode({name: body[name] for name in sorted(body)})
    return Request(
        custom_id=bytes(found.custom_id),
        digest=hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest(),
        temperature=_value(body.get("temperature", _NULL)),
    )


def _value(raw: msgspec.Raw) -> object:
    try:
        return msgspec.json.decode(raw)
    except UNREADABLE:  # such as 1e999: ingest checks only some fields of a long line
        return None


def encode(copy: Copy) -> bytes:
    """A line of the list."""
    return _encoder.encode(copy) + b"\n"


def decode(line: bytes) -> Copy:
    """Decode a line of the list.

    Raises:
        msgspec.MsgspecError: It is not such a line.
    """
    return _copies.decode(line)
