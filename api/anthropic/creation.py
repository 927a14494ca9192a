"""Creates a message batch of the requests in a body, which it reads while it arrives."""

from collections.abc import AsyncIterator

from fastapi import Request

from tidemill.api import errors
from tidemill.api.anthropic.request_body import RequestReader
from tidemill.api.batches.batch_request import BatchRequest
from tidemill.api.batches.creation import NewBatchHeaders
from tidemill.api.dependencies import Dependencies
from tidemill.api.error_bodies import MESSAGES
from tidemill.api.inline import body_input
from tidemill.api.uploads.form_reader import declared_bytes, large_body, next_bytes
from tidemill.api.uploads.sink import CHUNK_BYTES
from tidemill.configuration.settings import Settings
from tidemill.runtime.threads import run_half_time
from tidemill.schemas.resources.batch import Batch

FILENAME = "message-batch.jsonl"
"""The name of each input file."""
WINDOW = "24h"
"""The window of Anthropic's batches."""


async def create(request: Request, deps: Dependencies, project: str, headers: NewBatchHeaders) -> Batch:
    """Create a batch, or find the one that the same request created before (`body_input.create`).

    Raises:
        ApiError: The body is invalid, or the project has no room; nothing is left of it.
        ClientDisconnect: The client disconnected; nothing is left of it.
        LogUnavailable: The log does not answer; the same request may be sent again.
    """
    settings = deps.settings
    bytes_max = settings.file_bytes_max
    too_large = errors.body_too_large(bytes_max)
    with deps.booking(project) as booking:
        async with large_body(request, deps, project, bytes_max, too_large) as stream:
            lines = _lines(stream, settings)
            record = await body_input.store(deps, booking, FILENAME, lines, bytes_expected=declared_bytes(request))
        window = WINDOW if WINDOW in settings.windows else settings.usual_window
        wanted = BatchRequest(endpoint=MESSAGES, input_file_id=record.file.id, completion_window=window)
        return await body_input.create(deps, booking, record, wanted, headers)


async def _lines(stream: AsyncIterator[bytes], settings: Settings) -> AsyncIterator[bytes]:
    reader = RequestReader(requests_max=settings.file_lines_max, line_bytes_max=settings.line_bytes_max)
    gathered = bytearray()
    while chunk := await next_bytes(stream):
        gathered += chunk
        if len(gathered) >= CHUNK_BYTES:
            yield await run_half_time(reader.feed, bytes(gathered))
            gathered.clear()
    if gathered:
        yield await run_half_time(reader.feed, bytes(gathered))
    reader.finish()
