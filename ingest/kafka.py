"""The producer of requests, with a bound on unacknowledged records."""

import asyncio
import functools
import logging
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from tidemill.configuration.security import Kafka
from tidemill.ingest.files.packing import RequestRecord
from tidemill.kafka.admin import TopicError, models_with_topics
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.producer import Log, Producer, Sent, partition_of, producer
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import KIND, LineMark, encode, lines_headers, request_headers
from tidemill.schemas.log.messages import Accepted, DeadLettered, Rejected, Stalled
from tidemill.sealing.records import seal_outcome, seal_request
from tidemill.sealing.vault import Vault

UNACKED_BYTES_MAX: Final = 4 << 20
"""Bytes of one batch that may be unacknowledged; `UNACKED_RECORDS_MAX` bounds the records."""
UNACKED_RECORDS_MAX: Final = 1024
DELIVERY_SECONDS_MAX: Final = 30.0
"""If a record is not acknowledged by then, publishing fails and has to start again."""
PRODUCER_BATCH_BYTES: Final = 512 * 1024
"""Bound of one request to one partition; it should hold several records of 64 KiB."""
COMPRESSION: Final = "zstd"
"""209 MB of lines take 0.4 s of CPU (lz4 in this client 1.9 s), and half of the bytes on disk and network."""
TOPICS_KEPT_MAX: Final = 1024
"""Names of topics to remember."""
_log = logging.getLogger(__name__)

_RECORD_BYTES_BASE = 200
"""Rough size of a record's headers and key."""


class RequestProducer:
    """Appends facts and requests. It starts its producer when needed, and replaces it after a failure."""

    def __init__(
        self,
        kafka: Kafka,
        log: Log,
        *,
        partitions: int,
        ensure_topics: Callable[[str], Awaitable[None]],
        vault: Vault,
        encrypted: bool = False,
        check_disk: Callable[[], None] = lambda: None,
    ) -> None:
        """Start without connections.

        Args:
            kafka: Brokers and credentials.
            log: The producer of facts.
            partitions: How many partitions of a topic get records, at most; the same in every process.
            ensure_topics: Creates missing topics of a model; raises `TopicError` if it cannot.
            vault: Has the keys of batches whose lines are sealed.
            encrypted: Whether the lines of new batches are encrypted, so that compression would gain nothing.
            check_disk: Raises `DiskFull` if the log has no room for lines.
        """
        self._vault = vault
        self._check_disk = check_disk
        self._kafka = kafka
        self._log = log
        self._ensure_topics = ensure_topics
        self._models: set[str] = set()
        """The models whose topics exist."""
        self._creating = asyncio.Lock()
        self._producer = Producer(
            lambda: producer(
                kafka,
                compression=None if encrypted else COMPRESSION,
                batch_bytes=PRODUCER_BATCH_BYTES,
                partitioner=functools.partial(partition_of_run, partitions_max=partitions),
            )
        )

    async def start(self, models: Iterable[str]) -> None:
        """Connect, and find out which of the models have their topics, before the first record.

        Raises:
            LogUnavailable: No broker answers.
            TopicError: No broker answers.
        """
        self._models |= await models_with_topics(self._kafka, models)
        await self._producer.start()

    async def send_fact(self, fact: Accepted | Rejected | DeadLettered | Stalled) -> None:
        """Append a fact to `outcomes`; on return the broker has it.

        Raises:
            OSError: The broker did not acknowledge it in time.
        """
        kind = [(KIND, fact.kind.encode())]
        await self._log.send(topics.OUTCOMES.name, fact.batch_id, encode(fact), headers=kind)

    async def begin(self, batch_id: str, project: str) -> None:
        """Create the key of a batch whose lines are sealed.

        Raises:
            OSError: The log does not answer.
            NoKey: The batch is deleted.
        """
        await self._vault.sealing_cipher(batch_id, project)

    async def refuse(self, batch_id: str, marks: list[LineMark], value: bytes, *, model: str) -> None:
        """Append the error lines of lines that are not called; on return the log has them.

        Raises:
            OSError: The broker did not acknowledge them in time.
            NoKey: The batch is deleted.
        """
        headers = lines_headers(batch_id, marks, model=model)
        value, headers = await seal_outcome(self._vault, batch_id, value, headers)
        await self._log.send(topics.OUTCOMES.name, batch_id, value, headers=headers)

    async def publish(self, records: AsyncIterable[RequestRecord]) -> None:
        """Append records to the topics of their models, in order under each key; on return the log has them all.

        Raises:
            OSError: The broker did not create the topics, or did not acknowledge a record in time. Any of the
                records may be in the log, or get there later.
            RecordTooLarge: One of them is too large.
            DiskFull: The log has no room; none was sent.
            NoKey: The batch is deleted.
        """
        self._check_disk()
        unacked: deque[tuple[int, Sent]] = deque()
        size = 0
        async for record in records:
            await self._ensure(record.model)
            head, value = await seal_request(self._vault, record.head, record.value)
            record = replace(record, head=head, value=value)  # noqa: PLW2901
            sent = _RECORD_BYTES_BASE + len(record.value)
            while unacked and (size + sent > UNACKED_BYTES_MAX or len(unacked) >= UNACKED_RECORDS_MAX):
                size -= await self._oldest(unacked)
            unacked.append((sent, await self._enqueue(_topic(record.model, express=record.express), record)))
            size += sent
        while unacked:
            await self._oldest(unacked)

    async def _ensure(self, model: str) -> None:
        """Create the topics of a model before its first line."""
        if model in self._models:
            return
        async with self._creating:
            try:
                await self._ensure_topics(model)
            except TopicError as error:
                _log.error("%s", error)
                raise LogUnavailable(str(error)) from error
        self._models.add(model)

    async def stop(self) -> None:
        """See `Producer.stop`."""
        await self._producer.stop()

    async def _enqueue(self, topic: str, record: RequestRecord) -> Sent:
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


def partition_of_run(
    key: bytes, partitions: Sequence[int], available: Sequence[int], *, partitions_max: int
) -> int:
    """The partition of a run of lines, in rotation, so that all processes get equally many lines of a batch.

    Hashes of the keys would give one of two processes at least 60 % of 10,000 lines in 28 of 100 batches.

    A copy of a run, published after a crash, must reach the same partition, and thus the same process. So
    partitions that were added to the topic later get no records.
    """
    del available
    batch_id, _, run = key.decode().rpartition("/")
    numbers = sorted(partitions)[:partitions_max]
    return numbers[(partition_of(batch_id, len(numbers)) + int(run)) % len(numbers)]


@functools.lru_cache(maxsize=TOPICS_KEPT_MAX)
def _topic(model: str, *, express: bool) -> str:
    """The name of a topic, cached because computing it takes as long as packing a record."""
    return (topics.express(model) if express else topics.requests(model)).name
