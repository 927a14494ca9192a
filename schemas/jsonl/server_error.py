"""The error in the body of a server's answer, whatever its shape.

Servers have it as `error`, an object or a text, with its fields beside others (SGLang), or as `detail` (FastAPI).
"""

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


class ServerError(NamedTuple):
    """An error; `message` is empty if the body has none, and the others are what the server put there."""

    message: str = ""
    type: Any = None
    code: Any = None
    param: Any = None


class _Body(msgspec.Struct):
    error: Any = None
    message: Any = None
    detail: Any = None
    type: Any = None
    code: Any = None
    param: Any = None


_bodies: Final = msgspec.json.Decoder(_Body)


def read(body: bytes | msgspec.Raw) -> ServerError:
    """The error in a body."""
    if (found := decoded(_bodies, body)) is None:
        return ServerError()
    said = (_text(found.error) or _text(found.message) or _text(found.detail))[:CHARS_MAX]
    if isinstance(found.error, dict):
        return ServerError(said, *(found.error.get(name) for name in ("type", "code", "param")))
    return ServerError(said, found.type, found.code, found.param) if _text(found.message) else ServerError(said)


def message(body: bytes | msgspec.Raw) -> str:
    """The message of the error in a body; without one, the beginning of the body."""
    return read(body).message or quoted(body)


def quoted(body: bytes | msgspec.Raw) -> str:
    """The beginning of a body, as text."""
    view = memoryview(body)
    text = bytes(view[: QUOTED_BYTES_MAX + 1]).decode(errors="replace").strip()
    return f"{text[:-1]}…" if len(view) > QUOTED_BYTES_MAX else text


def _text(value: Any, levels: int = _LEVELS_MAX) -> str:
    if isinstance(value, list) and levels:
        return "; ".join(filter(None, (_text(each, levels - 1) for each in value if isinstance(each, dict))))
    if isinstance(value, dict) and levels:
        return next(filter(None, (_text(value.get(name), levels - 1) for name in _TEXTS)), "")
    return value.strip() if isinstance(value, str) else ""
