"""How a file goes: its record first, its bytes once nothing reads them any more."""

import asyncio
import logging

from tidemill.api.dependencies import Dependencies, from_store
from tidemill.kafka.connection import LogUnavailable
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import DeleteRequested
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.error import ApiError

ROUND_SECONDS = 30.0
"""How often expired files, and bytes that were held for a batch, are looked for."""
ROUND_FILES_MAX = 1000
ROUND_UPLOADS_MAX = 50
ROUND_BATCHES_MAX = 100
STRAYS_SECONDS = 3600.0
"""How often objects that no record names are looked for."""

_log = logging.getLogger(__name__)


async def remove(doors: Dependencies, file_id: str, key: str) -> None:
    """Delete a file; bytes that a batch still reads stay until a `sweep` after its end.

    With an input go the keys of the batches that were made of it: its lines are in the log, too.

    Raises:
        LogUnavailable: The log does not answer, and the file stays.
    """
    await _destroy_keys(doors, file_id)
    offset = await doors.log.send(topics.FILES.name, file_id, None, headers=[])
    doors.view.drop_file(file_id, offset)
    if not doors.view.is_held(file_id):
        await _delete(doors, file_id, key)


async def remove_batch(doors: Dependencies, project: str, batch: Batch) -> None:
    """Delete a batch that is over: once the log has the command, results does it, whatever happens.

    What the answers of this process show goes at once.

    Raises:
        LogUnavailable: The log does not answer, and the batch stays.
    """
    kinds = tuple(kind for kind, _ in batch.tidemill.receipt.files) if batch.tidemill.receipt else ()
    at = int(doors.clock())
    command = DeleteRequested(batch_id=batch.id, project=project, files=kinds, at=at)
    headers = [(codec.KIND, command.kind.encode())]
    await doors.log.send(topics.COMMANDS.name, batch.id, codec.encode(command), headers=headers)
    doors.view.delete_batch(batch.id, project, at)
    for kind in kinds:
        doors.view.drop_file(ids.derived_file_id(batch.id, kind), -1)


async def sweep(doors: Dependencies) -> int:
    """Delete files whose time is over, and bytes that no batch reads any more.

    Several processes may do this at one time: a file that is deleted twice is deleted.

    Returns:
        How many files it met; at `ROUND_FILES_MAX` there may be more.
    """
    released = doors.view.releasable(ROUND_FILES_MAX)
    for file_id, key in released:
        await _destroy_keys(doors, file_id)
        if await _delete(doors, file_id, key):
            doors.view.release(file_id)
    expired = doors.view.expired(ROUND_FILES_MAX)
    for file_id, key in expired:
        await remove(doors, file_id, key)
    await _sweep_batches(doors)
    await _sweep_uploads(doors)
    return max(len(released), len(expired))


async def _destroy_keys(doors: Dependencies, file_id: str) -> None:
    """Destroy the keys of the batches of an input; they stay as long as one of them is at work.

    Raises:
        LogUnavailable: The log does not answer.
    """
    if (vault := doors.vault) is not None:
        for batch_id in doors.view.batches_of(file_id):
            if vault.has_key(batch_id):
                await vault.destroy(batch_id)


async def _sweep_batches(doors: Dependencies) -> None:
    """Delete batches that have been over for longer than the operator wants to keep them."""
    if (life_seconds := doors.settings.batch_life_seconds) is not None:
        for project, batch in doors.view.outlived(int(doors.clock()) - life_seconds, ROUND_BATCHES_MAX):
            await remove_batch(doors, project, batch)


async def _sweep_uploads(doors: Dependencies) -> None:
    """Delete the parts of uploads that are over, and forget uploads that nobody asks for any more."""
    for due in doors.view.pieces.due(ROUND_UPLOADS_MAX):
        for part_id, key in due.parts:
            if await _delete(doors, due.upload_id, key):
                await _forget(doors, f"{due.upload_id}/{part_id}")
        if due.is_forgotten:
            await _forget(doors, due.upload_id)


async def _forget(doors: Dependencies, key: str) -> None:
    await doors.log.send(topics.UPLOADS.name, key, None, headers=[])
    doors.view.pieces.drop(key)


async def collect(doors: Dependencies) -> int:
    """Delete objects that no record names: what a crash left between the store and the log.

    One goes only where it was met a day ago too, so that whatever is being written has long got its record.

    Returns:
        How many it deleted.
    """
    strays, count = doors.view.strays, 0
    for prefix in strays.PREFIXES:
        async for key in doors.store.keys(prefix):
            if strays.is_old(key):
                _log.warning("%s is named by no record and goes", key)
                if await _delete(doors, "-", key):
                    strays.forget(key)
                    count += 1
    strays.forget_named()
    return count


async def sweep_always(doors: Dependencies) -> None:
    """Sweep every `ROUND_SECONDS`, whatever happens, and collect every `STRAYS_SECONDS`."""
    collect_at = 0.0
    while True:
        try:
            await sweep(doors)
            if doors.clock() >= collect_at:
                await collect(doors)
                collect_at = doors.clock() + STRAYS_SECONDS
        except LogUnavailable:
            _log.warning("expired files could not be deleted; the log does not answer")
        except Exception as error:  # noqa: BLE001  the next round may do better
            _log.warning("expired files could not be deleted (%s)", type(error).__name__)
        await asyncio.sleep(ROUND_SECONDS)


async def _delete(doors: Dependencies, file_id: str, key: str) -> bool:
    try:
        await from_store(doors.store.delete(key))
    except ApiError:
        # The file is gone for its owner, which is what was asked for.
        _log.warning("the bytes of the deleted file %s could not be removed", file_id)
        return False
    return True
