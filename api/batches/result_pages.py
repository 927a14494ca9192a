"""Reads the finished lines of a batch, in pages or one by one, while it runs and afterwards."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec

from tidemill.api import errors
from tidemill.api.batches import latest
from tidemill.api.dependencies import Dependencies, from_store
from tidemill.api.view.result_lines import Found, Source, bounded
from tidemill.schemas import ids
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import Batch

TRIES_MAX: Final = 3
"""Tries to read the parts of a batch that ends meanwhile."""
PAGE_LINES: Final = 1_000
"""Lines that are found at a time."""


class Response(msgspec.Struct):
    """The reply of a server."""

    status_code: int
    body: msgspec.Raw
    request_id: str = ""


class Error(msgspec.Struct):
    """An error of Tidemill, with a code and a message, or of a server, which may have anything."""

    code: Any = None
    type: Any = None
    message: Any = None


class Call(msgspec.Struct):
    """The last call of a line."""

    server: str | None = None


class ResultLine(msgspec.Struct):
    """A line of an output or error file."""

    custom_id: msgspec.Raw = msgspec.Raw(b"null")
    """As JSON text."""
    response: Response | None = None
    error: Error | None = None
    tidemill: Call | None = None

    @property
    def name(self) -> str:
        """The `custom_id`; empty if the line of a stream has no readable one."""
        return msgspec.json.decode(self.custom_id, type=str | None) or ""


parse: Final = msgspec.json.Decoder(ResultLine).decode


async def page(
    deps: Dependencies, project: str, batch: Batch, *, after: int, limit: int, status: str | None = None
) -> list[Found]:
    """The first `limit` lines with an index above `after`, of a status (`completed`, `failed`) or of both.

    If the batch ends meanwhile, its parts are deleted and the page comes from its files.

    Raises:
        ApiError: 503, the store does not answer.
        LogUnavailable: The batch runs, and the log does not answer.
    """
    for _ in range(TRIES_MAX):
        try:
            sources = await _sources(deps, project, batch)
            wanted = [source for source in sources if status is None or source.failed is (status == "failed")]
            found = await from_store(deps.lines.page(wanted, after, limit))
        except NotFound:
            batch = await latest.batch(deps, project, batch.id)
            continue
        if batch.status.is_terminal:
            return found
        batch = await latest.batch(deps, project, batch.id)
        if not batch.status.is_terminal:
            # Parts are deleted once the log has the end of their batch, so none was missing above.
            return found
    raise errors.unavailable("results of this batch")


async def every(
    deps: Dependencies, project: str, batch: Batch, *, status: str | None = None
) -> AsyncIterator[tuple[Found, bytes]]:
    """All finished lines, or those of a status, in order, each with its text.

    Raises:
        ApiError: 503, the store does not answer.
    """
    after = -1
    while found := bounded(await page(deps, project, batch, after=after, limit=PAGE_LINES, status=status)):
        reading = deps.lines.read(found)
        for each in found:
            yield each, await next_line(reading)
        after = found[-1].index


async def texts(deps: Dependencies, found: Sequence[Found]) -> list[bytes]:
    """The texts of some lines.

    Raises:
        ApiError: 503, the store does not answer.
    """
    reading = deps.lines.read(found)
    return [await next_line(reading) for _ in found]


async def next_line(lines: AsyncIterator[bytes]) -> bytes:
    """The next of the lines that the store reads.

    Raises:
        ApiError: 503, the store does not answer, or its object is deleted; 500, its object is cut short.
    """
    try:
        return await from_store(anext(lines))
    except (NotFound, StopAsyncIteration) as error:
        raise errors.unavailable("results of this batch") from error


async def _sources(deps: Dependencies, project: str, batch: Batch) -> list[Source]:
    if not batch.status.is_terminal:
        return await from_store(deps.lines.running(batch.id))
    kinds = [kind for kind, _ in batch.tidemill.receipt.files] if batch.tidemill.receipt else []
    records = [(kind, deps.view.file(project, ids.derived_file_id(batch.id, kind))) for kind in kinds]
    return deps.lines.written([(kind, record.key) for kind, record in records if record])
