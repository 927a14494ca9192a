"""The producer of requests: a bounded number of records are under way at a time."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Callable
from dataclasses import replace
from typing import Final

from tidemill.configuration.security import Kafka
from tidemill.ingest.files.packing import Record
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.producer import Log, Producer, Sent, producer
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import KIND, encode, request_headers
from tidemill.schemas.log.messages import Accepted, Buried, Rejected
from tidemill.sealing.records import seal_request
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
_RECORD_BYTES_BASE = 200
"""Headers and key of a record, roughly."""


class RequestProducer:
    """Appends facts and requests. It starts a producer when it needs one and replaces it after a failure."""

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
        self._log = log
        self._producer = Producer(
            lambda: producer(kafka, compression=COMPRESSION, batch_bytes=PRODUCER_BATCH_BYTES)
        )

    async def send_fact(self, fact: Accepted | Rejected | Buried) -> None:
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
        unacked: deque[tuple[int, Sent]] = deque()
        size = 0
        async for record in records:
            head, value = await seal_request(self._vault, record.head, record.value)
            record = replace(record, head=head, value=value)  # noqa: PLW2901
            sent = _RECORD_BYTES_BASE + len(record.value)
            while unacked and (size + sent > UNACKED_BYTES_MAX or len(unacked) >= UNACKED_RECORDS_MAX):
                size -= await self._oldest(unacked)
            unacked.append((sent, await self._enqueue(names[record.express], record)))
            size += sent
        while unacked:
            await self._oldest(unacked)

    async def stop(self) -> None:
        """See `Producer.stop`."""
        await self._producer.stop()

    async def _enqueue(self, topic: str, record: Record) -> Sent:
        headers = request_headers(record.head)
        try:
            async with asyncio.timeout(DELIVERY_SECONDS_MAX):
                return await self._producer.enqueue(topic, record.key, record.value, headers=headers)
        except TimeoutError as error:
            raise LogUnavailable("no room for a record in time") from error

    async def _oldest(self, unacked: "deque[tuple[int, Sent]]") -> int:
        """Wait until the broker has the oldest record, and return its size in bytes."""
        size, sent = unacked.popleft()
        await self._producer.delivered(sent, DELIVERY_SECONDS_MAX)
        return size
