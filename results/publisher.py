"""Publishes batches, files and bills, and the fact that ends a batch."""

from collections.abc import Callable

from tidemill.results.state.reducer import State
from tidemill.retrying import retry
from tidemill.schemas import ids
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import KIND, Headers, encode
from tidemill.schemas.log.messages import (
    BatchRecord,
    Compacted,
    DeleteRequested,
    Erasure,
    FileRecord,
    LedgerRecord,
)
from tidemill.schemas.log.part import file_key
from tidemill.schemas.ports import Sender
from tidemill.schemas.resources.batch import FileReceipt, Progress
from tidemill.schemas.resources.bill import day_of
from tidemill.schemas.resources.file import File
from tidemill.schemas.resources.waiting import Waiting


class Publisher:
    """Appends records, and retries until the log has them, since later steps must wait for that.

    `owner` returns the number of the partition's owner (`Tables.owner`).
    """

    def __init__(self, sender: Sender, owner: Callable[[], int], *, output_life_seconds: int) -> None:
        self._sender = sender
        self._owner = owner
        self._output_life_seconds = output_life_seconds

    async def batch(self, state: State, progress: Progress | None, blocked: tuple[Waiting, ...]) -> None:
        """Publish a batch, if it is created, with its progress and what blocks it; an ended one has neither."""
        if state.batch is None:
            return
        if progress is not None or (blocked and not state.is_over):
            state = state.with_extras(progress=progress, waiting=blocked or state.batch.tidemill.waiting)
        record = BatchRecord(
            project=state.project, batch=state.batch, files_offset=state.files_offset, owner=self._owner()
        )
        await self._send(topics.BATCHES.name, state.id, encode(record))

    async def files(self, state: State, fact: Compacted) -> int | None:
        """Publish the files of a batch; returns the offset of the last record, None if it has no file."""
        offset = None
        for kind, found in fact.receipt.files:
            record = self._file_record(state, fact, kind, found)
            offset = await self._send(topics.FILES.name, record.file.id, encode(record))
        return offset

    async def bill(self, state: State, fact: Compacted) -> None:
        """Publish the cost of a batch that this fact ended; a replay of the fact gives an equal record."""
        if state.batch is not None and state.is_over:
            entry = LedgerRecord(
                batch_id=state.id,
                project=state.project,
                endpoint=state.batch.endpoint,
                status=state.batch.status,
                ended_at=fact.at,
                day=day_of(fact.at),
                models=fact.models,
                owner=self._owner(),
            )
            await self._send(topics.LEDGER.name, entry.batch_id, encode(entry))

    async def erased(self, command: DeleteRequested) -> None:
        """Revoke the right to read the lines of a deleted batch from the log."""
        erasure = Erasure(project=command.project, at=command.at, input_file_id=command.input_file_id)
        await self._send(topics.SECRETS.name, command.batch_id, encode(erasure))

    async def withdrawn(self, command: DeleteRequested) -> None:
        """Withdraw a batch and its files."""
        await self._send(topics.BATCHES.name, command.batch_id, None)
        for kind in command.files:
            await self._send(topics.FILES.name, ids.derived_file_id(command.batch_id, kind), None)

    async def compacted(self, fact: Compacted, partition: int) -> None:
        """Send the fact that a batch's files are written."""
        headers = [(KIND, fact.kind.encode())]
        await self._send(topics.OUTCOMES.name, fact.batch_id, encode(fact), headers=headers, partition=partition)

    async def _send(
        self, topic: str, key: str, value: bytes | None, *, headers: Headers = (), partition: int | None = None
    ) -> int:
        return await retry(
            f"sending to {topic}",
            lambda: self._sender.send(topic, key, value, headers=headers, partition=partition),
        )

    def _file_record(self, state: State, fact: Compacted, kind: str, found: FileReceipt) -> FileRecord:
        wanted = state.output_expires_after
        life = self._output_life_seconds if wanted is None else wanted.seconds
        file_id = ids.derived_file_id(state.id, kind)
        file = File(
            id=file_id,
            bytes=found.bytes,
            created_at=fact.at,
            expires_at=fact.at + life,
            filename=f"{state.id}_{kind}.jsonl",
            purpose="batch_output",
        )
        return FileRecord(
            project=state.project,
            file=file,
            key=file_key(file_id, fact.writer),
            sha256=found.sha256,
            owner=self._owner(),
        )
