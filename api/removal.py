"""How a file goes: its record first, its bytes once nothing reads them any more."""

import asyncio
import logging

from tidemill.api.doors import Doors, from_store
from tidemill.kafka import LogUnavailable
from tidemill.schemas import topics
from tidemill.schemas.error import ApiError

ROUND_SECONDS = 30.0
"""How often expired files, and bytes that were held for a batch, are looked for."""
ROUND_FILES_MAX = 1000

_log = logging.getLogger(__name__)


async def remove(doors: Doors, file_id: str, key: str) -> None:
    """Delete a file; bytes that a batch still reads stay until a `sweep` after its end.

    Raises:
        LogUnavailable: The log does not answer, and the file stays.
    """
    offset = await doors.log.send(topics.FILES.name, file_id, None, headers=[])
    doors.view.drop_file(file_id, offset)
    if not doors.view.is_held(file_id):
        await _delete(doors, file_id, key)


async def sweep(doors: Doors) -> int:
    """Delete files whose time is over, and bytes that no batch reads any more.

    Several processes may do this at one time: a file that is deleted twice is deleted.

    Returns:
        How many files it met; at `ROUND_FILES_MAX` there may be more.
    """
    released = doors.view.releasable(ROUND_FILES_MAX)
    for file_id, key in released:
        if await _delete(doors, file_id, key):
            doors.view.release(file_id)
    expired = doors.view.expired(ROUND_FILES_MAX)
    for file_id, key in expired:
        await remove(doors, file_id, key)
    return max(len(released), len(expired))


async def sweep_always(doors: Doors) -> None:
    """Sweep every `ROUND_SECONDS`, whatever happens."""
    while True:
        try:
            await sweep(doors)
        except LogUnavailable:
            _log.warning("expired files could not be deleted; the log does not answer")
        except Exception as error:  # noqa: BLE001  the next round may do better
            _log.warning("expired files could not be deleted (%s)", type(error).__name__)
        await asyncio.sleep(ROUND_SECONDS)


async def _delete(doors: Doors, file_id: str, key: str) -> bool:
    try:
        await from_store(doors.store.delete(key))
    except ApiError:
        # The file is gone for its owner, which is what was asked for.
        _log.warning("the bytes of the deleted file %s could not be removed", file_id)
        return False
    return True
