"""Copies the input of a batch from a bucket of users into the store, once, before it is checked.

The command names one version of the object, so a repetition after a crash copies the same bytes. If the store has
them already, they are only counted again for the record of the file.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Final, Protocol

from tidemill import metrics
from tidemill.ingest.files.packing import RequestPublisher
from tidemill.ingest.files.verdict import Failed
from tidemill.ingest.files.wait_report import WaitReport
from tidemill.kafka.connection import LogUnavailable
from tidemill.quotas import QuotaExceeded
from tidemill.schemas import buckets
from tidemill.schemas.buckets import BucketObject
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchCreated, FileRecord, InputRef
from tidemill.schemas.ports import NotFound, Sender, Store
from tidemill.schemas.resources.batch import BatchError
from tidemill.schemas.resources.file import File
from tidemill.schemas.resources.waiting import Reason
from tidemill.sealing.vault import NoKey
from tidemill.sealing.wrapping import KeyUnavailable
from tidemill.storage.buckets import (
    BucketNotFound,
    BucketRefused,
    Buckets,
    Changed,
    NotAllowed,
    OwnStoreError,
    own_chunks,
    own_store,
    reason,
)
from tidemill.storage.owner import StoreFault

REFUSALS_MAX: Final = 5
"""How often the server may refuse an object in a row before the batch fails."""
REPORT_SECONDS: Final = 5.0
"""How often the batch says how much is read."""
URI_CHARS_SHOWN: Final = 500
"""Characters of an address in an error."""

log = logging.getLogger(__name__)


class Room(Protocol):
    """The quotas of the projects."""

    def claim_input(self, project: str, file_id: str, size: int) -> None:
        """Count a file that is being written, or raise `QuotaExceeded`."""

    def release_input(self, project: str, file_id: str) -> None:
        """Stop counting it."""

    def has_lines(self, batch_id: str) -> bool:
        """Whether the lines of a batch count, or have counted: if so, an earlier attempt has copied its input."""

    def check_lines(self, project: str, file_id: str, lines: int) -> None:
        """Check that a project may have the lines of a new file enqueued, or raise `QuotaExceeded`."""


class Import:
    """The input of one batch while it is copied."""

    def __init__(self, command: BatchCreated, ref: InputRef, source: BucketObject, report: WaitReport) -> None:
        self.command = command
        self.ref = ref
        self.source = source
        self.address = buckets.parse_object(source.uri)
        self.report = report
        self.refusals = 0

    @property
    def batch_id(self) -> str:
        """The id of the batch."""
        return self.command.batch.id


class Importer:
    """Copies inputs, several at a time."""

    def __init__(
        self,
        connected: Buckets,
        store: Store,
        *,
        sender: Sender,
        requests: RequestPublisher,
        room: Room,
        caught_up: Callable[[], Awaitable[None]],
    ) -> None:
        """Start without connections; `caught_up` returns once `room` has the quotas of all projects."""
        self.buckets = connected
        self._store = store
        self._sender = sender
        self._requests = requests
        self._room = room
        self._caught_up = caught_up

    def of(self, command: BatchCreated, report: WaitReport) -> Import | None:
        """The import that a command asks for; None if its input is in the store."""
        ref = command.input
        return None if ref is None or ref.source is None else Import(command, ref, ref.source, report)

    async def run(self, imported: Import, life_seconds: int, check_stopped: Callable[[], None]) -> Failed | None:
        """Copy the input, and publish the record of its file.

        Args:
            imported: The import.
            life_seconds: How long the file is kept.
            check_stopped: Raises an error if the batch was cancelled.

        Returns:
            Why the batch fails; None if the input is in the store.

        Raises:
            OSError: A server does not answer, or the key of the batch is unavailable; the call may be made again,
                and the batch says why it waits.
        """
        failed: Failed | None = None
        try:
            await self._copied(imported, life_seconds, check_stopped)
        except (BucketNotFound, Changed, NoKey, NotAllowed, QuotaExceeded) as error:
            failed = _failed(imported, error)
        except OSError as error:
            imported.refusals = imported.refusals + 1 if isinstance(error, BucketRefused) else 0
            if not isinstance(error, BucketRefused) or imported.refusals < REFUSALS_MAX:
                await _show(imported, error)
                raise
            failed = _failed(imported, error)
        metrics.TRANSFERS.labels("read", "done" if failed is None else "failed").inc()
        await imported.report.clear()
        return failed

    async def _copied(self, imported: Import, life_seconds: int, check_stopped: Callable[[], None]) -> None:
        project, batch, key = imported.command.project, imported.command.batch, imported.ref.key
        digest, lines, last = hashlib.sha256(), 0, b"\n"

        async def counted(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
            nonlocal lines, last
            size, next_report = 0, asyncio.get_running_loop().time() + REPORT_SECONDS
            async for chunk in chunks:
                check_stopped()
                await asyncio.to_thread(digest.update, chunk)
                lines += chunk.count(b"\n")
                last, size = chunk[-1:], size + len(chunk)
                if size > imported.source.bytes:
                    raise Changed
                yield chunk
                if (now := asyncio.get_running_loop().time()) >= next_report:
                    next_report = now + REPORT_SECONDS
                    words = f"{size} of {imported.source.bytes} bytes of {imported.source.uri} are read."
                    await imported.report.show(Reason.IMPORT, words)
            if size != imported.source.bytes:
                raise Changed

        # The quotas are in memory: after a restart they are known only once the log has been read.
        await self._caught_up()
        if self._room.has_lines(batch.id):
            return
        await self._requests.begin(batch.id, project)
        self._room.claim_input(project, batch.input_file_id, imported.source.bytes)
        async with AsyncExitStack() as stack:
            stack.callback(self._room.release_input, project, batch.input_file_id)
            if await self._is_stored(imported):
                async with aclosing(own_chunks(self._store, key)) as own, aclosing(counted(own)) as chunks:
                    async for _ in chunks:
                        pass
            else:
                bucket = await stack.enter_async_context(
                    self.buckets.transfer(project, imported.address, writes=False)
                )
                async with aclosing(counted(bucket.version(imported.address.key, imported.source.etag))) as chunks:
                    with own_store():
                        metrics.TRANSFER_BYTES.labels("read").inc(await self._store.write(key, chunks))
            lines += last != b"\n"
            try:
                self._room.check_lines(project, batch.input_file_id, lines)
            except QuotaExceeded:
                # An object that stays is deleted later: no record names it.
                with own_store(), suppress(StoreFault):
                    await self._store.delete(key)
                raise
            record = _file_of(imported, life_seconds, digest.hexdigest(), lines)
            await self._sender.send(topics.FILES.name, record.file.id, codec.encode(record))

    async def _is_stored(self, imported: Import) -> bool:
        with own_store():
            try:
                return await self._store.size(imported.ref.key) == imported.source.bytes
            except NotFound:
                return False


async def _show(imported: Import, error: OSError) -> None:
    """Report what an import waits for: the stage reports a missing key, and the log takes no report on itself."""
    match error:
        case KeyUnavailable() | LogUnavailable():
            pass
        case OwnStoreError():
            await imported.report.show(Reason.STORE, f"The input cannot be stored: {reason(error)}.")
        case _:
            await imported.report.show(Reason.BUCKET, f"{imported.source.uri} cannot be read: {reason(error)}.")


def _file_of(imported: Import, life_seconds: int, sha256: str, lines: int) -> FileRecord:
    batch = imported.command.batch
    file = File(
        id=batch.input_file_id,
        bytes=imported.source.bytes,
        created_at=batch.created_at,
        expires_at=batch.created_at + life_seconds,
        filename=imported.address.segments[-1],
        purpose="batch",
    )
    return FileRecord(
        project=imported.command.project,
        file=file,
        key=imported.ref.key,
        sha256=sha256,
        lines=lines,
        from_body=True,
    )


def _failed(imported: Import, error: Exception) -> Failed:
    """The faults of a batch whose input cannot be copied."""
    code, why = "input_unavailable", reason(error)
    match error:
        case Changed():
            code, why = "input_changed", "the object has changed since the batch was created"
        case NoKey():
            why = "the batch was deleted"
        case NotFound():
            code, why = "input_changed", "the object is gone since the batch was created"
        case QuotaExceeded():
            code, why = error.quota.value, f"the project {error}"
    log.warning("%s: its input cannot be copied (%s)", imported.batch_id, code)
    return Failed(
        errors=(
            BatchError(
                code=code, message=f"{imported.source.uri[:URI_CHARS_SHOWN]}: {why}.", param="input_file_id"
            ),
        )
    )
