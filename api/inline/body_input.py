"""Creates a batch of the requests in a body: they become an input file, and an ordinary batch of it."""

from collections.abc import AsyncIterator
from contextlib import suppress
from http import HTTPStatus

from tidemill.api.batches import creation, file_removal
from tidemill.api.batches.batch_request import BatchRequest
from tidemill.api.batches.creation import NewBatchHeaders
from tidemill.api.dependencies import Dependencies, from_store
from tidemill.api.uploads.sink import Sink, new_file
from tidemill.api.view.quotas import Booking
from tidemill.schemas import ids
from tidemill.schemas.log.messages import FileRecord, InputRef
from tidemill.schemas.log.part import file_key
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.error import ApiError


async def store(
    deps: Dependencies, booking: Booking, filename: str, lines: AsyncIterator[bytes], *, bytes_expected: int
) -> FileRecord:
    """Write lines into an input file, which has no record in the log yet.

    Args:
        deps: The dependencies of the app.
        booking: Reserves room first for `bytes_expected`, then for the actual bytes.
        filename: The name of the file.
        lines: Chunks of whole lines, each with its newline.
        bytes_expected: The size that the client declares.

    Raises:
        ApiError: The lines are invalid or too many, or there is no room; nothing is left of them.
    """
    settings, project = deps.settings, booking.project
    file_id = ids.new_file_id(project)
    async with Sink(deps.store, file_key(file_id), bytes_max=settings.file_bytes_max, param="requests") as sink:
        booking.reserve_bytes(bytes_expected)
        async for chunk in lines:
            await sink.put(chunk)
        booking.reserve_bytes(sink.size)
        stored = await sink.commit()
    file = new_file(file_id, filename, int(deps.clock()), life_seconds=settings.input_life_seconds)
    return stored.record(project, file).model_copy(update={"from_body": True})


async def create(
    deps: Dependencies,
    booking: Booking,
    record: FileRecord,
    wanted: BatchRequest,
    headers: NewBatchHeaders,
) -> Batch:
    """Create a batch of a file that `store` wrote, or find the one that the same request created before.

    The same request is one with the same idempotency key, or a repetition by an SDK of equal requests. The file
    stays only if the batch has it.

    Raises:
        ApiError: 409, the key was used for another request; 429, the project has no room.
        LogUnavailable: The log does not answer; the same request may be sent again.
    """
    project, file_id = booking.project, record.file.id
    wanted = wanted.model_copy(update={"input_file_id": file_id, "input_sha256": record.sha256})

    async def source() -> InputRef:
        booking.reserve_batch(record.lines or 0)
        await deps.publisher.file(record)
        return InputRef(key=record.key, bytes=record.file.bytes)

    try:
        async with deps.gates.creates.turn(project):
            batch = await creation.create(deps, project, wanted, source, headers)
    except ApiError as error:
        if deps.view.file(project, file_id) is None:
            # If the store fails, the object is an orphan and deleted later.
            with suppress(ApiError):
                await from_store(deps.store.delete(record.key))
        elif error.status == HTTPStatus.CONFLICT:
            await file_removal.discard(deps, file_id, record.key)
        raise
    if batch.input_file_id != file_id:
        await file_removal.discard(deps, file_id, record.key)
    return batch
