"""Uploads and downloads as streams: memory holds one chunk at a time."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import aiohttp

from tidemill.client.errors import OtherService
from tidemill.client.files import FileCounter
from tidemill.client.http.connection import Connection
from tidemill.schemas.resources.batch import FileReceipt
from tidemill.storage.atomic_file import replacing

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
    """Upload the input of a batch while reading it from disk, without retries; returns the file's id.

    A `span` has the first byte to send and the byte after the last one.
    """
    with path.open("rb") as file, aiohttp.MultipartWriter("form-data") as form:
        form.append("batch").set_content_disposition("form-data", name="purpose")
        part = form.append(_chunks(file, moved, span), {"content-type": "application/jsonl"})
        part.set_content_disposition("form-data", name="file", filename=name or path.name)
        answer = await connection.send("POST", "/files", data=form)
    if not isinstance(file_id := answer.get("id"), str):
        raise OtherService(HTTPStatus.OK, connection.base_url, "/files gave no id of a file")
    return file_id


async def download(connection: Connection, file_id: str, target: Path, moved: Moved) -> FileReceipt:
    """Download a file; on an error `target` stays as it was.

    A broken transfer resumes where it stopped, if the service supports ranges; else a negative number takes back
    the bytes that are transferred again.
    """
    with replacing(target) as file:
        transfer = _Transfer(file, moved)
        await connection.retrying(lambda: _fetch(connection, f"/files/{file_id}/content", transfer))
    return transfer.counter.receipt


async def _fetch(connection: Connection, path: str, transfer: "_Transfer") -> None:
    # A compressed body has no byte positions to resume at.
    headers = {"accept-encoding": "identity"}
    if transfer.counter.size:
        headers["range"] = f"bytes={transfer.counter.size}-"
    async with connection.opened("GET", path, headers=headers) as answer:
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            transfer.restart()
        async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
            transfer.write(chunk)


class _Transfer:
    """A download in progress: the bytes so far, in a file."""

    def __init__(self, file: BinaryIO, moved: Moved) -> None:
        self._file = file
        self._moved = moved
        self.counter = FileCounter()

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self.counter.add(chunk)
        self._moved(len(chunk))

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._moved(-self.counter.size)
        self.counter = FileCounter()


async def _chunks(file: BinaryIO, moved: Moved, span: tuple[int, int] | None) -> AsyncIterator[bytes]:
    start, end = span or (0, sys.maxsize)
    file.seek(start)
    while chunk := await asyncio.to_thread(file.read, min(CHUNK_BYTES, end - file.tell())):
        yield chunk
        moved(len(chunk))
