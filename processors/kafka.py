"""The door to Kafka beside Faust: outcomes are appended, and read back when partitions change hands."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from tidemill.configuration.security import Kafka, client_options
from tidemill.kafka.connection import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN, REQUEST_MS_MAX, STOP_SECONDS_MAX
from tidemill.kafka.producer import producer, too_large
from tidemill.processors.partitions import seals
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.held_records import Held
from tidemill.processors.partitions.seals import Opened, Unopened
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.messages import Stalled
from tidemill.schemas.log.topics import OUTCOMES
from tidemill.sealing.vault import NoKey, Vault
from tidemill.sealing.wrapping import KeyUnavailable
from tidemill.storage.disk_space import DiskFull

LINGER_MS: Final = 1
STALL_SECONDS_MAX: Final = 20.0
"""Reading back that makes no progress for so long is begun anew."""
POLL_MS: Final = 200

_log = logging.getLogger(__name__)

Mark = Callable[[str, int], None]
"""Told of each outcome: batch id, index of the line."""


class KafkaOutbox:
    """Appends to `outcomes`. Any number of tasks may send; one producer serves them all."""

    def __init__(self, kafka: Kafka, *, check_disk: Callable[[], None] = lambda: None) -> None:
        """Connect nothing yet.

        Args:
            kafka: Where, and how to get in.
            check_disk: Raises `DiskFull` where the log has no room for results.
        """
        self._check_disk = check_disk
        self._kafka = kafka
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Connect, so that the first result need not wait for it.

        Raises:
            KafkaError: No broker answers.
        """
        await self._started()

    async def send(self, batch_id: str, value: bytes, headers: codec.Headers) -> None:
        """Append a record and return once all replicas have it; tries for as long as it takes.

        What is sent again after a doubtful failure may be on the log twice; the fold counts each line once.

        Raises:
            RecordTooLarge: It is.
        """
        wait_seconds = BACKOFF_SECONDS_MIN
        while True:
            current = None
            try:
                self._check_disk()
                current = await self._started()
                await current.send_and_wait(OUTCOMES.name, value, key=batch_id.encode(), headers=headers)
            except MessageSizeTooLargeError as error:
                raise too_large(OUTCOMES.name, batch_id, value) from error
            except (KafkaError, OSError) as error:
                _log.warning("outcomes are not taken (%s); again in %.1f s", _told(error), wait_seconds)
                await self._drop(current)
                await asyncio.sleep(wait_seconds)
                wait_seconds = min(2 * wait_seconds, BACKOFF_SECONDS_MAX)
            else:
                return

    async def stalled(self, fact: Stalled) -> None:
        """Tell a batch what its lines wait for. See `send`."""
        await self.send(fact.batch_id, codec.encode(fact), [(codec.KIND, fact.kind.encode())])

    async def stop(self) -> None:
        """Disconnect; what was sent has been waited for by whoever sent it."""
        await self._drop(self._producer)

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        async with self._starting:
            if self._producer is None:
                fresh = producer(self._kafka, compression="lz4", linger_ms=LINGER_MS)
                try:
                    await fresh.start()
                except BaseException:
                    await _stop(fresh)
                    raise
                self._producer = fresh
            return self._producer

    async def _drop(self, current: AIOKafkaProducer | None) -> None:
        """Give a producer up: an idempotent one that has met a fault may not go on."""
        if current is not None:
            if self._producer is current:
                self._producer = None
            await _stop(current)


