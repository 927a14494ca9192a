"""Streams a file from a request into the store: hashes and counts it, and buffers only a few chunks."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from tidemill.api import errors
from tidemill.api.dependencies import STORE_SECONDS_MAX
from tidemill.api.uploads.first_line import FirstLine
from tidemill.schemas.ports import Store

CHUNK_BYTES = 1 << 20
"""Chunks for the store; each step to a thread costs some 0.1 ms."""
QUEUED_CHUNKS_MAX = 4


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An object that is in the store."""

    bytes: int
    sha256: str
    lines: int
    """Newlines, and one more for a last line that has none."""


class Sink:
    """Writes the bytes of a file as they arrive; the store shows nothing before `commit`.

    A task writes to the store, behind a queue of `QUEUED_CHUNKS_MAX` chunks: receiving, hashing and writing run
    concurrently, and a slow store slows down the client.
    """

    def __init__(self, store: Store, key: str, *, bytes_max: int, param: str) -> None:
        self._bytes_max = bytes_max
        self._param = param
        self._size = 0
        self._gathered = bytearray()
        self._digest = hashlib.sha256()
        self._newlines = 0
        self._last = b"\n"
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_CHUNKS_MAX)
        self._writing = asyncio.create_task(store.write(key, self._chunks()), name="write an upload")
        self.first_line = FirstLine()

    @property
    def size(self) -> int:
        """Bytes taken so far."""
        return self._size

    async def put(self, data: bytes) -> None:
        """Write bytes.

        Raises:
            ApiError: 413, the file is too large; 503 or 507, the store does not take it.
        """
        self._size += len(data)
        if self._size > self._bytes_max:
            raise errors.body_too_large(self._bytes_max, param=self._param)
        if not self.first_line.is_done:
            self.first_line.feed(data)
        self._gathered += data
        if len(self._gathered) >= CHUNK_BYTES:
            await self._hand(self._take())

    async def commit(self) -> Stored:
        """Complete the file in the store.

        Raises:
            ApiError: 503 or 507, the store does not.
        """
        if self._gathered:
            await self._hand(self._take())
        await self._hand(None)
        done, _ = await asyncio.wait([self._writing], timeout=STORE_SECONDS_MAX)
        if not done:
            raise errors.unavailable("file store")
        self._check_writing()
        lines = self._newlines + (self._last != b"\n")
        return Stored(bytes=self._size, sha256=self._digest.hexdigest(), lines=lines)

    async def discard(self) -> None:
        """Remove a file that is not committed."""
        self._writing.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await self._writing

    def _take(self) -> bytes:
        chunk = bytes(self._gathered)
        self._gathered.clear()
        return chunk

    async def _hand(self, chunk: bytes | None) -> None:
        self._check_writing()
        if not self._queue.full():
            self._queue.put_nowait(chunk)
            return
        putting = asyncio.ensure_future(self._queue.put(chunk))
        try:
            await asyncio.wait(
                [putting, self._writing], timeout=STORE_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED
            )
            if not putting.done():
                self._check_writing()
                raise errors.unavailable("file store")
        finally:
            putting.cancel()

    def _check_writing(self) -> None:
        if not self._writing.done():
            return
        if (error := self._writing.exception()) is not None:
            raise errors.from_store(error) if isinstance(error, OSError) else error

    async def _chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self._queue.get()) is not None:
            # Hashing releases the GIL, so the next bytes arrive meanwhile.
            await asyncio.to_thread(self._digest.update, chunk)
            self._newlines += chunk.count(b"\n")
            self._last = chunk[-1:]
            yield chunk
