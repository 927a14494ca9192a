"""Single asynchronous requests: each is a batch of one line, with all that a batch has."""

from typing import Any, Final, Literal

from pydantic import BaseModel

from tidemill.api import errors, lookup
from tidemill.api.batches import result_pages
from tidemill.api.batches.batch_request import BatchRequest
from tidemill.api.batches.creation import NewBatchHeaders
from tidemill.api.batches.result_pages import ResultLine
from tidemill.api.dependencies import Dependencies
from tidemill.api.inline import body_input
from tidemill.api.requests import inline
from tidemill.api.requests.inline import InlineRequest
from tidemill.schemas.jsonl import server_error
from tidemill.schemas.ports import once
from tidemill.schemas.resources.batch import Batch, Status
from tidemill.schemas.resources.waiting import Waits

FILENAME: Final = "request.jsonl"
CUSTOM_ID: Final = "request"
"""The `custom_id` of the only line."""
_STATUSES: Final = {
    Status.VALIDATING: "queued",
    Status.IN_PROGRESS: "in_progress",
    Status.FINALIZING: "in_progress",
    Status.CANCELLING: "in_progress",
}


class AsyncError(BaseModel):
    """Why there is no answer."""

    code: str
    message: str


class AsyncRequest(BaseModel):
    """An asynchronous request. Times are Unix seconds."""

    id: str
    """Also the id of its batch of one line."""
    object: Literal["async.request"] = "async.request"
    endpoint: str
    model: str | None
    status: Literal["queued", "in_progress", "completed", "failed", "expired", "cancelled"]
    created_at: int
    expires_at: int
    ended_at: int | None
    status_code: int | None = None
    """The status of the server's answer; null without one."""
    response: dict[str, Any] | None = None
    """The body of the server's answer; null without one."""
    error: AsyncError | None = None
    """Null if it completed."""
    waiting: Waits = ()
    """Why it waits for longer than usual."""


_NO_ANSWER: Final = AsyncError(code="no_answer", message="The result is deleted.")


async def create(
    deps: Dependencies, project: str, wanted: BatchRequest, body: bytes, headers: NewBatchHeaders
) -> Batch:
    """Create the batch of a request, or find the one that the same request created before.

    Raises:
        ApiError: 409, the key was used for another request; 413, it is too large; 429, the project has no room.
        LogUnavailable: The log does not answer; the same request may be sent again.
    """
    request = InlineRequest(custom_id=CUSTOM_ID, body=body)
    (line,) = inline.lines([request], wanted.endpoint, bytes_max=deps.settings.line_bytes_max)
    with deps.booking(project) as booking:
        record = await body_input.store(deps, booking, FILENAME, once(line), bytes_expected=len(line))
        return await body_input.create(deps, booking, record, wanted, headers)


async def shown(deps: Dependencies, project: str, batch: Batch) -> bytes:
    """A request as JSON, with its answer if it has ended; the answer keeps its text.

    Raises:
        ApiError: 503, the store does not answer.
    """
    result = await _result(deps, project, batch) if batch.status.is_terminal else ResultLine()
    known = AsyncRequest(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        status=_status(batch),
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        ended_at=batch.ended_at,
        status_code=None if result.response is None else result.response.status_code,
        error=_error(batch, result),
        waiting=batch.tidemill.waiting,
    )
    text = known.model_dump_json(exclude={"response"}).encode()
    answer = b"null" if result.response is None else bytes(result.response.body)
    return b'%b,"response":%b}' % (text[:-1], answer)


async def find(deps: Dependencies, project: str, endpoint: str, batch_id: str) -> Batch:
    """The batch of a request.

    Raises:
        ApiError: 404, there is no such request at this endpoint.
    """
    batch = await lookup.batch(deps.view, project, batch_id)
    if not batch.tidemill.single or batch.endpoint != endpoint:
        raise errors.no_async_request(batch_id)
    return batch


def _status(batch: Batch) -> str:
    if (waiting := _STATUSES.get(batch.status)) is not None:
        return waiting
    if batch.status is Status.COMPLETED and batch.output_file_id is None:
        return "failed"
    return batch.status.value


async def _result(deps: Dependencies, project: str, batch: Batch) -> ResultLine:
    found = await result_pages.page(deps, project, batch, after=-1, limit=1)
    return result_pages.parse(*await result_pages.texts(deps, found)) if found else ResultLine()


def _error(batch: Batch, result: ResultLine) -> AsyncError | None:
    """Why it has no answer, or a bad one."""
    if not batch.status.is_terminal or (batch.status is Status.COMPLETED and batch.output_file_id is not None):
        return None if not batch.status.is_terminal or result.response is not None else _NO_ANSWER
    if batch.errors is not None and batch.errors.data:
        fault = batch.errors.data[0]
        return AsyncError(code=fault.code, message=fault.message)
    if result.error is not None:
        return AsyncError(code=result.error.code or "error", message=result.error.message or "")
    if result.response is not None:
        said = server_error.read(result.response.body).message
        more = f": {said}" if said else "."
        status = result.response.status_code
        return AsyncError(code="backend_error", message=f"The server answered with status {status}{more}")
    return AsyncError(code=f"batch_{batch.status}", message=f"The request is {batch.status}.")
