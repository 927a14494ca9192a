"""Open batches: requests follow in appends until a seal, and run as they come, like those of a direct producer.

Appends count from 1. The api sends one only if it knows that the one before is in the log, so those in the log are
in order and without a gap; ingest drops one that is there twice. So a client may send an append again, to any api
process, until it is answered.
"""

from typing import Literal

from pydantic import BaseModel

from tidemill.api import errors, lookup
from tidemill.api.access.auth import Principal
from tidemill.api.batches import creation
from tidemill.api.batches.batch_request import BatchRequest
from tidemill.api.batches.creation import CLAIM_SECONDS_MAX, NewBatchHeaders
from tidemill.api.dependencies import Dependencies
from tidemill.api.requests import inline
from tidemill.api.requests.bodies import Append
from tidemill.api.view import overlay
from tidemill.schemas.bounds import RECORD_BYTES_EXTRA, RECORD_BYTES_MAX
from tidemill.schemas.log.messages import BatchCreated, BatchRecord
from tidemill.schemas.resources.batch import Batch, Status

APPEND_BYTES_MAX = RECORD_BYTES_MAX - RECORD_BYTES_EXTRA
"""Bytes of the lines of one append, which are one record of the log."""


class Appended(BaseModel):
    """The answer to an append: the log has its requests."""

    object: Literal["batch.append"] = "batch.append"
    batch_id: str
    sequence: int
    requests: int
    repeated: bool = False
    """Whether the log had an append of this number already; then nothing was appended."""


async def create(deps: Dependencies, caller: Principal, wanted: BatchRequest, headers: NewBatchHeaders) -> Batch:
    """Create an open batch, or find the one that the same request created before.

    Raises:
        ApiError: 409, the key was used for another request; 429, the project has no room.
        LogUnavailable: The log does not answer; the same request may be sent again.
    """
    with deps.booking(caller.project) as booking:

        async def source() -> None:
            booking.reserve_batch(0)

        async def publish(command: BatchCreated) -> None:
            await deps.intake.open(command)

        async with deps.gates.creates.turn(caller.project):
            return await creation.create(deps, caller.project, wanted, source, headers, publish=publish)


async def append(deps: Dependencies, caller: Principal, batch_id: str, body: Append) -> Appended:
    """Append requests; the log has them when this returns.

    Raises:
        ApiError: 404, there is no such batch; 409, it is not open, or the append before is missing; 413, the
            requests are too large; 429, the project has no room.
        LogUnavailable: The log does not answer; the same append may be sent again.
    """
    project, sequence = caller.project, body.sequence
    batch = await _found(deps, project, batch_id)
    content = b"".join(inline.lines(body.requests, batch.endpoint, bytes_max=APPEND_BYTES_MAX))
    if len(content) > APPEND_BYTES_MAX:
        raise errors.body_too_large(APPEND_BYTES_MAX, param="requests")
    done = Appended(batch_id=batch_id, sequence=sequence, requests=len(body.requests))
    async with deps.intake.turn(batch_id):
        if sequence <= deps.intake.sequence(await _found(deps, project, batch_id)):
            return done.model_copy(update={"repeated": True})
        _check_open(await _found(deps, project, batch_id))
        if sequence - 1 > (known := await _reached(deps, project, batch_id, sequence - 1)):
            raise errors.sequence_gap(known)
        with deps.booking(project) as booking:
            booking.reserve_append(len(body.requests), len(content))
            await deps.intake.append(project, batch_id, content, sequence=sequence)
            current = await lookup.batch(deps.view, project, batch_id)
            deps.view.put_batch(BatchRecord(project=project, batch=overlay.appended(current, len(content))))
    return done


async def seal(deps: Dependencies, caller: Principal, batch_id: str, sequence: int | None) -> Batch:
    """Seal a batch; one that is sealed or over stays as it is.

    Args:
        deps: The dependencies of the app.
        caller: The caller.
        batch_id: The batch.
        sequence: The number of its appends, if the client says it.

    Raises:
        ApiError: 404, there is no such batch; 409, it was not created open, or has another number of appends.
        LogUnavailable: The log does not answer; the same request may be sent again.
    """
    async with deps.intake.turn(batch_id):
        batch = await _found(deps, caller.project, batch_id)
        if not _is_open(batch):
            return batch
        if (
            sequence is not None
            and (known := await _reached(deps, caller.project, batch_id, sequence)) != sequence
        ):
            raise errors.sequence_gap(known)
        await deps.intake.seal(caller.project, batch_id)
        current = await lookup.batch(deps.view, caller.project, batch_id)
        return deps.view.put_batch(BatchRecord(project=caller.project, batch=overlay.sealed(current)))


async def _found(deps: Dependencies, project: str, batch_id: str) -> Batch:
    batch = await lookup.batch(deps.view, project, batch_id)
    if batch.tidemill.stream != batch.id:
        words = "This batch was not created with 'open'."
        if batch.tidemill.stream is not None:
            words = "This batch is the stream of a direct producer: a record with 'tidemill-end' seals it."
        raise errors.conflict(words, code="batch_not_open")
    return batch


def _is_open(batch: Batch) -> bool:
    return batch.tidemill.open and batch.status is Status.IN_PROGRESS


def _check_open(batch: Batch) -> None:
    if not _is_open(batch):
        why = "sealed" if batch.status is Status.IN_PROGRESS else batch.status.value
        raise errors.conflict(f"The batch accepts no more requests: it is {why}.", code="batch_not_open")


async def _reached(deps: Dependencies, project: str, batch_id: str, sequence: int) -> int:
    """The highest append in the log; waits a while for this one, which another process may have sent."""

    def known() -> int:
        shown = deps.view.batch(project, batch_id)
        return 0 if shown is None else deps.intake.sequence(Batch.model_validate_json(shown))

    def found() -> bool | None:
        return known() >= sequence or None

    if found() is None:
        await deps.view.changes.wait_for(batch_id, found, seconds_max=CLAIM_SECONDS_MAX)
    return known()
