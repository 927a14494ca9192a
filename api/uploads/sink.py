"""Streams a file from a request into the store: hashes and counts it, and buffers only a few chunks."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from tidemill import metrics
from tidemill.api import errors
from tidemill.api.dependencies import STORE_SECONDS_MAX
from tidemill.api.uploads.first_line import FirstLine
from tidemill.configuration.settings import Settings
from tidemill.schemas.log.messages import FileRecord
from tidemill.schemas.log.part import file_key
from tidemill.schemas.ports import Store
from tidemill.schemas.resources.error import ApiError
from tidemill.schemas.resources.file import File

CHUNK_BYTES = 1 << 20
"""Chunks for the store; each step to a thread costs some 0.1 ms."""
QUEUED_CHUNKS_MAX = 4
BATCH: Final = "batch"
"""The purpose of input files."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A file that is in the store."""

    bytes: int
    sha256: str
    lines: int
    """Lines, including a last one without a newline."""

    def record(self, project: str, file: File) -> FileRecord:
        """The record of a file with these bytes."""
        file = file.model_copy(update={"bytes": self.bytes})
        return FileRecord(project=project, file=file, key=file_key(file.id), sha256=self.sha256, lines=self.lines)


class Sink:
    """Writes the bytes of a file as they arrive; the store shows nothing before `commit`.

    A context manager: without a commit, nothing is left of the file. A task writes to the store, behind a queue of
    `QUEUED_CHUNKS_MAX` chunks: receiving, hashing and writing run concurrently, and a slow store slows down the
    client. `param` is the parameter that a refusal names, `kind` that of the metric: `file` or `part`.
    """

    def __init__(self, store: Store, key: str, *, bytes_max: int, param: str, kind: str = "file") -> None:
        self._bytes_max = bytes_max
        self._param = param
        self._kind = kind
        self._is_stored = False
        self._size = 0
        self._gathered = bytearray()
        self._digest = hashlib.sha256()
        self._newlines = 0
        self._last = b"\n"
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_CHUNKS_MAX)
        self._writing = asyncio.create_task(store.write(key, self._chunks()), name="write an upload")
        self.first_line = FirstLine()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        why = "broken" if kind is None or not issubclass(kind, ApiError) else "refused"
        metrics.UPLOADS.labels(self._kind, "stored" if self._is_stored else why).inc()
        # After a commit the task is done, and there is nothing to cancel.
        self._writing.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await self._writing

    @property
    def size(self) -> int:
        """Bytes written so far."""
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
            await self._enqueue(self._drained())

    async def commit(self) -> Stored:
        """Complete the file in the store.

        Raises:
            ApiError: 503 or 507, the store does not.
        """
        if self._gathered:
            await self._enqueue(self._drained())
        await self._enqueue(None)
        done, _ = await asyncio.wait([self._writing], timeout=STORE_SECONDS_MAX)
        if not done:
            raise errors.unavailable("file store")
        self._check_writing()
        self._is_stored = True
        metrics.UPLOAD_BYTES.inc(self._size)
        lines = self._newlines + (self._last != b"\n")
        return Stored(bytes=self._size, sha256=self._digest.hexdigest(), lines=lines)

    def _drained(self) -> bytes:
        chunk = bytes(self._gathered)
        self._gathered.clear()
        return chunk

    async def _enqueue(self, chunk: bytes | None) -> None:
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


def life_of(settings: Settings, purpose: str, wanted: int | None) -> int | None:
    """How long a file of a purpose is kept, in seconds, with or without a wish; None is forever."""
    return wanted or (settings.input_life_seconds if purpose == BATCH else None)


def new_file(file_id: str, filename: str, now: int, *, purpose: str = BATCH, life_seconds: int | None) -> File:
    """A file without bytes, created at `now` (Unix seconds); a life of None is forever."""
    expires_at = None if life_seconds is None else now + life_seconds
    return File(id=file_id, bytes=0, created_at=now, expires_at=expires_at, filename=filename, purpose=purpose)
