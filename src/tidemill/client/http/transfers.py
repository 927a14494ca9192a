"""Uploads and downloads as streams: memory holds one chunk at a time."""

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import aiohttp

from tidemill.client.http.connection import Connection
from tidemill.schemas.resources.batch import FileReceipt

CHUNK_BYTES = 256 << 10

Moved = Callable[[int], None]
"""Takes the number of bytes that were just transferred."""


async def upload(
    connection: Connection,
    path: Path,
    moved: Moved,
    *,
    span: tuple[int, int] | None = None,
    name: str | None = None,
) -> str:
    """Upload the input of a batch while reading it from disk, without retries.

    Args:
        connection: The service.
        path: The file.
        moved: Called after each chunk.
        span: First byte and the byte after the last one; None is the whole file.
        name: File name at the service; by default the name of the file.

    Returns:
        The file's id at the service.
    """
    with path.open("rb") as file, aiohttp.MultipartWriter("form-data") as form:
        form.append("batch").set_content_disposition("form-data", name="purpose")
        part = form.append(_chunks(file, moved, span), {"content-type": "application/jsonl"})
        part.set_content_disposition("form-data", name="file", filename=name or path.name)
        answer = await connection.send("POST", "/files", data=form)
    return str(answer["id"])


async def download(connection: Connection, file_id: str, target: Path, moved: Moved) -> FileReceipt:
    """Download a file; on an error `target` stays as it was.

    A broken transfer resumes where it stopped, if the service supports ranges.

    Args:
        connection: The service.
        file_id: The file.
        target: Where to write it, atomically, through a temporary file beside it.
        moved: Called after each chunk; a negative number takes back bytes that are transferred again.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with partial.open("w+b") as file:
            transfer = _Transfer(file, moved)
            await connection.retrying(lambda: _fetch(connection, f"/files/{file_id}/content", transfer))
            # The journal notes the file as complete after this: it must not outlive the file in a power cut.
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return transfer.receipt


async def _fetch(connection: Connection, path: str, transfer: "_Transfer") -> None:
    # A compressed body has no byte positions to resume at.
    headers = {"accept-encoding": "identity"}
    if transfer.size:
        headers["range"] = f"bytes={transfer.size}-"
    async with connection.opened("GET", path, headers=headers) as answer:
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            transfer.restart()
        async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
            transfer.write(chunk)


class _Transfer:
    """A download in progress: the bytes so far, in a file, and their hash."""

    def __init__(self, file: BinaryIO, moved: Moved) -> None:
        self._file = file
        self._moved = moved
        self._hash = hashlib.sha256()
        self._lines = 0
        self.size = 0

    @property
    def receipt(self) -> FileReceipt:
        return FileReceipt(lines=self._lines, bytes=self.size, sha256=self._hash.hexdigest())

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)
        self._lines += chunk.count(b"\n")
        self.size += len(chunk)
        self._moved(len(chunk))

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._moved(-self.size)
        self._hash, self._lines, self.size = hashlib.sha256(), 0, 0


async def _chunks(file: BinaryIO, moved: Moved, span: tuple[int, int] | None) -> AsyncIterator[bytes]:
    start, end = span or (0, sys.maxsize)
    file.seek(start)
    while chunk := await asyncio.to_thread(file.read, min(CHUNK_BYTES, end - file.tell())):
        yield chunk
        moved(len(chunk))
