"""Heads of replies that say twice how long the body is. The parser refuses them, and HTTP does not.

One length that is said several times is one length (RFC 9110 8.6). Beside `Transfer-Encoding: chunked` a length
does not count (RFC 9112 6.3). Two lengths that differ cannot be read: where the body ends is not known.
"""

import re
from typing import Final

HEAD_END: Final = b"\r\n\r\n"
_LENGTHS: Final = re.compile(rb"^content-length[ \t]*:([^\r\n]*)\r?\n", re.IGNORECASE | re.MULTILINE)
_CHUNKED: Final = re.compile(rb"^transfer-encoding[ \t]*:[^\r\n]*chunked[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class LengthsError(Exception):
    """A head names lengths that differ."""


def mended(head: bytes) -> bytes:
    """The head with one statement of the body's length.

    Args:
        head: From the status line to the blank line behind the last field.

    Raises:
        LengthsError: See there.
    """
    if _CHUNKED.search(head):
        return _LENGTHS.sub(b"", head)
    lengths = {length.strip() for found in _LENGTHS.findall(head) for length in found.split(b",")}
    if len(lengths) > 1:
        raise LengthsError
    if not lengths:
        return head
    return _LENGTHS.sub(b"", head).removesuffix(b"\r\n") + b"content-length: %b\r\n\r\n" % lengths.pop()
