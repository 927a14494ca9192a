"""The door to what the log has: a topic is read to where it ends, without a group."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from tidemill.configuration.security import Kafka, client_options
from tidemill.kafka.connection import CONNECT_SECONDS_MAX, REQUEST_MS_MAX, STOP_SECONDS_MAX, LogUnavailable

POLL_MS: Final = 200
STALL_SECONDS_MAX: Final = 20.0
"""A reading that gets no further for so long is given up."""
CLOCK_SECONDS_MAX: Final = 3600.0
"""By how much the clocks of those who write may differ."""


class Reader:
    """Reads topics up to where they end when the reading begins."""

    def __init__(self, consumer: AIOKafkaConsumer, cluster: Any) -> None:
        self._consumer = consumer
        self._cluster = cluster

    def partitions(self, topic: str) -> list[int]:
        """The partitions of a topic; none where it does not exist."""
        return sorted(self._cluster.partitions_for_topic(topic) or ())

    def topics(self) -> set[str]:
        """The names of all topics."""
        return set(self._cluster.topics())

    async def ends(self, topic: str, numbers: Iterable[int]) -> dict[int, tuple[int, int]]:
        """The first offset that is still there and the next one to be written, by partition.

        Raises:
            LogUnavailable: The broker does not answer.
        """
        tps = [TopicPartition(topic, number) for number in numbers]
        with _told():
            first, end = await self._consumer.beginning_offsets(tps), await self._consumer.end_offsets(tps)
        return {tp.partition: (first[tp], end[tp]) for tp in tps}

    async def newest(self, topic: str) -> float | None:
        """When the newest record of a topic's first partition was written, Unix seconds; None where none is there.

        Raises:
            LogUnavailable: The broker does not answer.
        """
        if not self.partitions(topic):
            return None
        ((first, end),) = (await self.ends(topic, [0])).values()
        if first == end:
            return None
        tp = TopicPartition(topic, 0)
        self._consumer.assign([tp])
        self._consumer.seek(tp, end - 1)
        with _told():
            found = await self._consumer.getmany(tp, timeout_ms=POLL_MS * 10)
        return max((record.timestamp / 1000 for record in found.get(tp, ())), default=None)

    async def records(
        self, topic: str, numbers: Iterable[int] | None = None, *, since: float | None = None
    ) -> AsyncGenerator[Any, None]:
        """The records of a topic, each partition in order.

        Args:
            topic: Its name; one that does not exist has no records.
            numbers: Its partitions; by default all.
            since: Unix seconds; what was written earlier is left out, but for `CLOCK_SECONDS_MAX`.

        Raises:
            LogUnavailable: The broker does not answer, or there was no progress for `STALL_SECONDS_MAX`.
        """
        numbers = list(self.partitions(topic) if numbers is None else numbers)
        left = {
            TopicPartition(topic, number): end
            for number, (first, end) in (await self.ends(topic, numbers)).items()
            if first < end
        }
        if not left:
            return
        self._consumer.assign(list(left))
        with _told():
            if since is None:
                await self._consumer.seek_to_beginning(*left)
            else:
                await self._seek(left, since)
            while left:
                for record in await self._next(left):
                    yield record

    async def _seek(self, ends: dict[TopicPartition, int], since: float) -> None:
        at_ms = max(0, int((since - CLOCK_SECONDS_MAX) * 1000))
        found = await self._consumer.offsets_for_times(dict.fromkeys(ends, at_ms))
        for tp, end in ends.items():
            # A time after the last record has no place; there is nothing to be read then.
            self._consumer.seek(tp, place.offset if (place := found.get(tp)) else end)

    async def _next(self, left: dict[TopicPartition, int]) -> list[Any]:
        """Some records, or none where a partition has come to its end."""
        async with asyncio.timeout(STALL_SECONDS_MAX):
            while True:
                batches = await self._consumer.getmany(*left, timeout_ms=POLL_MS)
                ends = dict(left)
                for tp, end in ends.items():
                    if await self._consumer.position(tp) >= end:
                        del left[tp]
                found = [
                    record for tp, records in batches.items() for record in records if record.offset < ends[tp]
                ]
                if found or len(left) < len(ends):
                    return found


@asynccontextmanager
async def reading(kafka: Kafka) -> AsyncIterator[Reader]:
    """Connect a reader.

    Raises:
        LogUnavailable: No broker answers.
    """
    consumer = AIOKafkaConsumer(
        **client_options(kafka),
        request_timeout_ms=REQUEST_MS_MAX,
        fetch_max_wait_ms=POLL_MS,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    try:
        with _told():
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await consumer.start()
                # The consumer's own picture has only the topics that it reads already.
                cluster = await consumer._client.fetch_all_metadata()  # noqa: SLF001
        yield Reader(consumer, cluster)
    finally:
        with suppress(KafkaError, OSError):
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await consumer.stop()


@contextmanager
def _told() -> Iterator[None]:
    """Turns errors of the client into the one that callers know."""
    try:
        yield
    except LogUnavailable:
        raise
    except (KafkaError, TimeoutError) as error:
        raise LogUnavailable(type(error).__name__) from error
