"""Normalizes replies that other clients accept although they are not JSON by RFC 8259.

A server sends the same form again, so a retry would not help (docs/decisions/0018-tolerant-replies.md):

- a byte order mark at the start is removed;
- NaN, Infinity and -Infinity become `null`;
- a lone surrogate, as an escape or as bytes, becomes U+FFFD;
- server-sent events are merged into one reply (`event_stream.py`).
"""

import re
from collections.abc import Iterable
from typing import Final

from tidemill.processors.calls import event_stream
from tidemill.processors.calls.reply import LEVELS_MAX, is_object, is_utf8
from tidemill.schemas.jsonl import nesting

BOM: Final = b"\xef\xbb\xbf"

# A string may lack its closing quote: a search that restarted at each quote would take quadratic time.
_NUMBERS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|-?(?:NaN|Infinity)', re.DOTALL)
_ESCAPES: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\\."
)
_HALF_BYTES: Final = 6
_REPLACEMENT: Final = rb"\ufffd"


class UnsupportedFormError(Exception):
    """The reply has a form that cannot be normalized, and a retry would get the same; the text says which."""


def normalized(body: bytes) -> bytes | None:
    """A body that is not JSON as a JSON object; None if it is damaged.

    Raises:
        UnsupportedFormError: It cannot be normalized.
    """
    body = body.removeprefix(BOM)
    if event_stream.is_stream(body):
        try:
            return event_stream.assembled(body)
        except event_stream.IncompleteError as error:
            raise UnsupportedFormError(
                f"The reply is a stream of events, which was not requested, and {error}."
            ) from error
    if (text := _encoded(body)) is None:
        return None
    if b"NaN" in text or b"Infinity" in text:
        numbers = (found for found in _NUMBERS.finditer(text) if not text.startswith(b'"', found.start()))
        text = _replaced(text, numbers, b"null")
    if b"\\u" in text:
        halves = (found for found in _ESCAPES.finditer(text) if found.end() - found.start() == _HALF_BYTES)
        text = _replaced(text, halves, _REPLACEMENT)
    if text.lstrip().startswith(b"{") and nesting.exceeds(text, LEVELS_MAX):
        raise UnsupportedFormError(f"The reply is nested deeper than {LEVELS_MAX} levels.")
    return text if is_object(text) else None


def _encoded(body: bytes) -> bytes | None:
    """The body in UTF-8; None if it has other faults than lone surrogates."""
    if is_utf8(body):
        return body
    try:
        # The handler turns a lone surrogate into an escape, and a pair of surrogates into a character.
        return body.decode("utf-8", "surrogatepass").encode("utf-8", "backslashreplace")
    except UnicodeDecodeError:
        return None


def _replaced(text: bytes, found: "Iterable[re.Match[bytes]]", new: bytes) -> bytes:
    """The text with each match replaced; unlike `re.sub` it keeps no list of the pieces, maybe millions."""
    pieces, at = bytearray(), 0
    for one in found:
        pieces += text[at : one.start()]
        pieces += new
        at = one.end()
    return bytes(pieces + text[at:])
