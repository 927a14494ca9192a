"""The routes of files."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from tidemill.api import errors, lookup
from tidemill.api.access import sessions
from tidemill.api.batches import file_removal
from tidemill.api.dependencies import (
    Caller,
    Dependencies,
    Deps,
    ViewDep,
    check_size,
    file_from_store,
    from_store,
    json,
)
from tidemill.api.http import download
from tidemill.api.openapi import Route
from tidemill.api.requests import paging, reading
from tidemill.api.requests.fields import FileId, OneOf
from tidemill.api.requests.paging import ListPage, OrderedQuery
from tidemill.api.requests.parts import Headers, Query
from tidemill.api.uploads import upload
from tidemill.api.uploads.form_reader import BINARY
from tidemill.api.uploads.upload import FileUpload
from tidemill.api.view.result_lines import without_bytes
from tidemill.schemas.log.messages import FileRecord
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.file import File

RESULTS = "batch_output"
"""The purpose of output and error files."""
LIMIT_DEFAULT = LIMIT_MAX = 10_000
PURPOSE_CHARS_MAX = 64
CONDITION_CHARS_MAX = 1024


class FilesQuery(OrderedQuery):
    """The query of a list of files."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX), reading.WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""
    purpose: Annotated[str, Field(max_length=PURPOSE_CHARS_MAX)] | None = None
    """Only those of this purpose."""


class ContentQuery(reading.Parameters):
    """The query of a download."""

    format: Annotated[str, OneOf(("jsonl", "parquet"))] | None = None
    """`parquet` converts an output or error file of a batch into a table; by default the bytes of the file."""


class DeletedFile(BaseModel):
    """A deleted file."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


_Condition = Annotated[str, Field(max_length=CONDITION_CHARS_MAX)] | None


class ContentHeaders(reading.Parameters):
    """Headers of a download."""

    range: _Condition = Field(None, alias="Range")
    """`bytes=FIRST-LAST`: one part of the file."""
    if_range: _Condition = Field(None, alias="If-Range")
    """The tag of the version that the part must be of."""
    if_none_match: _Condition = Field(None, alias="If-None-Match")
    """Tags of versions that the client has."""


_BYTES: dict[str, Any] = {"content": {"application/octet-stream": {"schema": BINARY}}}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", **_BYTES},
    302: {"description": "The address of the file, with the setting `presigned_downloads`."},
    206: {"description": "The requested part.", **_BYTES},
    304: {"description": "The client has this version."},
    416: {"description": "The range is beyond the file."},
}

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=Route)


@router.post("", response_model=File)
async def create(deps: Deps, caller: Caller, request: FileUpload) -> Response:
    """Upload a file."""
    with deps.booking(caller.project) as booking:
        record = await upload.receive(request, deps, booking)
        # If the log does not answer, the record may be in the log anyway, so the bytes stay.
        await deps.publisher.file(record)
    return json(record.file)


@router.get("", response_model=ListPage[File])
async def index(
    view: ViewDep, caller: Caller, query: Annotated[FilesQuery, Depends(Query(FilesQuery))]
) -> Response:
    """List files."""
    rows = await lookup.page(view, query.after, lambda: view.files(caller.project, query.page, query.purpose))
    return json(paging.write(query.page, rows))


@router.get("/{file_id}", response_model=File)
async def retrieve(view: ViewDep, caller: Caller, file_id: FileId) -> Response:
    """Get a file object."""
    record = await lookup.file(view, caller.project, file_id)
    return json(record.file)


@router.delete("/{file_id}", response_model=DeletedFile)
async def delete(request: Request, deps: Deps, caller: Caller, file_id: FileId) -> Response:
    """Delete a file; its bytes stay while a batch reads them."""
    file_removal.check_store(deps)
    record = await lookup.file(deps.view, caller.project, file_id)
    await deps.trail.record(request, caller, Action.FILE_DELETE, file_id)
    await file_removal.remove(deps, file_id, record.key)
    return json(b'{"id":"%b","object":"file","deleted":true}' % file_id.encode())


@router.get("/{file_id}/content", response_model=None, response_class=StreamingResponse, responses=_CONTENT)
async def content(
    request: Request,
    deps: Deps,
    caller: Caller,
    file_id: FileId,
    *,
    wanted: Annotated[ContentHeaders, Depends(Headers(ContentHeaders))],
    query: Annotated[ContentQuery, Depends(Query(ContentQuery))],
) -> Response:
    """Download a file, or a part of it."""
    record = await lookup.file(deps.view, caller.project, file_id)
    if query.format == "parquet":
        return await _table(deps, caller.project, record)
    size = record.file.bytes
    etag = f'"{record.sha256}"'
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "content-disposition": download.disposition(record.file.filename),
    }
    if download.matches(wanted.if_none_match, etag):
        return Response(status_code=304, headers=headers)
    # A script of the dashboard may read from the api alone; its links may lead to the store.
    is_script = caller.session_id is not None and sessions.HEADER in request.headers
    # A link is presigned for GET alone.
    is_head = getattr(request.state, "is_head", False)
    redirects = deps.settings.presigned_downloads and not is_script and not is_head
    if redirects and (link := await _link(deps, record)) is not None:
        return Response(status_code=302, headers={"location": link})
    part = _part(wanted, etag, size)
    chunks = await _begun(deps, record, part or download.ByteRange(start=0, end=size))
    headers["content-length"] = str(part.size if part else size)
    if part:
        headers["content-range"] = part.content_range(size)
    return StreamingResponse(
        chunks, status_code=206 if part else 200, headers=headers, media_type="application/octet-stream"
    )


async def _table(deps: Dependencies, project: str, record: FileRecord) -> Response:
    """A file of result lines as Parquet, converted while it is sent."""
    if record.file.purpose != RESULTS:
        why = f"only results of batches are tables, and this file's purpose is '{record.file.purpose}'."
        raise errors.invalid_param("format", why)
    download.check_parquet("format")
    # The library is of an extra, and takes a second to import.
    from tidemill.tables.result_lines import converted  # noqa: PLC0415

    async def pieces() -> AsyncIterator[bytes]:
        async with deps.gates.tables.turn(project):
            lines = await _begun(deps, record, download.ByteRange(start=0, end=record.file.bytes))
            async for piece in converted(lines):
                yield piece

    table = await download.begun(pieces())
    headers = {
        "content-disposition": download.disposition(f"{record.file.filename.removesuffix('.jsonl')}.parquet")
    }
    return StreamingResponse(table, headers=headers, media_type="application/vnd.apache.parquet")


def _part(wanted: ContentHeaders, etag: str, size: int) -> download.ByteRange | None:
    if wanted.if_range is not None and wanted.if_range.strip() != etag:
        return None
    return download.parse(wanted.range, size)


async def _link(deps: Dependencies, record: FileRecord) -> str | None:
    """A presigned link to the file; None if the store makes none."""
    link = await from_store(deps.store.link(record.key, download.disposition(record.file.filename)))
    if link is not None:
        try:
            await check_size(deps, record)
        except NotFound as error:
            raise without_bytes(deps.view, record, errors.no_file(record.file.id)) from error
    return link


async def _begun(deps: Dependencies, record: FileRecord, part: download.ByteRange) -> AsyncIterator[bytes]:
    try:
        return await download.begun(file_from_store(deps, record, part.start, part.end))
    except NotFound as error:
        raise without_bytes(deps.view, record, errors.no_file(record.file.id)) from error