class Reader:
    """Looks at the log without a consumer group; an async context manager, for one look."""

    def __init__(self, kafka: Kafka) -> None:
        self._consumer = AIOKafkaConsumer(
            **client_options(kafka),
            request_timeout_ms=REQUEST_MS_MAX,
            fetch_max_wait_ms=POLL_MS,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
        except BaseException:
            await _stop(self._consumer)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await _stop(self._consumer)

    async def ends(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The offsets that the next records will get.

        Raises:
            KafkaError: No broker answers.
        """
        found = await self._consumer.end_offsets([TopicPartition(*partition) for partition in partitions])
        return {(tp.topic, tp.partition): offset for tp, offset in found.items()}

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has.

        Raises:
            KafkaError: No broker answers.
        """
        await self.ends([(topic, 0)])
        return len(self._consumer.partitions_for_topic(topic) or (0,))

    async def recall(self, since: dict[int, float], mark: Mark) -> None:
        """Tell all outcomes from a time on up to the present end.

        Args:
            since: Unix time by partition of `outcomes`.
            mark: Told of each.

        Raises:
            KafkaError: No broker answers.
            TimeoutError: There was no progress for `STALL_SECONDS_MAX`.
        """
        times = {TopicPartition(OUTCOMES.name, number): max(0, int(time * 1000)) for number, time in since.items()}
        self._consumer.assign(list(times))
        starts = await self._consumer.offsets_for_times(times)
        ends = await self._consumer.end_offsets(list(times))
        left = {tp: ends[tp] for tp, start in starts.items() if start is not None and start.offset < ends[tp]}
        if not left:
            return
        self._consumer.assign(list(left))
        for tp in left:
            self._consumer.seek(tp, starts[tp].offset)
        await self._read(left, mark)

    async def value(self, topic: str, partition: int, offset: int) -> bytes | None:
        """The value of one record; None where the log has it no more.

        Raises:
            KafkaError: No broker answers.
            TimeoutError: The record did not come within `STALL_SECONDS_MAX`.
        """
        tp = TopicPartition(topic, partition)
        self._consumer.assign([tp])
        first = (await self._consumer.beginning_offsets([tp]))[tp]
        if offset < first:
            return None
        self._consumer.seek(tp, offset)
        async with asyncio.timeout(STALL_SECONDS_MAX):
            while not (found := (await self._consumer.getmany(tp, timeout_ms=POLL_MS, max_records=1)).get(tp)):
                pass
        return found[0].value if found[0].offset == offset else None

    async def _read(self, left: dict[TopicPartition, int], mark: Mark) -> None:
        while left:
            async with asyncio.timeout(STALL_SECONDS_MAX):
                moved = False
                while not moved:
                    batches = await self._consumer.getmany(*left, timeout_ms=POLL_MS)
                    for tp, end in list(left.items()):
                        moved = moved or bool(batches.get(tp))
                        # The position moves over offsets that hold no record as well.
                        if await self._consumer.position(tp) >= end:
                            del left[tp]
                            moved = True
            for records in batches.values():
                for record in records:
                    _tell(record, mark)


async def reopened(
    kafka: Kafka, ended: ClosedBatches, vault: Vault, records: Sequence[Held]
) -> AsyncGenerator[Opened | DecodeError, None]:
    """See `aside.Reopen`; also raises `KafkaError` and `TimeoutError`, where the log does not answer."""
    for held in records[:1]:
        with suppress(NoKey):
            await vault.cipher(held.head.batch_id, held.head.seal.key_id if held.head.seal else "")
    async with Reader(kafka) as reader:
        for held in records:
            message = held.message
            message.value = await reader.value(message.topic, message.partition, message.offset)
            opened = await seals.opened(message, ended, vault)
            if isinstance(opened, Unopened):
                raise KeyUnavailable(opened.why)
            yield opened if message.value is not None else DecodeError("the log has it no more")


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, DiskFull) else type(error).__name__


def _tell(record: Any, mark: Mark) -> None:
    if codec.kind_of(record.headers) != codec.LINES:
        return
    try:
        batch_id, marks = codec.lines_marks(record.headers, len(record.value or b""))
    except codec.DecodeError as error:
        _log.warning("an outcome at %d/%d cannot be read: %s", record.partition, record.offset, error)
        return
    for line in marks:
        mark(batch_id, line.index)


async def _stop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Close a client, bounded: one whose broker is away would wait for it."""
    try:
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await client.stop()
    except (KafkaError, OSError) as error:
        _log.debug("a client did not close well: %s", type(error).__name__)
