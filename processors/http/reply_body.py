"""The part of a reply that has arrived, and bodies that a server sends in an unusual way.

It decompresses gzip and deflate in bounded steps, for servers that compress without being asked, and finds the end
of a body whose length the head states twice, which llhttp refuses.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

STEP_BYTES: Final = 256 * 1024
"""Bytes that one step decompresses."""
PIECES_MAX: Final = 1024
"""Pieces of a body that are kept as they arrived; a server may send chunks of one byte."""
_SHOWN_CHARS: Final = 64
"""Characters of a content encoding that an error line quotes."""

_GZIP: Final = 31
_ZLIB: Final = 15
_RAW: Final = -15
_ZLIB_METHOD: Final = 8
_LENGTHS: Final = re.compile(rb"^content-length[ \t]*:([^\r\n]*)\r?\n", re.IGNORECASE | re.MULTILINE)
_CHUNKED: Final = re.compile(rb"^transfer-encoding[ \t]*:[^\r\n]*chunked[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class CodingError(Exception):
    """A body does not match its content encoding."""


class LengthsError(Exception):
    """A head names two different lengths."""


class Decoder:
    """Decompresses one body as it arrives."""

    def __init__(self, *, is_gzip: bool) -> None:
        self._stream = zlib.decompressobj(_GZIP) if is_gzip else None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompress the next bytes, in pieces of up to `STEP_BYTES`; ignores bytes after the end of the body.

        Raises:
            CodingError: The bytes are not of this encoding.
        """
        if self._stream is None:
            # By RFC 9110 8.4.1.2 "deflate" is zlib's format; some servers send bare deflate.
            self._stream = zlib.decompressobj(_ZLIB if data[0] & 0x0F == _ZLIB_METHOD else _RAW)
        while data and not self._stream.eof:
            try:
                piece = self._stream.decompress(data, STEP_BYTES)
            except zlib.error as error:
                raise CodingError(str(error)) from error
            if piece:
                yield piece
            data = self._stream.unconsumed_tail

    @property
    def is_whole(self) -> bool:
        """Whether the body is complete."""
        return self._stream is not None and self._stream.eof


def decoder(encoding: str) -> Decoder | None:
    """A decoder for a `Content-Encoding`; None if it is unknown."""
    name = encoding.strip().lower().removeprefix("x-")
    return Decoder(is_gzip=name == "gzip") if name in {"gzip", "deflate"} else None


def with_one_length(head: bytes) -> bytes:
    """A head, from the status line to the blank line, with one `Content-Length` or none.

    Raises:
        LengthsError: It names two different lengths.
    """
    if _CHUNKED.search(head):
        return _LENGTHS.sub(b"", head)
    lengths = {length.strip() for found in _LENGTHS.findall(head) for length in found.split(b",")}
    if len(lengths) > 1:
        raise LengthsError
    if not lengths:
        return head
    return _LENGTHS.sub(b"", head).removesuffix(b"\r\n") + b"content-length: %b\r\n\r\n" % lengths.pop()


@dataclass(slots=True)
class PartialReply:
    """The part of a reply that has arrived."""

    status: int = 0
    first_byte: float = 0.0
    has_head: bool = False
    is_framed: bool = False
    """Whether its head says where the body ends."""
    headers: dict[str, Any] = field(default_factory=dict)
    """Those that an answer keeps, by its fields."""
    encoding: str | None = None
    """Its content encoding."""
    decoder: Decoder | None = None
    pieces: list[bytes] = field(default_factory=list)
    """Pieces of the decompressed body; empty if it cannot be decompressed."""
    joined: int = 0
    """Pieces at the front that were joined from smaller ones."""
    size: int = 0
    has_body: bool = False

    def encoded(self, value: str) -> None:
        """Note its `Content-Encoding`."""
        name = value.strip().lower()
        if name not in {"", "identity"}:
            self.encoding = name[:_SHOWN_CHARS]
            self.decoder = decoder(name)

    def join(self) -> None:
        """Join the pieces that have arrived since the last time: an object of two bytes takes 41 and more."""
        self.pieces[self.joined :] = [b"".join(self.pieces[self.joined :])]
        self.joined = len(self.pieces)

    @property
    def unread(self) -> str | None:
        """The content encoding of a body that cannot be decompressed; else None."""
        if not self.has_body or (self.decoder is not None and self.decoder.is_whole):
            return None
        return self.encoding
