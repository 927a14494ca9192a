"""Replies in a form that is not JSON as RFC 8259 has it, and that other clients read all the same.

Servers send such a reply again and again, so trying again mends nothing. What others deliver is delivered, as JSON
that every reader takes (docs/decisions/0018-tolerant-replies.md):

- a byte order mark in front is left out;
- NaN, Infinity and -Infinity become `null`;
- half of a surrogate pair, as an escape or as bytes, becomes U+FFFD;
- server-sent events become the reply they add up to (`event_stream.py`).
"""

import re
from typing import Final

from tidemill.processors.calls import event_stream
from tidemill.processors.calls.reply import LEVELS_MAX, is_object, is_utf8
from tidemill.schemas.jsonl import nesting

BOM: Final = b"\xef\xbb\xbf"

_NUMBERS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|-?(?:NaN|Infinity)', re.DOTALL)
_ESCAPES: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\\."
)
_HALF_BYTES: Final = 6
_REPLACEMENT: Final = rb"\ufffd"


class UnsupportedFormError(Exception):
    """The reply has a form that cannot be delivered, and another try would get the same; the text says which."""


def mended(body: bytes) -> bytes | None:
    """The JSON object that a body stands for which is none; None where it is damaged.

    Raises:
        UnsupportedFormError: See there.
    """
    body = body.removeprefix(BOM)
    if event_stream.is_stream(body):
        try:
            return event_stream.assembled(body)
        except event_stream.IncompleteError as error:
            raise UnsupportedFormError(
                f"The reply is a stream of events, although none was asked for, and {error}."
            ) from error
    if (text := _encoded(body)) is None:
        return None
    if b"NaN" in text or b"Infinity" in text:
        text = _NUMBERS.sub(lambda found: found[0] if found[0].startswith(b'"') else b"null", text)
    if b"\\u" in text:
        text = _ESCAPES.sub(_whole, text)
    if text.lstrip().startswith(b"{") and nesting.exceeds(text, LEVELS_MAX):
        raise UnsupportedFormError(f"The reply is nested deeper than {LEVELS_MAX} levels.")
    return text if is_object(text) else None


def _encoded(body: bytes) -> bytes | None:
    """The body in UTF-8, where only halves of surrogates are in the way."""
    if is_utf8(body):
        return body
    try:
        # An escape is what this handler makes of half a surrogate; of two halves it makes a pair.
        return body.decode("utf-8", "surrogatepass").encode("utf-8", "backslashreplace")
    except UnicodeDecodeError:
        return None


def _whole(found: "re.Match[bytes]") -> bytes:
    text = found[0]
    return _REPLACEMENT if len(text) == _HALF_BYTES else text
