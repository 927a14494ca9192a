"""The routes of batches."""

from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from tidemill.api import errors, lookup
from tidemill.api.batches import answer_schema, changes, creation
from tidemill.api.batches.batch_request import BatchRequest
from tidemill.api.batches.changes import InputEnd
from tidemill.api.batches.creation import CreateHeaders
from tidemill.api.batches.token_estimate import Figures, TokenEstimate, figures
from tidemill.api.dependencies import (
    Caller,
    Dependencies,
    Deps,
    JsonBody,
    ReadingCaller,
    StoringBody,
    file_from_store,
    json,
)
from tidemill.api.inline import body_input, bucket_files, open_batches
from tidemill.api.inline.open_batches import Appended
from tidemill.api.openapi import Route
from tidemill.api.requests import inline, paging, reading
from tidemill.api.requests.bodies import Append, NewBatch, Seal
from tidemill.api.requests.fields import BatchId, Endpoint, Id, OneOf, Window
from tidemill.api.requests.filters import BatchesQuery
from tidemill.api.requests.inline import InlineRequest
from tidemill.api.requests.paging import ListPage, Row
from tidemill.api.requests.parts import Query
from tidemill.api.requests.reading import Body
from tidemill.api.view import overlay
from tidemill.api.view.quotas import Booking
from tidemill.runtime.threads import run_half_time
from tidemill.schemas.buckets import SCHEME
from tidemill.schemas.jsonl.lines import Line, lines_of
from tidemill.schemas.log import topics
from tidemill.schemas.log.messages import FileRecord, InputRef
from tidemill.schemas.ports import NotFound, once
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.error import ApiError

INLINE_FILENAME = "requests.jsonl"
"""The name of the input file of a batch whose requests are in the create."""

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=Route)


class EstimateRequest(Body):
    """A batch to estimate."""

    input_file_id: Id
    """A file of the purpose `batch`."""
    endpoint: Endpoint
    completion_window: Window | None = None
    """Its window, which decides the discount; by default the installation's usual one."""


class Estimate(Figures):
    """The estimate of a batch of a file; nothing is reserved or validated."""

    object: Literal["batch.estimate"] = "batch.estimate"
    input_file_id: str
    endpoint: str


class DeleteQuery(reading.Parameters):
    """The query of a deletion."""

    input: Annotated[str, OneOf(("true", "false"))] = "false"
    """`true`: delete the input file, too, unless another batch has it."""


class DeletedBatch(BaseModel):
    """A deleted batch."""

    id: str
    object: Literal["batch"]
    deleted: Literal[True]
    input_file: InputEnd | None = None
    """What became of its input; absent without `input=true`."""


@router.post(
    "",
    response_model=Batch,
    responses={
        404: {"description": "There is no batch `rerun_of`."},
        409: {"description": "The `Idempotency-Key` was used for another request."},
    },
)
async def create(
    deps: Deps,
    caller: Caller,
    headers: CreateHeaders,
    body: Annotated[NewBatch, Depends(StoringBody(NewBatch, bytes_max=inline.BYTES_MAX))],
) -> Response:
    """Create a batch; the answer comes when the log has it, and ingest validates the file afterwards."""
    project = caller.project
    if body.callback_url is not None:
        await deps.webhooks.check_callback(project, body.callback_url)
    if body.rerun_of is not None:
        await lookup.batch_json(deps.view, project, body.rerun_of, param="rerun_of")
    fields = body.model_dump(exclude={"input_file_id", "requests", "validation"})
    schema = None
    if body.validation is not None:
        schema = await answer_schema.checked(deps, project, body.validation.answer_schema, body.endpoint)
    given = body.input_file_id or ""
    input_uri = given if given.startswith(SCHEME) else None
    wanted = BatchRequest(input_file_id=given, input_uri=input_uri, answer_schema=schema, **fields)
    wanted, imported, fingerprint = await bucket_files.checked(deps, project, wanted, headers.repetition)
    if wanted.open:
        return json(await open_batches.create(deps, caller, wanted, headers))
    with deps.booking(project) as booking:
        if body.requests is not None:
            record = await _stored(deps, booking, body.requests, body.endpoint)
            return json(await body_input.create(deps, booking, record, wanted, headers))

        async def source() -> InputRef | None:
            if imported is None:
                return await _input(deps, project, wanted.input_file_id, booking)
            booking.reserve_bytes(imported.bytes)
            booking.reserve_batch(0)
            return imported

        async with deps.gates.creates.turn(project):
            batch = await creation.create(deps, project, wanted, source, headers, fingerprint=fingerprint)
    return json(batch)


async def _stored(
    deps: Dependencies, booking: Booking, requests: list[InlineRequest], endpoint: str
) -> FileRecord:
    """The input file of requests in a create."""
    lines = inline.lines(requests, endpoint, bytes_max=deps.settings.line_bytes_max)
    content = await run_half_time(b"".join, lines)
    return await body_input.store(deps, booking, INLINE_FILENAME, once(content), bytes_expected=len(content))


