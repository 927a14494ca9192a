"""Reads pages of a batch's finished lines, while it runs and afterwards."""

from collections.abc import AsyncIterator
from typing import Final

from tidemill.api import errors, lookup
from tidemill.api.dependencies import Dependencies, from_store
from tidemill.api.view.result_lines import Found, Source
from tidemill.schemas import ids
from tidemill.schemas.ports import NotFound
from tidemill.schemas.resources.batch import Batch

TRIES_MAX: Final = 3
"""Tries to read the parts of a batch that ends meanwhile."""


async def page(
    deps: Dependencies, project: str, batch: Batch, *, after: int, limit: int, status: str | None = None
) -> list[Found]:
    """The first `limit` lines with an index above `after`, of a status (`completed`, `failed`) or of both.

    If the batch ends meanwhile, its parts are deleted and the page comes from its files.

    Raises:
        ApiError: 503, the store does not answer.
    """
    for _ in range(TRIES_MAX):
        try:
            sources = await _sources(deps, project, batch)
            wanted = [source for source in sources if status is None or source.failed is (status == "failed")]
            return await from_store(deps.lines.page(wanted, after, limit))
        except NotFound:
            batch = await lookup.batch(deps.view, project, batch.id)
    raise errors.unavailable("results of this batch")


async def next_line(lines: AsyncIterator[bytes]) -> bytes:
    """The next of the lines that the store reads.

    Raises:
        ApiError: 503, the store does not answer, or its object is deleted.
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
