"""Cancels and deletes batches."""

from collections.abc import Callable
from enum import StrEnum

from fastapi import Request

from tidemill.api import errors, lookup
from tidemill.api.access.auth import Principal
from tidemill.api.batches import file_removal, latest
from tidemill.api.dependencies import Dependencies
from tidemill.api.view import overlay
from tidemill.schemas.lifecycle import CANCELLABLE, CANCELLED
from tidemill.schemas.log.messages import BatchRecord, CancelRequested
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.resources.batch import Batch, Status

Named = Callable[[Status], str]
"""The word of a client's API for a status."""


async def cancel(
    request: Request, deps: Dependencies, caller: Principal, batch_id: str, *, named: Named = str
) -> Batch:
    """Cancel a batch; one that was cancelled before stays as it is.

    Raises:
        ApiError: 404, there is no such batch; 409, it has ended, or its window has.
        LogUnavailable: The log does not answer, and the batch goes on.
    """
    batch = await latest.batch(deps, caller.project, batch_id)
    if batch.status in CANCELLED:
        return batch
    if batch.status not in CANCELLABLE:
        raise errors.conflict(f"Cannot cancel a batch with status '{named(batch.status)}'.")
    at = int(deps.clock())
    if at >= batch.expires_at:
        raise errors.conflict(
            f"Cannot cancel a batch with status '{named(batch.status)}' whose window is over: it expires."
        )
    await deps.trail.record(request, caller, Action.BATCH_CANCEL, batch_id)
    await deps.publisher.command(batch_id, CancelRequested(batch_id=batch_id, at=at))
    # The batch may have changed while the api waited for the log.
    current = await lookup.batch(deps.view, caller.project, batch_id)
    return deps.view.put_batch(BatchRecord(project=caller.project, batch=overlay.cancelled(current, at)))


class InputEnd(StrEnum):
    """What became of the input of a deleted batch."""

    DELETED = "deleted"
    SHARED = "shared"
    """It stays: it is the input of another batch."""
    GONE = "gone"
    """There is no such file, or none any more: a repeated request finds what its first try left."""


async def delete(
    request: Request, deps: Dependencies, caller: Principal, batch_id: str, *, named: Named = str
) -> None:
    """Delete a finished batch with its results; one that was deleted before stays deleted.

    Raises:
        ApiError: 404, there is no such batch; 409, it is running; 503, the log does not own the store.
        LogUnavailable: The log does not answer, and the batch stays.
    """
    if deps.view.erasures.is_deleted(caller.project, batch_id):
        return
    batch = await _deletable(deps, caller, batch_id, named)
    await deps.trail.record(request, caller, Action.BATCH_DELETE, batch_id)
    await file_removal.remove_batch(deps, caller.project, batch)


async def delete_with_input(request: Request, deps: Dependencies, caller: Principal, batch_id: str) -> InputEnd:
    """Delete a finished batch with its results and its input.

    The input goes first: then the batch still names it, if this ends half-way and is repeated. A batch that was
    deleted without its input loses that now.

    Raises:
        ApiError: As `delete`; 409, another batch is claimed with the input, and nothing is deleted.
        LogUnavailable: The log does not answer; repeat the request.
    """
    input_file_id = deps.view.erasures.input_of(caller.project, batch_id)
    if input_file_id is not None:
        file_removal.check_store(deps)
        return await _delete_input(request, deps, caller, batch_id, input_file_id)
    batch = await _deletable(deps, caller, batch_id, str)
    end = await _delete_input(request, deps, caller, batch_id, batch.input_file_id)
    await delete(request, deps, caller, batch_id)
    return end


async def _delete_input(
    request: Request, deps: Dependencies, caller: Principal, batch_id: str, file_id: str
) -> InputEnd:
    if (record := deps.view.file(caller.project, file_id)) is None:
        return InputEnd.GONE
    if others := await file_removal.other_readers(deps, file_id, batch_id):
        if all(reader.is_claim for reader in others):
            raise errors.conflict(
                "Nothing is deleted: a create of a batch with this input may still be at work. "
                "Please try again in an hour."
            )
        return InputEnd.SHARED
    await deps.trail.record(request, caller, Action.FILE_DELETE, file_id)
    await file_removal.remove(deps, file_id, record.key)
    return InputEnd.DELETED


async def _deletable(deps: Dependencies, caller: Principal, batch_id: str, named: Named) -> Batch:
    """The batch; raises `ApiError` as `delete`."""
    batch = await latest.batch(deps, caller.project, batch_id)
    if not batch.status.is_terminal:
        raise errors.conflict(f"Cannot delete a batch with status '{named(batch.status)}': cancel it first.")
    if deps.owner.fault is not None:
        # Results would delete its objects.
        raise errors.foreign_store(deps.owner.fault.text)
    return batch
