"""The error in the body of a server's answer, whatever its shape.

Servers have it as `error`, an object or a text, with its fields beside others (SGLang), or as `detail` (FastAPI).
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from tidemill.schemas import decoded

QUOTED_BYTES_MAX: Final = 4096
"""Bytes of a body that stand for an error's message."""
CHARS_MAX: Final = QUOTED_BYTES_MAX
"""Characters of a message."""
_TEXTS: Final = ("message", "detail", "msg", "error")
"""Fields with the text of an error, the best one first."""
_LEVELS_MAX: Final = 4
FIELD_BYTES_MAX: Final = 64 * 1024
"""Bytes of a list, and of a type, a code or a param; a longer one is not read, since its values would take many
times its size."""
_NULL: Final = msgspec.Raw(b"null")


class ServerError(NamedTuple):
    """An error; `message` is empty if the body has none, and the others are what the server put there."""

    message: str = ""
    type: Any = None
    code: Any = None
    param: Any = None


class _Object(msgspec.Struct):
    error: msgspec.Raw = _NULL
    message: msgspec.Raw = _NULL
    detail: msgspec.Raw = _NULL
    msg: msgspec.Raw = _NULL
    type: msgspec.Raw = _NULL
    code: msgspec.Raw = _NULL
    param: msgspec.Raw = _NULL


_objects: Final = msgspec.json.Decoder(_Object)
_lists: Final = msgspec.json.Decoder(list[msgspec.Raw])
_strings: Final = msgspec.json.Decoder(str)
_values: Final = msgspec.json.Decoder()


def read(body: bytes | msgspec.Raw) -> ServerError:
    """The error in a body."""
    if (found := decoded(_objects, body)) is None:
        return ServerError()
    said = next(filter(None, map(_text, (found.error, found.message, found.detail))), "")[:CHARS_MAX]
    if (inner := decoded(_objects, found.error)) is not None:
        return ServerError(said, *_kind(inner))
    return ServerError(said, *_kind(found)) if _text(found.message) else ServerError(said)


def message(body: bytes | msgspec.Raw) -> str:
    """The message of the error in a body; without one, the beginning of the body."""
    return read(body).message or quoted(body)


def quoted(body: bytes | msgspec.Raw) -> str:
    """The beginning of a body, as text."""
    view = memoryview(body)
    text = bytes(view[: QUOTED_BYTES_MAX + 1]).decode(errors="replace").strip()
    return f"{text[:-1]}…" if len(view) > QUOTED_BYTES_MAX else text


def _kind(found: _Object) -> Iterator[Any]:
    """The type, the code and the param."""
    for field in (found.type, found.code, found.param):
        yield decoded(_values, field) if len(memoryview(field)) <= FIELD_BYTES_MAX else None


def _text(value: msgspec.Raw, levels: int = _LEVELS_MAX) -> str:
    """The text of a value as it is in the body; that of a list is the texts of its objects."""
    view = memoryview(value)
    match bytes(view[:1]):
        case b'"':
            return (decoded(_strings, value) or "").strip()
        case b"{" if levels and (found := decoded(_objects, value)) is not None:
            return next(filter(None, (_text(getattr(found, name), levels - 1) for name in _TEXTS)), "")
        case b"[" if levels and len(view) <= FIELD_BYTES_MAX:
            items = (one for one in decoded(_lists, value) or () if bytes(memoryview(one)[:1]) == b"{")
            return "; ".join(filter(None, (_text(one, levels - 1) for one in items)))
    return ""
