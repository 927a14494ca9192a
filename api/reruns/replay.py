"""Creates the batch of a replay: the lines of a range of the log, run once more.

1. It gathers the lines of the range on disk, each once.
2. It writes them into an input file, batch by batch, each in its own order (`replay_spool.py`).
3. It creates the new batch like any other (`api/batches/creation.py`). If two tries of one request get here, it
   deletes the file of the second.
"""

import asyncio
from collections.abc import AsyncIterator

from tidemill.api.batches import batch_request, creation, file_removal
from tidemill.api.batches.batch_request import BatchRequest
from tidemill.api.dependencies import Dependencies
from tidemill.api.reruns import input_file, log_range
from tidemill.api.reruns.log_range import LogRange
from tidemill.api.reruns.replay_spool import ReplaySpool, Sources
from tidemill.api.reruns.rerun import RerunOptions, named_model
from tidemill.schemas import fingerprint_of, ids
from tidemill.schemas.log.messages import InputRef
from tidemill.schemas.log.part import file_key
from tidemill.schemas.resources.batch import Batch


async def create(
    deps: Dependencies,
    project: str,
    lines: LogRange,
    options: RerunOptions,
    headers: creation.NewBatchHeaders,
) -> Batch:
    """Create the batch of a replay, or find the one that the same request has created.

    Raises:
        ApiError: 400, the lines are too many or of several endpoints; 404, there is no such model; 409, there are
            no lines, or the key was used for something else; 429, the project has no room.
        LogUnavailable: The log does not answer; the same request may be sent again.
    """
    known = _request(deps, lines, options)
    fingerprint = fingerprint_of(known.model_dump() | {"model": options.model, "project": lines.project})
    if creation.claimed(deps, project, fingerprint, headers.repetition) is not None:
        return await creation.create(deps, project, known, _never, headers, fingerprint=fingerprint)
    async with deps.gates.replays.turn(project):
        with ReplaySpool() as spool:
            found = await log_range.gather(deps, lines, spool)
            endpoint = found.endpoint()
            named_model(deps, options.model, endpoint)
            new = known.model_copy(update={"endpoint": endpoint, "input_file_id": ids.new_file_id(project)})
            chunks = _chunks(spool, found.sources, options.model)
            with deps.booking(project) as booking:

                async def written() -> InputRef:
                    booking.reserve_batch(found.sources.lines)
                    filename = f"replay-of-{endpoint.rsplit('/', 1)[-1]}-{int(deps.clock())}.jsonl"
                    record = await input_file.write(deps, booking, new.input_file_id, filename, chunks)
                    return InputRef(key=record.key, bytes=record.file.bytes)

                batch = await creation.create(deps, project, new, written, headers, fingerprint=fingerprint)
    if batch.input_file_id != new.input_file_id and deps.view.file(project, new.input_file_id) is not None:
        await file_removal.discard(deps, new.input_file_id, file_key(new.input_file_id))
    return batch


async def _never() -> InputRef:
    raise AssertionError("the batch is claimed, so its input is known")


async def _chunks(spool: ReplaySpool, sources: Sources, model: str | None) -> AsyncIterator[bytes]:
    ready = spool.chunks(sources, model)
    while (chunk := await asyncio.to_thread(next, ready, None)) is not None:
        yield chunk


def _request(deps: Dependencies, lines: LogRange, options: RerunOptions) -> BatchRequest:
    """The request for the new batch, without the fields that depend on the lines."""
    return BatchRequest(
        endpoint=lines.endpoint or "",
        input_file_id="",
        completion_window=options.completion_window or deps.settings.usual_window,
        metadata=options.metadata,
        output_expires_after=batch_request.expires_after(options.output_expires_after),
        replay_range=lines.shown,
    )
