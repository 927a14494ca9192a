"""A batch by its id, which another api process may just have created."""

from tidemill.api import errors
from tidemill.api.doors import Doors
from tidemill.schemas import ids

SEEN_SECONDS_MAX = 1.0
"""How long a batch that this process has not heard of is waited for: word of it may be on its way."""


async def batch(doors: Doors, project: str, batch_id: str) -> bytes:
    """A batch as JSON.

    Raises:
        ApiError: 404, the project has no such batch.
    """
    found = _find(doors, project, batch_id)
    if found is None and ids.is_batch_id(batch_id):
        found = await doors.view.news.until(lambda: _find(doors, project, batch_id), seconds_max=SEEN_SECONDS_MAX)
    if found is None:
        raise errors.no_batch(batch_id)
    return found


def _find(doors: Doors, project: str, batch_id: str) -> bytes | None:
    if (found := doors.view.batch(project, batch_id)) is not None:
        return found
    # Whoever knows the id of a claim was told it, so its command is on the log.
    claim = doors.view.claims.first(project, batch_id)
    return None if claim is None else claim.command.batch.model_dump_json().encode()
