"""The door to Kafka beside Faust: outcomes are appended, and read back when partitions change hands."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from tidemill.configuration.security import Kafka
from tidemill.kafka.connection import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN, STOP_SECONDS_MAX
from tidemill.kafka.history import reading
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

_log = logging.getLogger(__name__)


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


async def reopened(
    kafka: Kafka, ended: ClosedBatches, vault: Vault, records: Sequence[Held]
) -> AsyncGenerator[Opened | DecodeError, None]:
    """See `held_records.Reopen`; also raises `KafkaError` and `TimeoutError`, where the log does not answer."""
    for held in records[:1]:
        with suppress(NoKey):
            await vault.cipher(held.head.batch_id, held.head.seal.key_id if held.head.seal else "")
    async with reading(kafka) as reader:
        for held in records:
            message = held.message
            message.value = await reader.value(message.topic, message.partition, message.offset)
            opened = await seals.opened(message, ended, vault)
            if isinstance(opened, Unopened):
                raise KeyUnavailable(opened.why)
            yield opened if message.value is not None else DecodeError("the log has it no more")


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, DiskFull) else type(error).__name__


def outcomes(record: Any) -> Iterator[tuple[str, int]]:
    """The lines whose results a record of `outcomes` has, as batch id and index; a fact has none."""
    if codec.kind_of(record.headers) != codec.LINES:
        return
    try:
        batch_id, marks = codec.lines_marks(record.headers, len(record.value or b""))
    except codec.DecodeError as error:
        _log.warning("an outcome at %d/%d cannot be read: %s", record.partition, record.offset, error)
        return
    for line in marks:
        yield batch_id, line.index


async def _stop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Close a client, bounded: one whose broker is away would wait for it."""
    try:
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await client.stop()
    except (KafkaError, OSError) as error:
        _log.debug("a client did not close well: %s", type(error).__name__)
