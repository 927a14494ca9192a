"""Merges the sorted parts of a batch into one file in input order, each line once.

The merge opens a part at its first line, and yields neighbouring lines of a part together. Any number of parts may
overlap, for instance if a batch has a fast and a slow model: the parts that were not read for the longest time
close their streams and drop most bytes that were read ahead, and continue with new streams later.
"""

import zlib
from array import array
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final, Self

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

STREAMS_MAX: Final = 8
"""Streams that a merge keeps open: some merges share the connections of a bucket with all other work."""
AHEAD_BYTES_MAX: Final = 4 << 20
"""About how many bytes the parts without a stream keep, in one merge."""
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
        """The number of lines of each of `models` models, and their tokens in the form of `usage`."""
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
    """A part that is being read."""

    def __init__(self, store: Store, key: str, part: PartRef, streams: "_Streams") -> None:
        self._store = store
        self._key = key
        self._part = part
        self._streams = streams
        self._chunks: AsyncGenerator[bytes, None] | None = None
        self._lines_at = 0
        """Offset of the first line in the object; the offsets below count from it."""
        self._start = 0
        """Offset of the buffer."""
        self._buffer = memoryview(b"")
        self._summed = 0
        """Offset up to which the checksum covers the part."""
        self._crc32 = 0
        self.index = parse_index(b"")
        self.place = 0

    async def open(self) -> Self:
        """Read the index.

        Raises:
            PartError: It is damaged.
            NotFound: The part is missing.
        """
        chunks = await self._opened()
        self._lines_at, self.index, rest = await _head(chunks, self._part, self._key)
        self._buffer = memoryview(self._sum(rest))
        return self

    @property
    def head(self) -> int:
        return self.index.indices[self.place]

    @property
    def is_empty(self) -> bool:
        return self.place >= len(self.index.indices)

    async def take(self, start: int, end: int) -> AsyncIterator[memoryview]:
        """The bytes of the lines from place `start` up to `end`; calls go forward in the part."""
        begin, finish = self._offset(start), self._offset(end)
        while begin < finish:
            offset = begin - self._start
            if offset >= len(self._buffer) and not await self._read():
                raise PartError(f"{self._key} is cut short")
            if 0 <= (offset := begin - self._start) < len(self._buffer):
                piece = self._buffer[offset : finish - self._start]
                begin += len(piece)
                yield piece

    async def finish(self) -> None:
        """Read the rest of the part, and verify its checksum.

        Raises:
            PartError: The part is damaged.
        """
        while (self._chunks is not None or self._summed < self._offset(len(self.index.indices))) and (
            await self._read()
        ):
            pass
        if self._part.crc32 is not None and self._part.crc32[1] != self._crc32:
            raise PartError(f"{self._key} {_DAMAGED}")
        await self.close()

    async def rest(self, bytes_max: int) -> None:
        """Close the stream, and keep at most `bytes_max` of the bytes that were read ahead."""
        await self.close()
        begin = min(self._offset(self.place), self._start + len(self._buffer))
        self._buffer = memoryview(bytes(self._buffer[begin - self._start :][:bytes_max]))
        self._start = begin

    async def close(self) -> None:
        """Close the stream."""
        chunks, self._chunks = self._chunks, None
        self._streams.remove(self)
        if chunks is not None:
            await chunks.aclose()

    async def _opened(self) -> AsyncGenerator[bytes, None]:
        if self._chunks is None:
            await self._streams.make_room()
            self._chunks = self._store.read(self._key, self._lines_at + self._start)
        self._streams.add(self)
        return self._chunks

    async def _read(self) -> bool:
        """Replace the buffer by the next chunk; returns whether there is one."""
        self._start += len(self._buffer)
        self._buffer = memoryview(b"")
        async for chunk in await self._opened():
            self._buffer = memoryview(self._sum(chunk))
            return True
        return False

    def _sum(self, chunk: bytes) -> bytes:
        """Add the new bytes of a chunk at `_start` to the checksum."""
        self._crc32 = zlib.crc32(memoryview(chunk)[max(0, self._summed - self._start) :], self._crc32)
        self._summed = max(self._summed, self._start + len(chunk))
        return chunk

    def _offset(self, place: int) -> int:
        return self.index.ends[place - 1] if place else 0


class _Streams:
    """The open streams of a merge; the least recently read one is closed for another."""

    def __init__(self) -> None:
        self._open: dict[_Reader, None] = {}
        self.parts = 0
        """Parts that overlap."""

    def add(self, reader: _Reader) -> None:
        """Note that a stream is read."""
        self.remove(reader)
        self._open[reader] = None

    def remove(self, reader: _Reader) -> None:
        """Note that a stream is closed."""
        self._open.pop(reader, None)

    async def make_room(self) -> None:
        """Close streams until another may be opened."""
        while len(self._open) >= STREAMS_MAX:
            await next(iter(self._open)).rest(AHEAD_BYTES_MAX // self.parts)

    async def close(self) -> None:
        """Close all streams."""
        for reader in list(self._open):
            await reader.close()


async def read_index(store: Store, part: PartRef, key: str) -> Index:
    """The index of a part.

    Raises:
        PartError: The object is not a part, or its columns are damaged.
        NotFound: The store has no such object.
    """
    streams = _Streams()
    try:
        return (await _Reader(store, key, part, streams).open()).index
    finally:
        await streams.close()


async def merged(store: Store, parts: Sequence[tuple[PartRef, str]], sums: Sums) -> AsyncIterator[memoryview]:
    """The lines of all parts, given with their keys, in input order and in pieces of any size; `sums` counts them.

    Raises:
        PartError: A part is damaged.
        NotFound: A part is missing.
    """
    waiting = sorted(parts, key=lambda part: part[0].first, reverse=True)
    heap: list[tuple[int, int, _Reader]] = []
    readers = 0
    streams = _Streams()
    try:
        while heap or waiting:
            while waiting and (not heap or waiting[-1][0].first <= heap[0][0]):
                part, key = waiting.pop()
                streams.parts = len(heap) + 1
                reader = await _Reader(store, key, part, streams).open()
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
        await streams.close()


async def buffered(buffer: PartBuffer, models: Sequence[int], sums: Sums) -> AsyncIterator[memoryview]:
    """The lines of a buffer, each of them once, as `merged` gives those of parts; see `PartBuffer.part`."""
    _, columns, pieces = buffer.part(models)
    index = parse_index(columns[HEAD_BYTES:])
    for number in index.indices:
        sums.lines.mark(number, failed=False)
    sums.add(index, 0, len(index.indices))
    for piece in pieces:
        yield memoryview(piece)


async def _head(chunks: AsyncIterator[bytes], part: PartRef, key: str) -> tuple[int, Index, bytes]:
    """The size of a part's head and index, the index, and the bytes after it that were read along."""
    read: list[bytes] = []
    size, needed = 0, HEAD_BYTES
    async for chunk in chunks:
        read.append(chunk)
        size += len(chunk)
        if needed == HEAD_BYTES <= size:
            needed += index_bytes(b"".join(read)[:HEAD_BYTES])
        if needed > HEAD_BYTES and size >= needed:
            got = b"".join(read)
            if part.crc32 is not None and part.crc32[0] != zlib.crc32(got[:needed]):
                raise PartError(f"{key} {_DAMAGED}")
            return needed, parse_index(got[HEAD_BYTES:needed]), got[needed:]
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
