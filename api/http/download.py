"""Downloads: byte ranges, versions, and file names."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import quote

from tidemill.api import errors

_RANGE = re.compile(r"bytes\s*=\s*+(\d{0,18})\s*+-\s*+(\d{0,18})\s*\Z", re.ASCII | re.IGNORECASE)
_UNSAFE = re.compile(r"[^A-Za-z0-9 ._()+-]")
NAME_CHARS_MAX = 120


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """Bytes from `start` up to, not including, `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.end - self.start

    def content_range(self, size: int) -> str:
        """The `Content-Range` of this part of a file of `size` bytes."""
        return f"bytes {self.start}-{self.end - 1}/{size}"


def check_parquet(param: str) -> None:
    """Check that this process can write Parquet, which the field `param` asks for.

    Raises:
        ApiError: 400, it lacks the library.
    """
    if find_spec("pyarrow") is None:
        why = "the server has no pyarrow; `pip install 'tidemill[parquet]'` there installs it."
        raise errors.invalid_param(param, why, code="parquet_unavailable")


def parse(header: str | None, size: int) -> ByteRange | None:
    """Parse a `Range` header for a file of `size` bytes.

    Returns:
        The range; None is the whole file: there is no range, a malformed one, or several.

    Raises:
        ApiError: 416, no byte of the file is in it.
    """
    match = _RANGE.match(header.strip()) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start, last = int(match[1]), int(match[2]) if match[2] else size - 1
        if match[2] and last < start:
            return None
        end = min(size, last + 1)
    if start >= end:
        raise errors.unsatisfiable(size)
    return ByteRange(start=start, end=end)


def matches(header: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` header names this version."""
    if not header:
        return False
    named = [tag.strip() for tag in header.split(",")]
    return "*" in named or etag in named or f"W/{etag}" in named


def disposition(filename: str) -> str:
    """The `Content-Disposition` of a file of any name: plain ASCII for old clients, the name itself for others."""
    short = filename[:NAME_CHARS_MAX]
    plain = _UNSAFE.sub("_", short) or "file"
    encoded = quote(short.encode(errors="replace"), safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


async def begun(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same chunks, the first of them read already: a failure before it still gets an error answer."""
    first = await anext(chunks, b"")

    async def whole() -> AsyncIterator[bytes]:
        if first:
            yield first
        async for chunk in chunks:
            yield chunk

    return whole()
