"""Batches as the log has them now, for answers that depend on whether a batch is over.

The view may be behind: its batch runs, while another process has already shown its end, and its parts are deleted.
"""

from typing import Final

from tidemill.api import lookup
from tidemill.api.dependencies import Dependencies
from tidemill.schemas.log import topics
from tidemill.schemas.resources.batch import Batch

ENDS: Final = (topics.BATCHES.name, topics.FILES.name)
"""The topics with the end of a batch."""


async def batch(deps: Dependencies, project: str, batch_id: str) -> Batch:
    """A batch; one that runs still did so when this was called.

    Raises:
        ApiError: 404, there is no such batch.
        LogUnavailable: The view shows it as running, and the log does not answer.
    """
    found = await lookup.batch(deps.view, project, batch_id)
    if not found.status.is_terminal:
        await deps.reading.catch_up(*ENDS)
        found = await lookup.batch(deps.view, project, batch_id)
    return found
