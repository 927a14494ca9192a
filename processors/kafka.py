"""Appends outcomes to Kafka, and reads records and outcomes again; Faust reads the requests."""

import functools
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from tidemill.configuration.security import Kafka
from tidemill.kafka.history import reading
from tidemill.kafka.producer import Producer, producer
from tidemill.processors.partitions import seals
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.held_records import Held
from tidemill.processors.partitions.seals import Opened, Unopened
from tidemill.retrying import retried
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.messages import Stalled
from tidemill.schemas.log.topics import OUTCOMES
from tidemill.sealing.vault import NoKey, Vault
from tidemill.sealing.wrapping import KeyUnavailable

LINGER_MS: Final = 1
BATCH_BYTES: Final = 256 << 10
"""What one request carries to one partition: a record of results alone is larger than the client's 16 KiB."""

_log = logging.getLogger(__name__)


class KafkaOutbox:
    """Appends to `outcomes`. Any number of tasks may send; one producer serves them all."""

    def __init__(self, kafka: Kafka, *, check_disk: Callable[[], None] = lambda: None) -> None:
        """Connect nothing yet.

        Args:
            kafka: Brokers and credentials.
            check_disk: Raises `DiskFull` if Kafka's disk has no room for results.
        """
        self._check_disk = check_disk
        self._producer = Producer(
            lambda: producer(kafka, compression="lz4", linger_ms=LINGER_MS, batch_bytes=BATCH_BYTES)
        )

    async def start(self) -> None:
        """Connect, so that the first result need not wait for it.

        Raises:
            LogUnavailable: No broker answers.
        """
        await self._producer.start()

    async def send(self, batch_id: str, value: bytes, headers: codec.Headers) -> None:
        """Append a record and return once all replicas have it, however long that takes.

        A record that is sent again after an uncertain failure may be in the log twice; results counts each line
        once.

        Raises:
            RecordTooLarge: It is.
        """
        await retried("sending outcomes", functools.partial(self._send, batch_id, value, headers))

    async def stalled(self, fact: Stalled) -> None:
        """Tell a batch what its lines wait for. See `send`."""
        await self.send(fact.batch_id, codec.encode(fact), [(codec.KIND, fact.kind.encode())])

    async def _send(self, batch_id: str, value: bytes, headers: codec.Headers) -> None:
        self._check_disk()
        sent = await self._producer.enqueue(OUTCOMES.name, batch_id, value, headers=headers)
        await self._producer.delivered(sent)

    async def stop(self) -> None:
        """Disconnect; what was sent has been waited for by whoever sent it."""
        await self._producer.stop()


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
