"""Merges the sorted parts of a batch into one file in input order, each line once.

The merge opens a part at its first line and closes it after its last, and yields neighbouring lines of a part
together; so the memory is one chunk for each open part.
"""

import zlib
from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from tidemill.results.state.active_batch import PartBuffer
from tidemill.results.state.line_bitmap import LineBitmap
from tidemill.schemas.log.part import (
    HEAD_BYTES,
    UNKNOWN_USAGE,
    Index,
    PartError,
    PartRef,
    encode_index,
    index_bytes,
    parse_index,
)
from tidemill.schemas.ports import Store

_NO_LIMIT: Final = 1 << 62
_DAMAGED: Final = "is not what was written"


@dataclass(slots=True)
class Sums:
    """The lines, sizes and token counts of a merged file."""

    lines: LineBitmap = field(default_factory=LineBitmap)
    indices: "array[int]" = field(default_factory=lambda: array("I"))
    sizes: "array[int]" = field(default_factory=lambda: array("I"))
    models: "array[int]" = field(default_factory=lambda: array("I"))
    usages: "array[int]" = field(default_factory=lambda: array("I"))

    @property
    def usage(self) -> tuple[int, int, int, int]:
        """Tokens of all lines: input, cached part, output, reasoning part; unknown counts are 0."""
        unknown = self.unknown
        read, cached, written, reasoning = (
            sum(self.usages[place::4]) - unknown * UNKNOWN_USAGE[place] for place in range(4)
        )
        return read, cached, written, reasoning

    def by_model(self, models: int) -> list[tuple[int, tuple[int, int, int, int]]]:
        """The lines of each of so many models, and their tokens as `usage` has them."""
        found: defaultdict[int, list[int]] = defaultdict(lambda: [0] * 5)
        columns = (self.usages[place::4] for place in range(4))
        for model, read, cached, written, reasoning in zip(self.models, *columns, strict=True):
            sums = found[model]
            sums[0] += 1
            if read != UNKNOWN_USAGE[0]:
                sums[1] += read
                sums[2] += cached
                sums[3] += written
                sums[4] += reasoning
        return [
            (lines, (read, cached, written, reasoning))
            for lines, read, cached, written, reasoning in (found[number] for number in range(models))
        ]

    @property
    def unknown(self) -> int:
        """Lines whose token counts are unknown."""
        return self.usages[0::4].count(UNKNOWN_USAGE[0])

    def index(self, start: int, end: int) -> bytes:
        """The encoded columns of a file with the lines from `start` up to `end`."""
        return encode_index(
            self.indices[start:end],
            self.sizes[start:end],
            self.models[start:end],
            self.usages[4 * start : 4 * end],
        )

    def add(self, index: Index, start: int, end: int) -> None:
        """Add the lines from place `start` up to `end` of a part."""
        self.indices += index.indices[start:end]
        self.models += index.models[start:end]
        self.usages += index.usage[4 * start : 4 * end]
        begin = index.ends[start - 1] if start else 0
        for place in range(start, end):
            self.sizes.append(index.ends[place] - begin)
            begin = index.ends[place]


class _Reader:
    """One open part."""

    def __init__(
        self, chunks: AsyncIterator[bytes], part: PartRef, key: str, index: Index, rest: memoryview
    ) -> None:
        self._chunks = chunks
        self._part = part
        self._key = key
        self._buffer = rest
        self._crc32 = zlib.crc32(rest)
        self._start = 0
        """Offset of the buffer from the first line."""
        self.index = index
        self.place = 0

    @classmethod
    async def open(cls, store: Store, part: PartRef, key: str) -> "_Reader":
        chunks = store.read(key)
        return cls(chunks, part, key, *await _opened(chunks, part, key))

    @property
    def head(self) -> int:
        return self.index.indices[self.place]

    @property
    def is_empty(self) -> bool:
        return self.place >= len(self.index.indices)

    async def take(self, start: int, end: int) -> AsyncIterator[memoryview]:
        """The bytes of the lines from place `start` up to `end`; calls go forward in the part."""
        begin = self.index.ends[start - 1] if start else 0
        finish = self.index.ends[end - 1]
        while begin < finish:
            offset = begin - self._start
            if offset >= len(self._buffer):
                self._start += len(self._buffer)
                self._buffer = memoryview(await self._next())
                continue
            piece = self._buffer[offset : finish - self._start]
            begin += len(piece)
            yield piece

    async def finish(self) -> None:
        """Read the rest of the part, and compare its checksum.

        Raises:
            PartError: The part is damaged.
        """
        async for chunk in self._chunks:
            self._crc32 = zlib.crc32(chunk, self._crc32)
        if self._part.crc32 is not None and self._part.crc32[1] != self._crc32:
            raise PartError(f"{self._key} {_DAMAGED}")

    async def _next(self) -> bytes:
        async for chunk in self._chunks:
            self._crc32 = zlib.crc32(chunk, self._crc32)
            return chunk
        raise PartError(f"{self._key} is cut short")

    async def close(self) -> None:
        if hasattr(self._chunks, "aclose"):
            await self._chunks.aclose()


