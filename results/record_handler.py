"""Decodes the records of one partition of `commands` and `outcomes`, and applies each to its batch.

A record that fails twice becomes a dead letter. Records whose lines cannot be read at the moment are held apart
from the others (`kafka/partitions/held_records.py`). A timer only sends a `Tick` into the partition, so all
records that the log had when it was due are applied first.
"""

import asyncio
import functools
import logging

from tidemill.kafka.connection import TRANSIENT
from tidemill.kafka.partitions.dead_letters import FailedRecord, handle_record
from tidemill.kafka.partitions.held_records import HeldRecords, Unavailable
from tidemill.kafka.partitions.owner import Bounds, Record
from tidemill.kafka.producer import partition_of
from tidemill.results.partition import Partition
from tidemill.results.resources import Resources
from tidemill.retrying import reason, retry
from tidemill.schemas import ids
from tidemill.schemas.log import codec, dead_letters, topics
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.messages import DeadLettered, Tick
from tidemill.schemas.ports import NotFound, read_all
from tidemill.sealing.records import open_outcome
from tidemill.sealing.vault import NoKey, Vault
from tidemill.sealing.wrapping import wait_reason

log = logging.getLogger(__name__)

BOUNDS = Bounds(records=64, bytes=512 << 10, records_per_call=1)


class RecordHandler:
    """See `owner.PartitionWork`."""

    def __init__(self, partition: Partition, *, resources: Resources, vault: Vault, partitions: int) -> None:
        """Handle no record yet; the vault has the keys of sealed results, and `outcomes` this many partitions."""
        self.partition = partition
        self._sender = resources.sender
        self._store = resources.store
        self._vault = vault
        self._clock = resources.clock
        self._partitions = partitions
        self._held = HeldRecords(partition.batches.unread, resources.monotonic)
        self._is_tick_sent = False
        self._ticking: asyncio.Future[int] | None = None
        """A reference to the task: the event loop has only a weak one."""

    def start(self) -> None:
        """See `owner.PartitionWork`: a tick makes the owner take over the active batches."""
        self._send_tick()

    async def load(self) -> None:
        """See `owner.PartitionWork`."""
        await self.partition.load()

    async def handle(self, records: list[Record]) -> None:
        """See `owner.PartitionWork`."""
        for record in records:
            batch_id = codec.lines_batch(record.headers) if record.topic == topics.OUTCOMES.name else None
            await self._held.run_or_hold(
                batch_id, functools.partial(self._handle, record), len(record.value or b"")
            )

    def is_due(self) -> bool:
        """See `owner.PartitionWork`."""
        self.partition.batches.check_clock()
        self.partition.batches.check_models()
        due_at, due_in = self.partition.due_at, self._held.due_in
        is_due = (due_at is not None and due_at <= self._clock()) or (due_in is not None and due_in <= 0)
        return is_due or self.partition.has_ended

    async def tick(self) -> None:
        """See `owner.PartitionWork`."""
        await self.partition.settle()
        if self.is_due():
            self._send_tick()

    async def leave(self) -> None:
        """See `owner.PartitionWork`: records without a part stay unacknowledged, and Kafka redelivers them."""

    def abandon(self) -> None:
        """See `owner.PartitionWork`."""
        self.partition.abandon()

    def _send_tick(self) -> None:
        """Send a tick into the partition, unless one is under way; without ticks no timer would be due."""
        if self._is_tick_sent:
            return
        self._is_tick_sent = True
        tick = Tick(at=self._clock(), writer=self.partition.owner.writer)
        send = functools.partial(
            self._sender.send,
            topics.OUTCOMES.name,
            "tick",
            codec.encode(tick),
            headers=[(codec.KIND, tick.kind.encode())],
            partition=self.partition.active_batches.number,
        )
        self._ticking = asyncio.ensure_future(retry("sending a tick", send, faults=Exception))

    async def _handle(self, record: Record) -> None:
        """Apply a record, or make it a dead letter.

        Raises:
            Unavailable: The lines cannot be read at the moment.
        """
        failed = await handle_record(
            self._sender, record, lambda: self._dispatch(record), stage="results", undo=self.partition.batches.undo
        )
        if failed is not None:
            await self._show(record, failed)
            record.ack()
        # The record stays in memory until it is acknowledged; its value is not needed any more.
        record.value = None

    async def _show(self, record: Record, failed: FailedRecord) -> None:
        """Show the dead letter on the batch that the record names; if that fails, too, only the letter remains."""
        identified = dead_letters.identify_batch(record.topic, record.headers, record.value)
        if identified is None or not self._belongs(record, identified.batch_id):
            return
        at = int(self._clock())
        fact = DeadLettered(batch_id=identified.batch_id, source=failed.source, reason=failed.reason, at=at)
        self.partition.active_batches.begin()
        try:
            await self.partition.dead_lettered(fact, identified.created, ends=not failed.unreadable)
        except TRANSIENT:
            raise
        except Exception:
            log.exception("%s cannot show that one of its records is a dead letter", identified.batch_id)
            self.partition.batches.undo()

    def _belongs(self, record: Record, batch_id: str) -> bool:
        """Whether the record lies in the partition of its batch, under the batch's key."""
        is_keyed = record.key == batch_id.encode() and ids.is_batch_id(batch_id)
        return is_keyed and partition_of(batch_id, self._partitions) == record.partition

    def _check(self, record: Record, batch_id: str) -> None:
        if not self._belongs(record, batch_id):
            raise DecodeError("its key and its place are not those of its batch")

    async def _dispatch(self, record: Record) -> None:
        self.partition.active_batches.begin()
        if record.topic == topics.COMMANDS.name:
            command = codec.decode_command(record.value)
            self._check(record, codec.batch_of(command) or "")
            await self.partition.command(command, record.ack)
        elif codec.kind_of(record.headers) == codec.LINES:
            await self._lines(record)
        else:
            fact = codec.decode_fact(record.value)
            if isinstance(fact, Tick):
                self._is_tick_sent = False
            else:
                self._check(record, codec.batch_of(fact) or "")
            await self.partition.fact(fact, record.ack)

    async def _lines(self, record: Record) -> None:
        value = record.value or b""
        batch_id, marks = codec.lines_marks(record.headers, len(value))
        self._check(record, batch_id)
        if not self.partition.active_batches.takes_lines(batch_id):
            # Without decrypting it: the key of the batch may be destroyed.
            record.ack()
            return
        content, model = await self._content(record, value), codec.lines_model(record.headers)
        await self.partition.lines(batch_id, marks, content, record.ack, model=model)

    async def _content(self, record: Record, value: bytes) -> bytes:
        """The lines of a record.

        Raises:
            DecodeError: The lines are gone, or damaged.
            Unavailable: The lines cannot be read at the moment.
        """
        try:
            _, value = await open_outcome(self._vault, record.headers, value)
            if (ref := codec.lines_ref(record.headers)) is not None:
                value = await self._stored(ref)
        except NoKey as error:
            raise DecodeError(str(error)) from error
        except OSError as error:
            raise Unavailable(reason(error), wait_reason(error)) from error
        return value

    async def _stored(self, ref: codec.LineRef) -> bytes:
        try:
            value = await read_all(self._store.read(ref.key, ref.offset, ref.offset + ref.length))
        except (NotFound, ValueError) as error:
            raise DecodeError("the line that it refers to is not in the store") from error
        if len(value) != ref.length:
            raise DecodeError("the line that it refers to is cut short")
        return value
