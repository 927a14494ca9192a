"""The routes of files."""

import logging
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from tidemill.api import compression, errors, paging, removal, shapes, span
from tidemill.api.compression import GZIP_BYTES_MIN
from tidemill.api.doors import Asking, Doors, Opened, chunks_from_store, from_store, json
from tidemill.api.receiving import upload
from tidemill.api.state import lookup
from tidemill.api.state.view import UnknownCursor
from tidemill.schemas import codec, topics
from tidemill.schemas.file import EXPIRES_AFTER_SECONDS, PURPOSES_UPLOADED, File
from tidemill.schemas.messages import FileRecord
from tidemill.schemas.ports import NotFound

LIMIT_DEFAULT = LIMIT_MAX = 10_000

_log = logging.getLogger(__name__)

_LOW, _HIGH = EXPIRES_AFTER_SECONDS
_CREATE: dict[str, Any] = {
    "requestBody": shapes.form(
        ["file", "purpose"],
        {
            "file": shapes.BINARY,
            "purpose": {"type": "string", "enum": list(PURPOSES_UPLOADED)},
            "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
            "expires_after[seconds]": {"type": "integer", "minimum": _LOW, "maximum": _HIGH},
        },
    )
}
_INDEX: dict[str, Any] = {
    "parameters": [
        *shapes.page(LIMIT_DEFAULT, LIMIT_MAX),
        shapes.parameter("purpose", "string", "Only those of this purpose."),
    ]
}
_BYTES: dict[str, Any] = {"content": {"application/octet-stream": {"schema": shapes.BINARY}}}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", **_BYTES},
    302: {"description": "It is to be had there, where the operator has set `presigned_downloads`."},
    206: {"description": "The part that was asked for.", **_BYTES},
    304: {"description": "The client has it."},
    416: {"description": "No byte of the file is in the range."},
}
_RANGE: dict[str, Any] = {
    "parameters": [
        shapes.parameter("Range", "string", "`bytes=FIRST-LAST`: one part of the file.", where="header"),
        shapes.parameter("If-Range", "string", "The tag that the part must be of.", where="header"),
        shapes.parameter("If-None-Match", "string", "Tags that the client has.", where="header"),
    ]
}

router = APIRouter(prefix="/v1/files", tags=["files"])


@router.post("", response_model=File, responses=shapes.LIMITED, openapi_extra=_CREATE)
async def create(request: Request, doors: Opened, asking: Asking) -> Response:
    """Upload a file."""
    with doors.booking(asking.project) as booking:
        record = await upload.receive(request, doors, asking.project, booking)
        # Where the log does not answer, the record may have landed; so the bytes stay, and no file lacks its
        # content.
        offset = await doors.log.send(topics.FILES.name, record.file.id, codec.encode(record), headers=[])
        doors.view.put_file(record, offset)
    return json(record.file.model_dump_json().encode())


@router.get("", response_model=shapes.FilePage, openapi_extra=_INDEX)
async def index(request: Request, doors: Opened, asking: Asking) -> Response:
    """List files."""
    query = request.query_params
    page = paging.parse(query, default=LIMIT_DEFAULT, maximum=LIMIT_MAX)
    try:
        rows = doors.view.files(asking.project, page, query.get("purpose") or None)
    except UnknownCursor as error:
        raise errors.unknown_cursor(page.after or "") from error
    return json(paging.write(page, rows))


@router.get("/{file_id}", response_model=File)
async def retrieve(file_id: str, doors: Opened, asking: Asking) -> Response:
    """Get a file object."""
    record = await lookup.file(doors, asking.project, file_id)
    return json(record.file.model_dump_json().encode())


@router.delete("/{file_id}", response_model=shapes.DeletedFile)
async def delete(file_id: str, doors: Opened, asking: Asking) -> Response:
    """Delete a file; its bytes stay for as long as a batch that is not over reads them."""
    record = await lookup.file(doors, asking.project, file_id)
    await removal.remove(doors, file_id, record.key)
    return json(b'{"id":"%b","object":"file","deleted":true}' % file_id.encode())


@router.get("/{file_id}/content", response_model=None, responses=_CONTENT, openapi_extra=_RANGE)
async def content(file_id: str, request: Request, doors: Opened, asking: Asking) -> Response:
    """Download a file, or a part of it."""
    record = await lookup.file(doors, asking.project, file_id)
    size = record.file.bytes
    etag = f'"{record.sha256}"'
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "vary": "accept-encoding",
        "content-disposition": span.disposition(record.file.filename),
        "x-content-type-options": "nosniff",
    }
    if span.matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if doors.settings.presigned_downloads and (link := await _link(doors, record)) is not None:
        return Response(status_code=302, headers={"location": link, "cache-control": "no-store"})
    part = _part(request, etag, size)
    chunks = await _begun(doors, record, part or span.Span(start=0, end=size))
    if part is None and size >= GZIP_BYTES_MIN and compression.is_wanted(request.headers.get("accept-encoding")):
        # The same content in other bytes: a weak tag, with which no range can be asked for.
        headers |= {"content-encoding": "gzip", "etag": f"W/{etag}"}
        chunks = compression.compressed(chunks)
    else:
        headers["content-length"] = str(part.size if part else size)
    if part:
        headers["content-range"] = part.content_range(size)
    return StreamingResponse(
        chunks, status_code=206 if part else 200, headers=headers, media_type="application/octet-stream"
    )


def _part(request: Request, etag: str, size: int) -> span.Span | None:
    condition = request.headers.get("if-range")
    if condition is not None and condition.strip() != etag:
        return None
    try:
        return span.parse(request.headers.get("range"), size)
    except span.Unsatisfiable as error:
        raise errors.unsatisfiable(size) from error


async def _link(doors: Doors, record: FileRecord) -> str | None:
    """Where the store itself serves the file; None where it does not."""
    link = await from_store(doors.store.link(record.key, span.disposition(record.file.filename)))
    if link is not None:
        try:
            await from_store(doors.store.size(record.key))
        except NotFound as error:
            _log.warning("the bytes of the file %s are not in the store", record.file.id)
            raise errors.no_file(record.file.id) from error
    return link


async def _begun(doors: Doors, record: FileRecord, part: span.Span) -> AsyncIterator[bytes]:
    """The bytes, the first of them already read: what fails before them can still be answered with an error."""
    chunks = chunks_from_store(doors.store.read(record.key, part.start, part.end))
    try:
        first = [chunk] if (chunk := await anext(chunks, b"")) else []
    except NotFound as error:
        _log.warning("the bytes of the file %s are not in the store", record.file.id)
        raise errors.no_file(record.file.id) from error
    return _chained(first, chunks)


async def _chained(first: Iterable[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in first:
        yield chunk
    async for chunk in rest:
        yield chunk
