"""Splits chunks of bytes into numbered lines.

Only a newline ends a line. JSON whitespace around a line and a byte order mark at the start of the file are
removed; blank lines are counted and skipped. The last line needs no newline.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterable, Iterator

import msgspec

from tidemill.schemas.bounds import LINE_BYTES_HIGHEST

LINE_BYTES_MAX = 8 << 20
"""The default bound of a line."""
EMBEDDING_INPUTS_MAX = 50_000
"""Inputs of all lines of a batch together."""
BOM = b"\xef\xbb\xbf"

_WHITESPACE = b" \t\r"
_SPACE = 0x20
_BLANKS = re.compile(rb"[ \t\r\n]*+")


class Line(msgspec.Struct, frozen=True, gc=False):
    """A line that is not blank."""

    number: int
    """Its number in the file, from 1."""
    offset: int
    """Offset of its first byte in the file."""
    data: bytes | None
    """Its bytes without surrounding whitespace; None if the line is too long."""


class Splitter:
    """Splits one file; holds at most one line, and nothing of a line that is too long."""

    def __init__(self, line_bytes_max: int = LINE_BYTES_HIGHEST) -> None:
        """Begin a file; the default bound fits all lines that ingest ever accepted."""
        self._line_bytes_max = line_bytes_max
        self._number = 1
        self._offset = 0
        """Offset of the next chunk in the file."""
        self._head: bytes | None = b""
        """The first bytes, while they may be a byte order mark."""
        self._open: list[bytes] = []
        """Pieces of the unfinished line."""
        self._open_bytes = 0
        self._open_offset = 0

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """The lines that end in this chunk; exhaust it before the next call."""
        if self._head is not None:
            chunk = self._head + chunk
            if len(chunk) < len(BOM) and BOM.startswith(chunk):
                self._head = chunk
                return
            self._head = None
            if chunk.startswith(BOM):
                self._offset = len(BOM)
                chunk = chunk[len(BOM) :]
        at = 0
        if self._open_bytes:
            end = chunk.find(b"\n")
            self._extend(chunk if end < 0 else chunk[:end])
            if end < 0:
                self._offset += len(chunk)
                return
            yield self._closed()
            self._number += 1
            at = end + 1
        yield from self._inside(chunk, at)
        self._offset += len(chunk)

    def finish(self) -> Iterator[Line]:
        """The last line, if it has no newline."""
        if self._head:
            head, self._head = self._head, None
            yield from self.feed(head)
        if self._open_bytes:
            yield self._closed()

    def _inside(self, chunk: bytes, at: int) -> Iterator[Line]:
        """The lines from `at` on; keeps the unfinished line."""
        size = len(chunk)
        while at < size:
            if chunk[at] <= _SPACE:
                # Skip a run of blank lines at once: a file may have a hundred million of them.
                begin = _BLANKS.match(chunk, at).end()  # type: ignore[union-attr]
                self._number += chunk.count(b"\n", at, begin)
                at = begin
            end = chunk.find(b"\n", at)
            if end < 0:
                if at < size:
                    self._open_offset = self._offset + at
                    self._extend(chunk[at:])
                return
            data = chunk[at:end].rstrip(_WHITESPACE) if end - at <= self._line_bytes_max else None
            yield Line(self._number, self._offset + at, data)
            self._number += 1
            at = end + 1

    def _extend(self, piece: bytes) -> None:
        self._open_bytes += len(piece)
        if self._open_bytes <= self._line_bytes_max:
            self._open.append(piece)
        else:
            self._open.clear()

    def _closed(self) -> Line:
        data = b"".join(self._open).rstrip(_WHITESPACE) if self._open_bytes <= self._line_bytes_max else None
        self._open.clear()
        self._open_bytes = 0
        return Line(self._number, self._open_offset, data)


async def lines_of(
    chunks: AsyncIterable[bytes], line_bytes_max: int = LINE_BYTES_HIGHEST
) -> AsyncGenerator[Iterator[Line], None]:
    """The lines that end in each chunk of a file; exhaust them before the next."""
    splitter = Splitter(line_bytes_max)
    async for chunk in chunks:
        yield splitter.feed(chunk)
    yield splitter.finish()