@router.post(
    "/{batch_id}/requests",
    responses={409: {"description": "The batch is not open, or the append before is missing."}},
)
async def append(
    deps: Deps, caller: Caller, batch_id: BatchId, body: Annotated[Append, Depends(StoringBody(Append))]
) -> Appended:
    """Append requests to an open batch; they run as they come. An append that is sent again changes nothing."""
    return await open_batches.append(deps, caller, batch_id, body)


@router.post(
    "/{batch_id}/seal",
    response_model=Batch,
    responses={409: {"description": "The batch was not created open, or has another number of appends."}},
)
async def seal(
    deps: Deps, caller: Caller, batch_id: BatchId, body: Annotated[Seal, Depends(JsonBody(Seal))]
) -> Response:
    """Seal an open batch: it ends with its last request. A sealed one stays as it is."""
    return json(await open_batches.seal(deps, caller, batch_id, body.sequence))


@router.get("", response_model=ListPage[Batch])
async def index(
    deps: Deps, caller: Caller, query: Annotated[BatchesQuery, Depends(Query(BatchesQuery))]
) -> Response:
    """List batches, the newest first."""
    view = deps.view
    rows, searched_to = await lookup.page(view, query.after, lambda: view.batches(caller.project, query))
    if (since := deps.reading.silent_since(topics.BATCHES.name)) is not None:
        rows = [Row(id=row.id, body=overlay.unread(row.body, since)) for row in rows]
    return json(paging.write(query.page, rows, searched_to))


@router.post(
    "/estimate",
    response_model=Estimate,
    responses={404: {"description": "There is no such file."}},
)
async def estimate(
    deps: Deps, caller: ReadingCaller, body: Annotated[EstimateRequest, Depends(JsonBody(EstimateRequest))]
) -> Response:
    """Estimate lines, tokens and cost of a batch; a key with the role `read` is enough."""
    record = await lookup.file(deps.view, caller.project, body.input_file_id)
    if record.file.purpose != "batch":
        raise errors.wrong_purpose(record.file.purpose)
    async with deps.gates.estimates.turn(caller.project):
        found = await _estimated(deps, record, body.endpoint)
    shown = figures(deps.settings, deps.catalog.contents, found, body.completion_window).model_dump()
    return json(
        Estimate(input_file_id=body.input_file_id, endpoint=body.endpoint, **shown).model_dump_json().encode()
    )


async def _estimated(deps: Dependencies, record: FileRecord, endpoint: str) -> TokenEstimate:
    found = TokenEstimate(endpoint)

    def add(lines: Iterator[Line]) -> None:
        for line in lines:
            found.add(line.data)

    chunks = file_from_store(deps, record)
    try:
        async for lines in lines_of(chunks, deps.settings.line_bytes_max):
            await run_half_time(add, lines)
    except NotFound as error:
        raise errors.no_file(record.file.id) from error
    return found


@router.get("/{batch_id}", response_model=Batch)
async def retrieve(deps: Deps, caller: Caller, batch_id: BatchId) -> Response:
    """Get a batch."""
    body = await lookup.batch_json(deps.view, caller.project, batch_id)
    since = deps.reading.silent_since(topics.BATCHES.name)
    return json(body if since is None else overlay.unread(body, since))


@router.post("/{batch_id}/cancel", response_model=Batch, responses={409: {"description": "The batch has ended."}})
async def cancel(request: Request, deps: Deps, caller: Caller, batch_id: BatchId) -> Response:
    """Cancel a batch; a body is ignored, and a finished batch stays as it is."""
    return json(await changes.cancel(request, deps, caller, batch_id))


@router.delete(
    "/{batch_id}",
    response_model=DeletedBatch,
    responses={409: {"description": "The batch is running."}},
)
async def delete(
    request: Request,
    deps: Deps,
    caller: Caller,
    batch_id: BatchId,
    query: Annotated[DeleteQuery, Depends(Query(DeleteQuery))],
) -> Response:
    """Delete a finished batch with its results; its lines can no longer be replayed."""
    end = b""
    if query.input == "true":
        found = await changes.delete_with_input(request, deps, caller, batch_id)
        end = b',"input_file":"%b"' % found.encode()
    else:
        await changes.delete(request, deps, caller, batch_id)
    return json(b'{"id":"%b","object":"batch","deleted":true%b}' % (batch_id.encode(), end))


async def _input(deps: Dependencies, project: str, file_id: str, booking: Booking) -> InputRef | None:
    """The input; None if there is no such file, which fails the batch later, as at OpenAI.

    Raises:
        ApiError: 400, the file has another purpose; 429, the project has no room for the batch.
    """
    try:
        record = await lookup.file(deps.view, project, file_id)
    except ApiError:
        booking.reserve_batch(0)
        return None
    if record.file.purpose != "batch":
        raise errors.wrong_purpose(record.file.purpose)
    booking.reserve_batch(record.lines or 0)
    return InputRef(key=record.key, bytes=record.file.bytes)
