"""Appends outcomes to Kafka, and reads outcomes and held records from it; Faust reads the requests."""

import functools
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final

from tidemill.configuration.security import Kafka
from tidemill.kafka.connection import LogRefuses
from tidemill.kafka.history import Reader, reading
from tidemill.kafka.producer import Producer, producer
from tidemill.processors.partitions import seals
from tidemill.processors.partitions.closed_batches import ClosedBatches
from tidemill.processors.partitions.held_requests import HeldRequest
from tidemill.processors.partitions.seals import LockedRecord, OpenedRecord
from tidemill.retrying import retry
from tidemill.schemas.log import codec
from tidemill.schemas.log.codec import DecodeError
from tidemill.schemas.log.messages import Stalled
from tidemill.schemas.log.topics import OUTCOMES
from tidemill.sealing.vault import NoKey, Vault
from tidemill.sealing.wrapping import KeyUnavailable

LINGER_MS: Final = 1
BATCH_BYTES: Final = 256 << 10
"""Bytes of one produce request to one partition; a single record of results is larger than the client's 16 KiB."""

_log = logging.getLogger(__name__)


class KafkaOutbox:
    """Appends to `outcomes`. Any number of tasks may send at the same time."""

    def __init__(
        self, kafka: Kafka, *, encrypted: bool = False, check_disk: Callable[[], None] = lambda: None
    ) -> None:
        """Connect nothing yet.

        Kafka does not compress `encrypted` results. `check_disk` raises `DiskFull` if Kafka's disk has no room for
        results.
        """
        self.refusal = ""
        """Why Kafka refused the last result; empty if it took it."""
        self._check_disk = check_disk
        self._producer = Producer(
            lambda: producer(
                kafka, compression=None if encrypted else "lz4", linger_ms=LINGER_MS, batch_bytes=BATCH_BYTES
            )
        )

    async def start(self) -> None:
        """Connect early, so that the first result need not wait.

        Raises:
            LogUnavailable: No broker answers.
        """
        await self._producer.start()

    async def send(self, batch_id: str, value: bytes, headers: codec.Headers) -> None:
        """Append a record; return once all replicas have it, however long that takes.

        After an uncertain failure the log may get the record twice; results counts each line once.

        Raises:
            RecordTooLarge: It does not fit into the log.
        """
        await retry("sending outcomes", functools.partial(self._send, batch_id, value, headers))

    async def stalled(self, fact: Stalled) -> None:
        """Publish why lines of a batch wait. See `send`."""
        await self.send(fact.batch_id, codec.encode(fact), [(codec.KIND, fact.kind.encode())])

    async def _send(self, batch_id: str, value: bytes, headers: codec.Headers) -> None:
        self._check_disk()
        sent = await self._producer.enqueue(OUTCOMES.name, batch_id, value, headers=headers)
        try:
            await self._producer.delivered(sent)
        except LogRefuses as error:
            if (why := str(error)) != self.refusal:
                _log.error("%s refuses results (%s): `tidemill doctor` may say why", OUTCOMES.name, why)
            self.refusal = why
            raise
        self.refusal = ""

    async def stop(self) -> None:
        """Disconnect, once no `send` is under way."""
        await self._producer.stop()


async def reopen(
    kafka: Kafka, closed: ClosedBatches, vault: Vault, records: Sequence[HeldRequest]
) -> AsyncGenerator[OpenedRecord | DecodeError, None]:
    """See `held_requests.Reopen`."""
    for held in records[:1]:
        with suppress(NoKey):
            await vault.cipher(held.head.batch_id, held.head.seal.key_id if held.head.seal else "")
    async with AsyncExitStack() as stack:
        reader: Reader | None = None
        for held in records:
            message = held.message
            if message.value is None:
                if reader is None:
                    reader = await stack.enter_async_context(reading(kafka))
                message.value = await reader.value(message.topic, message.partition, message.offset)
            opened = await seals.open_record(message, closed, vault)
            if isinstance(opened, LockedRecord):
                raise KeyUnavailable(opened.why)
            yield opened if message.value is not None else DecodeError("the log no longer has the record")
