"""The routes of Anthropic's Message Batches API, which knows only the batches of `/v1/messages`."""

import asyncio
from typing import Annotated, Any, ClassVar, Final, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from tidemill.api import errors, lookup
from tidemill.api.anthropic import creation, message_batch, results
from tidemill.api.anthropic.message_batch import PATH, MessageBatch, processing_status
from tidemill.api.anthropic.request_body import CUSTOM_ID
from tidemill.api.batches import changes, latest
from tidemill.api.batches.creation import CreateHeaders
from tidemill.api.dependencies import Caller, Deps, ViewDep, json
from tidemill.api.error_bodies import MESSAGES, OVERLOADED
from tidemill.api.http.download import begun
from tidemill.api.openapi import Route
from tidemill.api.requests import paging, reading
from tidemill.api.requests.fields import BatchId, Cursor
from tidemill.api.requests.filters import BatchesQuery
from tidemill.api.requests.parts import Query
from tidemill.api.uploads.form_reader import StreamedBody
from tidemill.api.view.view import View
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.error import ApiError

LIMIT_DEFAULT: Final = 20
LIMIT_MAX: Final = 1_000
"""Source: Anthropic's API reference, "List Message Batches"."""


class ErrorObject(BaseModel):
    """An error."""

    type: str
    message: str


class ErrorResponse(BaseModel):
    """The body of an error answer."""

    type: Literal["error"]
    error: ErrorObject
    request_id: str


class MessageRoute(Route):
    """A route with Anthropic's errors."""

    error_model = ErrorResponse
    statuses: ClassVar = {503: OVERLOADED}


router = APIRouter(prefix=PATH, tags=["message batches"], route_class=MessageRoute)


class DeletedMessageBatch(BaseModel):
    """A deleted message batch."""

    id: str
    type: Literal["message_batch_deleted"] = "message_batch_deleted"


class MessageBatchList(BaseModel):
    """A page of message batches, the newest first."""

    data: list[MessageBatch]
    has_more: bool
    first_id: str | None
    last_id: str | None


class MessageBatchesQuery(reading.Parameters):
    """The query of a list of message batches."""

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX), reading.WHOLE] = LIMIT_DEFAULT
    """How many a page has at most."""
    after_id: Cursor | None = None
    """The page has the batches directly after this one, which are older."""
    before_id: Cursor | None = None
    """The page has the batches directly before this one, which are newer."""


class RequestsBody(StreamedBody):
    """The body of a create."""

    def described(self) -> dict[str, Any]:
        """The schema of the body."""
        params = {"type": "object", "description": "The body of a request to `/v1/messages`."}
        fields = {"custom_id": {"type": "string", "pattern": CUSTOM_ID}, "params": params}
        each = _closed(fields)
        body = _closed({"requests": {"type": "array", "minItems": 1, "items": each}}) | {"x-streamed": True}
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}


def _closed(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(fields), "properties": fields, "additionalProperties": False}


@router.post(
    "",
    response_model=MessageBatch,
    responses={409: {"description": "The `Idempotency-Key` was used for another request."}},
)
async def create(
    deps: Deps,
    caller: Caller,
    headers: CreateHeaders,
    request: Annotated[Request, Depends(RequestsBody())],
) -> Response:
    """Create a message batch; the answer comes when the log has it, and ingest validates `params` afterwards."""
    batch = await creation.create(request, deps, caller.project, headers)
    return json(message_batch.shown(deps.view, caller.project, batch))


@router.get("", response_model=MessageBatchList)
async def index(
    view: ViewDep, caller: Caller, query: Annotated[MessageBatchesQuery, Depends(Query(MessageBatchesQuery))]
) -> Response:
    """List message batches, the newest first."""
    wanted = _wanted(query)
    try:
        rows, _ = await lookup.page(view, wanted.after, lambda: view.batches(caller.project, wanted))
    except ApiError as error:
        name = "after_id" if query.before_id is None else "before_id"
        raise errors.unknown_cursor(wanted.after or "", param=name) from error
    shown = list(paging.of_page(wanted.page, rows))
    if query.before_id is not None:
        shown.reverse()
    data = []
    for row in shown:
        data.append(message_batch.shown(view, caller.project, Batch.model_validate_json(row.body)))
        # A page may have a thousand, which other requests do not wait for.
        await asyncio.sleep(0)
    page = MessageBatchList(
        data=data,
        has_more=len(rows) > len(shown),
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )
    return json(page)


@router.get("/{batch_id}", response_model=MessageBatch)
async def retrieve(view: ViewDep, caller: Caller, batch_id: BatchId) -> Response:
    """Get a message batch."""
    return json(message_batch.shown(view, caller.project, await _found(view, caller.project, batch_id)))


@router.post(
    "/{batch_id}/cancel",
    response_model=MessageBatch,
    responses={409: {"description": "The batch has ended."}},
)
async def cancel(request: Request, deps: Deps, caller: Caller, batch_id: BatchId) -> Response:
    """Cancel a message batch; one that was cancelled before stays as it is."""
    await _found(deps.view, caller.project, batch_id)
    batch = await changes.cancel(request, deps, caller, batch_id, named=processing_status)
    return json(message_batch.shown(deps.view, caller.project, batch))


@router.delete(
    "/{batch_id}",
    response_model=DeletedMessageBatch,
    responses={409: {"description": "The batch is running."}},
)
async def delete(request: Request, deps: Deps, caller: Caller, batch_id: BatchId) -> Response:
    """Delete an ended message batch with its requests and results."""
    if not deps.view.erasures.is_deleted(caller.project, batch_id):
        await _found(deps.view, caller.project, batch_id)
        await changes.delete(request, deps, caller, batch_id, named=processing_status)
    return json(DeletedMessageBatch(id=batch_id))


@router.get(
    "/{batch_id}/results",
    response_model=None,
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "A result a line, in the order of the requests.",
            "content": {"application/x-jsonl": {"schema": {"type": "string"}}},
        }
    },
)
async def download(deps: Deps, caller: Caller, batch_id: BatchId) -> Response:
    """Stream the results of an ended message batch."""
    await _found(deps.view, caller.project, batch_id)
    batch = await latest.batch(deps, caller.project, batch_id)
    if not batch.status.is_terminal or not message_batch.has_results(deps.view, caller.project, batch):
        why = "its results are deleted" if batch.status.is_terminal else "it has not ended"
        raise errors.no_results(batch_id, why)
    lines = await begun(results.written(deps, caller.project, batch))
    return StreamingResponse(lines, media_type="application/x-jsonl")


def _wanted(query: MessageBatchesQuery) -> BatchesQuery:
    """The query of a list of batches; the page before a batch goes up from it.

    Raises:
        ApiError: 400, both ids are given.
    """
    if query.after_id is not None and query.before_id is not None:
        raise errors.invalid_param("before_id", "it cannot be combined with 'after_id'.")
    is_up = query.before_id is not None
    cursor = query.before_id if is_up else query.after_id
    order = "asc" if is_up else "desc"
    return BatchesQuery.model_construct(limit=query.limit, after=cursor, order=order, endpoint=MESSAGES)


async def _found(view: View, project: str, batch_id: str) -> Batch:
    batch = await lookup.batch(view, project, batch_id)
    if batch.endpoint != MESSAGES:
        raise errors.no_batch(batch_id)
    return batch
