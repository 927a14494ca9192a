"""Repairs the head of a reply that names the length of its body more than once.

llhttp refuses such a head, even if the lengths are equal.
"""

import re
from typing import Final

_END: Final = b"\r\n\r\n"
_LENGTHS: Final = re.compile(rb"^content-length[ \t]*:([^\r\n]*)\r?\n", re.IGNORECASE | re.MULTILINE)
_CHUNKED: Final = re.compile(rb"^transfer-encoding[ \t]*:[^\r\n]*chunked[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class LengthsError(Exception):
    """A head names two different lengths."""


def repaired(received: bytes) -> bytes | None:
    """The beginning of a reply, with one length or none; None if its head is incomplete.

    A chunked body has no length. Where several are named, in one header or in many, all must be equal: a proxy on
    the way may have gone by another one.

    Raises:
        LengthsError: It names two different lengths.
    """
    head, end, rest = received.partition(_END)
    return _with_one_length(head + end) + rest if end else None


def _with_one_length(head: bytes) -> bytes:
    """A head, from the status line to the blank line, with one length or none."""
    if _CHUNKED.search(head):
        return _LENGTHS.sub(b"", head)
    lengths = {length.strip() for found in _LENGTHS.findall(head) for length in found.split(b",")}
    if len(lengths) > 1:
        raise LengthsError
    if not lengths:
        return head
    return _LENGTHS.sub(b"", head).removesuffix(b"\r\n") + b"content-length: %b\r\n\r\n" % lengths.pop()
