"""The door to the log for a stream of records: many are under way at a time, a bounded number of them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from tidemill.configuration.security import Kafka, client_options
from tidemill.ingest.files.packing import Record
from tidemill.kafka.connection import CONNECT_SECONDS_MAX, REQUEST_MS_MAX, LogUnavailable
from tidemill.kafka.producer import Log, too_large
from tidemill.schemas.bounds import RECORD_BYTES_MAX
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import KIND, encode, request_headers
from tidemill.schemas.log.messages import Accepted, Buried, Rejected
from tidemill.sealing.records import sealed_request
from tidemill.sealing.vault import Vault

UNACKED_BYTES_MAX: Final = 4 << 20
"""Of one batch; with `UNACKED_RECORDS_MAX`, what may be sent ahead of the broker's acknowledgement."""
UNACKED_RECORDS_MAX: Final = 1024
DELIVERY_SECONDS_MAX: Final = 30.0
"""A record that is not acknowledged by then breaks the publishing off, to be begun anew."""
PRODUCER_BATCH_BYTES: Final = 512 * 1024
"""What one request may carry to one partition: a request of a single record of 64 KiB would be far from it."""
COMPRESSION: Final = "zstd"
"""For 209 MB of lines it takes 0.4 s of CPU, lz4 in this client 1.9 s; disk and network get half of the bytes."""
STOP_SECONDS_MAX: Final = 5.0
_RECORD_BYTES_BASE = 200
"""Headers and key of a record, roughly."""


class RequestProducer:
    """What ingest tells the rest of Tidemill. Producers are started when needed and replaced after a failure."""

    def __init__(
        self, kafka: Kafka, log: Log, *, vault: Vault | None = None, check_disk: Callable[[], None] = lambda: None
    ) -> None:
        """Connect nothing yet.

        Args:
            kafka: Where, and how to get in.
            log: For facts.
            vault: Has the keys of batches whose lines are sealed.
            check_disk: Raises `DiskFull` where the log has no room for lines.
        """
        self._vault = vault
        self._check_disk = check_disk
        self._kafka = kafka
        self._log = log
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def tell(self, fact: Accepted | Rejected | Buried) -> None:
        """Append a fact to `outcomes`; on return the broker has it.

        Raises:
            OSError: It was not acknowledged in time.
        """
        kind = [(KIND, fact.kind.encode())]
        await self._log.send(topics.OUTCOMES.name, fact.batch_id, encode(fact), headers=kind)

    async def publish(self, model: str, records: AsyncIterable[Record]) -> None:
        """Append records to the model's topics, in order under each key; on return the broker has them all.

        Raises:
            OSError: One was not acknowledged in time. Any of them may have landed, or land yet.
            RecordTooLarge: One is.
            DiskFull: There is no room for them; none was sent.
            NoKey: The batch is deleted.
        """
        self._check_disk()
        names = {False: topics.requests(model).name, True: topics.express(model).name}
        current = None
        unacked: deque[tuple[int, asyncio.Future[Any]]] = deque()
        size = 0
        try:
            current = await self._started()
            async for record in records:
                head, value = await sealed_request(self._vault, record.head, record.value)
                record = replace(record, head=head, value=value)  # noqa: PLW2901
                sent = _RECORD_BYTES_BASE + len(record.value)
                while unacked and (size + sent > UNACKED_BYTES_MAX or len(unacked) >= UNACKED_RECORDS_MAX):
                    size -= await _oldest(unacked)
                unacked.append((sent, await self._send(current, names[record.express], record)))
                size += sent
            while unacked:
                await _oldest(unacked)
        except MessageSizeTooLargeError as error:
            raise too_large(names[False], record.key, record.value) from error
        except KafkaError as error:
            # An idempotent producer that met a fault it may not repeat is of no use any more.
            await self._drop(current)
            raise LogUnavailable(type(error).__name__) from error
        except TimeoutError as error:
            await self._drop(current)
            raise LogUnavailable("no acknowledgement in time") from error

    async def stop(self) -> None:
        """Disconnect; what is under way is sent first, within `STOP_SECONDS_MAX`."""
        await self._drop(self._producer)

    @staticmethod
    async def _send(producer: AIOKafkaProducer, topic: str, record: Record) -> "asyncio.Future[Any]":
        async with asyncio.timeout(DELIVERY_SECONDS_MAX):
            future: asyncio.Future[Any] = await producer.send(
                topic, record.value, key=record.key.encode(), headers=request_headers(record.head)
            )
        # Where the publishing breaks off nobody asks for the rest of the answers.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                fresh = AIOKafkaProducer(
                    **client_options(self._kafka),
                    acks="all",
                    enable_idempotence=True,
                    request_timeout_ms=REQUEST_MS_MAX,
                    max_request_size=RECORD_BYTES_MAX,
                    max_batch_size=PRODUCER_BATCH_BYTES,
                    compression_type=COMPRESSION,
                )
                try:
                    async with asyncio.timeout(CONNECT_SECONDS_MAX):
                        await fresh.start()
                except BaseException:
                    await _stop(fresh)
                    raise
                self._producer = fresh
            return self._producer

    async def _drop(self, current: AIOKafkaProducer | None) -> None:
        if current is None:
            return
        if self._producer is current:
            self._producer = None
        await _stop(current)


async def _oldest(unacked: "deque[tuple[int, asyncio.Future[Any]]]") -> int:
    """Wait until the broker has the oldest record, and return its size in bytes."""
    size, future = unacked.popleft()
    if not future.done():
        async with asyncio.timeout(DELIVERY_SECONDS_MAX):
            await future
    future.result()
    return size


async def _stop(producer: AIOKafkaProducer) -> None:
    with suppress(KafkaError, OSError):
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await producer.stop()
