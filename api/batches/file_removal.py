"""Deletes files and batches: the record first, the bytes once no batch reads them.

Other processes create batches of a file, too. The log has the claim of each before a client hears of the batch, so
a process reads all claims after it has written a file's tombstone, and before it decides about the bytes.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tidemill import metrics
from tidemill.api import errors
from tidemill.api.dependencies import Dependencies, from_store
from tidemill.api.view.batch_tables import Reader
from tidemill.kafka.connection import LogUnavailable
from tidemill.retrying import reason
from tidemill.runtime.clocks import DeletionClock
from tidemill.schemas import ids
from tidemill.schemas.log import topics
from tidemill.schemas.log.messages import DeleteRequested, Erasure
from tidemill.schemas.log.part import file_id_of
from tidemill.schemas.ports import Monotonic, boottime
from tidemill.schemas.resources.batch import Batch
from tidemill.schemas.resources.error import ApiError

ROUND_SECONDS = 30.0
"""Time between two sweeps for expired files and for bytes that were kept for a batch."""
SOON_SECONDS = 2.0
"""Likewise while the api takes nothing to store: the log and the store may agree in a moment."""
ROUND_FILES_MAX = 1000
ROUND_UPLOADS_MAX = 50
ROUND_BATCHES_MAX = 100
PARTS_AT_ONCE_MAX = 8
"""Parts of one upload that are deleted at the same time."""
ORPHANS_TRACKED_MAX = 200
"""Objects that a search looks up before other tasks have a turn: some milliseconds."""
ORPHANS_SECONDS = 3600.0
"""Time between two searches for orphaned objects."""

FOLDED = tuple(topic.name for topic in (topics.CLAIMS, topics.BATCHES, topics.FILES, topics.UPLOADS))
"""Topics whose records name objects of the store."""
WITH_TOMBSTONES = tuple(topic.name for topic in (topics.BATCHES, topics.FILES, topics.UPLOADS, topics.SECRETS))
"""Topics of the view from which Kafka drops records."""

_log = logging.getLogger(__name__)


def check_store(deps: Dependencies) -> None:
    """Raise 503 if the store may lack the objects of the log."""
    if (fault := deps.owner.fault) is not None and fault.is_foreign:
        raise errors.foreign_store(fault.text)


async def remove(deps: Dependencies, file_id: str, key: str) -> None:
    """Delete a file; bytes that a batch still reads stay until a `sweep` after its end.

    With an input it destroys the encryption keys of its batches, since the log has its lines too.

    Raises:
        LogUnavailable: The log does not answer, and the file stays.
    """
    await _destroy_keys(deps, file_id)
    await deps.publisher.file_deletion(file_id)
    deps.view.hold(file_id, holds=True)
    try:
        await deps.reading.catch_up(topics.CLAIMS.name)
    except LogUnavailable:
        _log.warning("the bytes of the deleted file %s stay until the log answers", file_id)
        return
    if not deps.view.needs_bytes(file_id) and await _delete(deps, file_id, key):
        deps.view.hold(file_id, holds=False)


async def discard(deps: Dependencies, file_id: str, key: str) -> None:
    """Delete an input that no batch has, since its create found a batch of the same request.

    Raises:
        LogUnavailable: The log does not answer, and the file stays.
    """
    await deps.publisher.file_deletion(file_id)
    deps.view.hold(file_id, holds=True)
    if await _delete(deps, file_id, key):
        deps.view.hold(file_id, holds=False)


async def remove_batch(deps: Dependencies, project: str, batch: Batch) -> None:
    """Delete a finished batch: results carries out the command, and the view of this process hides it at once.

    An input that the api made of the create's body goes with its batch, unless another batch has it.

    Raises:
        LogUnavailable: The log does not answer, and the batch stays.
    """
    source = deps.view.file(project, batch.input_file_id)
    if source is not None and source.from_body and not await other_readers(deps, source.file.id, batch.id):
        await remove(deps, source.file.id, source.key)
    kinds = tuple(kind for kind, _ in batch.tidemill.receipt.files) if batch.tidemill.receipt else ()
    at = int(deps.clock())
    # A batch may name any id as its input.
    known = batch.input_file_id if deps.view.knows_file(project, batch.input_file_id) else ""
    command = DeleteRequested(batch_id=batch.id, project=project, files=kinds, input_file_id=known, at=at)
    await deps.publisher.command(batch.id, command)
    deps.view.delete_batch(batch.id, Erasure(project=project, at=at, input_file_id=known))
    for kind in kinds:
        deps.view.drop_file(ids.derived_file_id(batch.id, kind), -1)


async def other_readers(deps: Dependencies, file_id: str, batch_id: str) -> list[Reader]:
    """The other batches with the input of a batch, also those that another process has just claimed.

    Raises:
        LogUnavailable: The log does not answer.
    """
    await deps.reading.catch_up(topics.CLAIMS.name)
    return deps.view.other_readers(file_id, batch_id)


async def remove_parts(deps: Dependencies, upload_id: str) -> bool:
    """Delete the parts of an upload that is over; without success they stay until a `sweep`.

    Returns:
        Whether none is left.

    Raises:
        LogUnavailable: The log does not answer, and records of parts stay.
    """
    parts = deps.view.uploads.keys(upload_id)
    for begin in range(0, len(parts), PARTS_AT_ONCE_MAX):
        some = parts[begin : begin + PARTS_AT_ONCE_MAX]
        if not all(await asyncio.gather(*(_remove_part(deps, upload_id, *part) for part in some))):
            return False
    return True


async def _remove_part(deps: Dependencies, upload_id: str, part_id: str, key: str) -> bool:
    if is_deleted := await _delete(deps, upload_id, key):
        await deps.publisher.upload_deletion(f"{upload_id}/{part_id}")
    return is_deleted


@dataclass(frozen=True)
class Swept:
    """What a round found of one kind of objects, or of all."""

    found: int
    is_full: bool
    """Whether there may be more that can be deleted: it found as many as a round takes, and deleted some."""


async def sweep(deps: Dependencies, *, by_age: bool = True) -> Swept:
    """Delete bytes of deleted files that no batch reads, parts of ended uploads, and `by_age` what has expired.

    A file may be made again under its id meanwhile, so each is looked at again right before it is deleted.
    Several processes may do this at the same time: deleting a file twice does no harm.

    Returns:
        The number of files, and whether a further round would delete more.

    Raises:
        LogUnavailable: The log does not answer, or this process does not read it up to its end.
    """
    await deps.reading.catch_up(*FOLDED)
    files = [await _sweep_released(deps)]
    others = [await _sweep_uploads(deps, deps.clock() if by_age else -math.inf)]
    if by_age:
        files.append(await _sweep_expired(deps))
        others.append(await _sweep_batches(deps))
    return Swept(max(each.found for each in files), any(each.is_full for each in files + others))


async def _sweep_released(deps: Dependencies) -> Swept:
    """Delete the bytes of deleted files that no batch reads."""
    released, count = deps.view.releasable(ROUND_FILES_MAX), 0
    for file_id, key in released:
        if deps.view.is_held(file_id):
            await _destroy_keys(deps, file_id)
        if not deps.view.is_held(file_id) or deps.view.is_read(file_id):
            continue
        if await _delete(deps, file_id, key):
            deps.view.hold(file_id, holds=False)
            count += 1
    return Swept(len(released), count > 0 and len(released) == ROUND_FILES_MAX)


async def _sweep_expired(deps: Dependencies) -> Swept:
    """Delete expired files."""
    expired, count = deps.view.expired(ROUND_FILES_MAX), 0
    for file_id, key in expired:
        if deps.view.is_expired(file_id):
            await remove(deps, file_id, key)
            count += 1
    return Swept(len(expired), count > 0 and len(expired) == ROUND_FILES_MAX)


async def _destroy_keys(deps: Dependencies, file_id: str) -> None:
    """Destroy the keys of all batches of an input; while one of them runs, they stay.

    Raises:
        LogUnavailable: The log does not answer.
    """
    for batch_id in deps.view.batches_of(file_id):
        if deps.vault.has_key(batch_id):
            await deps.vault.destroy(batch_id)


async def _sweep_batches(deps: Dependencies) -> Swept:
    """Delete batches that ended longer ago than `batch_life_seconds`."""
    if (life_seconds := deps.settings.batch_life_seconds) is None or deps.owner.fault is not None:
        return Swept(0, is_full=False)
    ended = deps.view.ended_before(int(deps.clock()) - life_seconds, ROUND_BATCHES_MAX)
    for project, batch in ended:
        await remove_batch(deps, project, batch)
    return Swept(len(ended), len(ended) == ROUND_BATCHES_MAX)


async def _sweep_uploads(deps: Dependencies, now: float) -> Swept:
    """Delete the parts of uploads that are over, and the records of old uploads without parts."""
    found, count = deps.view.uploads.due(ROUND_UPLOADS_MAX, now), 0
    for due in found:
        if await remove_parts(deps, due.upload_id):
            count += 1
            if due.is_forgotten:
                await deps.publisher.upload_deletion(due.upload_id)
    return Swept(len(found), count > 0 and len(found) == ROUND_UPLOADS_MAX)


async def collect_orphans(deps: Dependencies) -> int:
    """Delete orphaned objects: a crash left them in the store without a record in the log.

    It deletes only objects that it first saw a day ago: an object that is being written gets its record by then.

    Returns:
        The number of deleted objects; none if the store has objects of another log.

    Raises:
        LogUnavailable: This process does not read the log up to its end, so the records of objects may be there.
    """
    orphans, count = deps.view.orphans, 0
    if deps.owner.fault is not None:
        # From the day on when an operator has given the store to this log, an object has a day to get a record.
        orphans.forget_all()
        return 0
    for prefix in orphans.PREFIXES:
        outputs: set[str] | None = None
        old = [key async for keys in _bunches(deps.store.keys(prefix)) for key in orphans.track(keys)]
        for begin in range(0, len(old), ROUND_FILES_MAX):
            await deps.reading.catch_up(*FOLDED)
            if outputs is None:
                outputs = await asyncio.to_thread(orphans.unfinished_outputs)
            for key in old[begin : begin + ROUND_FILES_MAX]:
                if not orphans.is_old(key) or file_id_of(key) in outputs:
                    continue
                _log.warning("deleting the orphaned object %s", key)
                if await _delete(deps, "-", key):
                    orphans.forget(key)
                    count += 1
    orphans.forget_named()
    return count


async def _bunches(keys: AsyncIterator[str]) -> AsyncIterator[list[str]]:
    """Up to `ORPHANS_TRACKED_MAX` keys at a time."""
    bunch: list[str] = []
    async for key in keys:
        bunch.append(key)
        if len(bunch) == ORPHANS_TRACKED_MAX:
            yield bunch
            bunch = []
            await asyncio.sleep(0)
    yield bunch


async def mark_current(deps: Dependencies) -> None:
    """Note that the view misses no tombstone up to now.

    Raises:
        LogUnavailable: This process does not read the log up to its end.
    """
    await deps.reading.catch_up(*WITH_TOMBSTONES)
    deps.view.mark_current()


class Sweeps:
    """The rounds of a process; they delete nothing for its age while the time is in doubt."""

    def __init__(self, deps: Dependencies, monotonic: Monotonic) -> None:
        self._deps = deps
        self._monotonic = monotonic
        self._deletes_by = DeletionClock(deps.clock, monotonic)
        self._collect_at = -math.inf

    async def round(self) -> bool:
        """Sweep, and delete orphans every `ORPHANS_SECONDS`.

        Returns:
            Whether a further round would delete more.

        Raises:
            LogUnavailable: See `sweep`.
        """
        is_due = self._monotonic() >= self._collect_at
        await self._deps.owner.check(marks=is_due)
        by_age = self._deletes_by.is_settled()
        swept = await sweep(self._deps, by_age=by_age)
        if is_due:
            await mark_current(self._deps)
        if is_due and by_age:
            await collect_orphans(self._deps)
            self._collect_at = self._monotonic() + ORPHANS_SECONDS
        return swept.is_full


async def check_owner(deps: Dependencies) -> None:
    """Compare the log with the store for the first time; if that fails, the rounds do it."""
    try:
        await deps.owner.check(marks=False)
    except OSError as error:
        _log.warning("could not compare the log with the store (%s)", reason(error))


async def sweep_forever(deps: Dependencies) -> None:
    """Do a round every `ROUND_SECONDS`, despite errors, and the next one at once while there is more to delete."""
    sweeps = Sweeps(deps, boottime)
    metrics.STORE_FOREIGN.sample(lambda: {(): deps.owner.is_foreign})
    while True:
        is_full = False
        try:
            is_full = await sweeps.round()
        except LogUnavailable:
            _log.warning("could not delete expired files and orphans: the log does not answer")
        except Exception as error:  # noqa: BLE001  the next round may succeed
            _log.warning("could not delete expired files (%s)", type(error).__name__)
        pause = SOON_SECONDS if deps.owner.is_foreign else ROUND_SECONDS
        await asyncio.sleep(0.0 if is_full else pause)


async def _delete(deps: Dependencies, file_id: str, key: str) -> bool:
    if deps.owner.fault is not None:
        # Perhaps another installation has them too.
        return False
    try:
        await from_store(deps.store.delete(key))
    except ApiError:
        # The owner no longer sees the file; a later round deletes its bytes.
        _log.warning("could not delete the bytes of the deleted file %s", file_id)
        return False
    return True
