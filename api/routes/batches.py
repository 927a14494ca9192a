"""The routes of batches."""

from typing import Any

from fastapi import APIRouter, Request, Response

from tidemill.api import errors, responses
from tidemill.api.batches import batch_request, creation, file_removal
from tidemill.api.dependencies import Caller, Dependencies, Deps, body, json
from tidemill.api.requests import bodies, paging, reading
from tidemill.api.requests.fields import BatchId
from tidemill.api.requests.filters import BatchesQuery
from tidemill.api.view import lookup, overlay
from tidemill.api.view.quotas import Booking
from tidemill.api.view.view import UnknownCursor
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord, CancelRequested, InputRef
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.schemas.resources.error import ApiError

_CANCELLABLE = frozenset({Status.VALIDATING, Status.IN_PROGRESS})
_ALREADY = frozenset({Status.CANCELLING, Status.CANCELLED})

KEY_REUSED = "The `Idempotency-Key` was used for another request."

_CREATE: dict[str, Any] = {
    "requestBody": responses.body(bodies.NewBatch),
    **creation.DESCRIBED,
}
_INDEX: dict[str, Any] = {"parameters": reading.described(BatchesQuery)}

router = APIRouter(prefix="/v1/batches", tags=["batches"])


@router.post(
    "",
    response_model=Batch,
    responses={409: {"description": KEY_REUSED}, **responses.LIMITED},
    openapi_extra=_CREATE,
)
async def create(request: Request, deps: Deps, caller: Caller) -> Response:
    """Create a batch; it is taken once the log has it, and the file is checked afterwards."""
    repeats = creation.repetition(request.headers)
    asked = batch_request.of(reading.body(bodies.NewBatch, await body(request), deps.settings))
    project = caller.project

    with deps.booking(project) as booking:

        async def source() -> InputRef | None:
            return await _input(deps, project, asked.input_file_id, booking)

        async with deps.creates.turn(project):
            batch = await creation.create(deps, project, asked, source, repeats)
    return json(batch.model_dump_json().encode())


@router.get("", response_model=responses.BatchPage, openapi_extra=_INDEX)
async def index(request: Request, deps: Deps, caller: Caller) -> Response:
    """List batches, the newest first."""
    asked = reading.query(BatchesQuery, request.query_params.multi_items())
    page = asked.page
    try:
        rows = deps.view.batches(caller.project, page, asked.wanted)
    except UnknownCursor as error:
        raise errors.unknown_cursor(page.after or "") from error
    return json(paging.write(page, rows))


@router.get("/{batch_id}", response_model=Batch)
async def retrieve(batch_id: BatchId, deps: Deps, caller: Caller) -> Response:
    """Get a batch."""
    return json(await lookup.batch(deps.view, caller.project, batch_id))


@router.post("/{batch_id}/cancel", response_model=Batch, responses={409: {"description": "The batch is over."}})
async def cancel(batch_id: BatchId, request: Request, deps: Deps, caller: Caller) -> Response:
    """Ask to cancel a batch; a body is not read. What is over already stays so."""
    shown = await lookup.batch(deps.view, caller.project, batch_id)
    status = Batch.model_validate_json(shown).status
    if status in _ALREADY:
        return json(shown)
    if status not in _CANCELLABLE:
        raise errors.conflict(f"Cannot cancel a batch with status '{status}'.")
    at = int(deps.clock())
    await deps.trail.tell(request, caller, Action.BATCH_CANCEL, batch_id)
    await _send(deps, batch_id, CancelRequested(batch_id=batch_id, at=at))
    # The batch may have gone on while the log was waited for.
    current = Batch.model_validate_json(await lookup.batch(deps.view, caller.project, batch_id))
    return json(_shown(deps, caller.project, overlay.cancelled(current, at)))


@router.delete(
    "/{batch_id}", response_model=responses.DeletedBatch, responses={409: {"description": "The batch is at work."}}
)
async def delete(batch_id: BatchId, request: Request, deps: Deps, caller: Caller) -> Response:
    """Delete a batch that is over, with its results: nothing of its content can be had or replayed any more."""
    if not deps.view.erasures.is_deleted(batch_id, caller.project):
        batch = Batch.model_validate_json(await lookup.batch(deps.view, caller.project, batch_id))
        if not batch.status.is_terminal:
            raise errors.conflict(f"Cannot delete a batch with status '{batch.status}': cancel it first.")
        await deps.trail.tell(request, caller, Action.BATCH_DELETE, batch_id)
        await file_removal.remove_batch(deps, caller.project, batch)
    return json(b'{"id":"%b","object":"batch","deleted":true}' % batch_id.encode())


async def _input(deps: Dependencies, project: str, file_id: str, booking: Booking) -> InputRef | None:
    """Where the input lies; None where there is no such file, which fails the batch later, as at OpenAI.

    Raises:
        ApiError: 400, the file is for something else; 429, the project has no room for the batch.
    """
    try:
        record = await lookup.file(deps.view, project, file_id)
    except ApiError:
        booking.batch(0)
        return None
    if record.file.purpose != "batch":
        raise errors.wrong_purpose("input_file_id", record.file.purpose)
    booking.batch(record.lines or 0)
    return InputRef(key=record.key, bytes=record.file.bytes)


async def _send(deps: Dependencies, batch_id: str, command: CancelRequested) -> None:
    headers = [(codec.KIND, command.kind.encode())]
    await deps.log.send(topics.COMMANDS.name, batch_id, codec.encode(command), headers=headers)


def _shown(deps: Dependencies, project: str, batch: Batch) -> bytes:
    """Put what was sent into the view, and return what is to be seen of it."""
    return deps.view.put_batch(BatchRecord(project=project, batch=batch)).model_dump_json().encode()