async def read_index(store: Store, part: PartRef, key: str) -> Index:
    """The index of a part.

    Raises:
        PartError: The object is no part, or its columns are damaged.
        NotFound: The store has no such object.
    """
    reader = await _Reader.open(store, part, key)
    await reader.close()
    return reader.index


async def merged(store: Store, parts: Sequence[tuple[PartRef, str]], sums: Sums) -> AsyncIterator[memoryview]:
    """The lines of all parts, given with their keys, in input order and in pieces of any size; `sums` counts them.

    Raises:
        PartError: A part is damaged.
        NotFound: A part is missing.
    """
    waiting = sorted(parts, key=lambda part: part[0].first, reverse=True)
    heap: list[tuple[int, int, _Reader]] = []
    readers = 0
    try:
        while heap or waiting:
            while waiting and (not heap or waiting[-1][0].first <= heap[0][0]):
                reader = await _Reader.open(store, *waiting.pop())
                readers += 1
                heappush(heap, (reader.head, readers, reader))
            _, number, reader = heappop(heap)
            limit = min(heap[0][0] if heap else _NO_LIMIT, waiting[-1][0].first if waiting else _NO_LIMIT)
            async for piece in _run(reader, limit, sums):
                yield piece
            if reader.is_empty:
                await reader.finish()
            else:
                heappush(heap, (reader.head, number, reader))
    finally:
        for _, _, reader in heap:
            await reader.close()


async def buffered(buffer: PartBuffer, models: Sequence[int], sums: Sums) -> AsyncIterator[memoryview]:
    """The lines of a buffer, each of them once, as `merged` gives those of parts; see `PartBuffer.part`."""
    _, columns, pieces = buffer.part(models)
    index = parse_index(columns[HEAD_BYTES:])
    for number in index.indices:
        sums.lines.mark(number, failed=False)
    sums.add(index, 0, len(index.indices))
    for piece in pieces:
        yield memoryview(piece)


async def _opened(chunks: AsyncIterator[bytes], part: PartRef, key: str) -> tuple[Index, memoryview]:
    """The index of a part, and the bytes behind it that were read with it."""
    read: list[bytes] = []
    size, needed = 0, HEAD_BYTES
    async for chunk in chunks:
        read.append(chunk)
        size += len(chunk)
        if needed == HEAD_BYTES <= size:
            needed += index_bytes(b"".join(read)[:HEAD_BYTES])
        if needed > HEAD_BYTES and size >= needed:
            got = memoryview(b"".join(read))
            if part.crc32 is not None and part.crc32[0] != zlib.crc32(got[:needed]):
                raise PartError(f"{key} {_DAMAGED}")
            return parse_index(bytes(got[HEAD_BYTES:needed])), got[needed:]
    raise PartError(f"{key} is cut short")


async def _run(reader: _Reader, limit: int, sums: Sums) -> AsyncIterator[memoryview]:
    """The next lines of a part up to a line of another part; consumes at least one line."""
    index, start = reader.index, reader.place
    end = start
    while end < len(index.indices) and (end == start or index.indices[end] <= limit):
        if not sums.lines.mark(index.indices[end], failed=False):
            break
        end += 1
    if end > start:
        reader.place = end
        sums.add(index, start, end)
        async for piece in reader.take(start, end):
            yield piece
    else:
        # Another part has the same line.
        reader.place += 1
