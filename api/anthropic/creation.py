"""Creates a batch of the requests in a body: they become an input file, and an ordinary batch of it."""

from collections.abc import AsyncIterator

from fastapi import Request

from tidemill.api import errors
from tidemill.api.anthropic.request_body import RequestReader
from tidemill.api.batches import creation, file_removal
from tidemill.api.batches.batch_request import BatchRequest
from tidemill.api.batches.creation import Repetition
from tidemill.api.dependencies import Dependencies, from_store
from tidemill.api.error_bodies import MESSAGES
from tidemill.api.uploads.form_reader import declared_bytes, large_body, next_bytes
from tidemill.api.uploads.sink import CHUNK_BYTES, Sink, new_file
from tidemill.api.view.quotas import Booking
from tidemill.configuration.settings import Settings
from tidemill.runtime.threads import run_half_time
from tidemill.schemas import ids
from tidemill.schemas.log.messages import FileRecord, InputRef
from tidemill.schemas.log.part import file_key
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.error import ApiError

FILENAME = "message-batch.jsonl"
"""The name of each input file."""
WINDOW = "24h"
"""The window of Anthropic's batches."""


async def create(
    request: Request, deps: Dependencies, project: str, repeats: Repetition, headers: dict[str, str]
) -> Batch:
    """Create a batch, or find the one that the same request created before.

    The same request is one with the same idempotency key, or a repetition by an SDK of equal requests. `headers`
    go with each call.

    Raises:
        ApiError: The body is invalid, or the project has no room; nothing is left of it.
        ClientDisconnect: It broke off; nothing is left of it.
        LogUnavailable: The log does not answer; the same request may be sent again.
    """
    settings = deps.settings
    with deps.booking(project) as booking:
        record = await _stored(request, deps, booking)
        window = WINDOW if WINDOW in settings.windows else settings.usual_window
        wanted = BatchRequest(endpoint=MESSAGES, input_file_id=record.file.id, completion_window=window)
        content = {"endpoint": MESSAGES, "window": window, "sha256": record.sha256}

        async def source() -> InputRef:
            booking.batch(record.lines or 0)
            await deps.publisher.file(record)
            return InputRef(key=record.key, bytes=record.file.bytes)

        try:
            async with deps.gates.creates.turn(project):
                fingerprint = creation.fingerprint_of(content)
                batch = await creation.create(
                    deps, project, wanted, source, repeats, fingerprint=fingerprint, headers=headers
                )
        except ApiError:
            if deps.view.file(project, record.file.id) is None:
                await from_store(deps.store.delete(record.key))
            raise
    if batch.input_file_id != record.file.id:
        await file_removal.remove(deps, record.file.id, record.key)
    return batch


async def remove_input(deps: Dependencies, project: str, batch: Batch) -> None:
    """Delete the input file of a batch that is to be deleted, if `create` made it and no other batch has it.

    Raises:
        LogUnavailable: The log does not answer, and the file stays.
    """
    record = deps.view.file(project, batch.input_file_id)
    if record is None or not record.from_body or deps.view.is_shared(record.file.id, batch.id):
        return
    await file_removal.remove(deps, record.file.id, record.key)


async def _stored(request: Request, deps: Dependencies, booking: Booking) -> FileRecord:
    """Write the requests into an input file, which has no record yet."""
    settings, project, file_id = deps.settings, booking.project, ids.new_file_id(booking.project)
    bytes_max = settings.file_bytes_max
    too_large = errors.body_too_large(bytes_max)
    async with (
        large_body(request, deps, project, bytes_max, too_large) as stream,
        Sink(deps.store, file_key(file_id), bytes_max=bytes_max, param="requests") as sink,
    ):
        booking.bytes(declared_bytes(request))
        async for lines in _lines(stream, settings, too_large):
            await sink.put(lines)
        booking.bytes(sink.size)
        stored = await sink.commit()
    file = new_file(file_id, FILENAME, int(deps.clock()), life_seconds=settings.input_life_seconds)
    return stored.record(project, file).model_copy(update={"from_body": True})


async def _lines(stream: AsyncIterator[bytes], settings: Settings, too_large: ApiError) -> AsyncIterator[bytes]:
    reader = RequestReader(requests_max=settings.file_lines_max, line_bytes_max=settings.line_bytes_max)
    gathered, size = bytearray(), 0
    while chunk := await next_bytes(stream):
        size += len(chunk)
        if size > settings.file_bytes_max:
            raise too_large
        gathered += chunk
        if len(gathered) >= CHUNK_BYTES:
            yield await run_half_time(reader.feed, bytes(gathered))
            gathered.clear()
    if gathered:
        yield await run_half_time(reader.feed, bytes(gathered))
    reader.finish()
