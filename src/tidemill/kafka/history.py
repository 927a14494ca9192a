"""Bounded reads of topics, up to their ends at the start of the read, without a consumer group."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from tidemill.configuration.security import Kafka, client_options
from tidemill.kafka.connection import CONNECT_SECONDS_MAX, REQUEST_MS_MAX, LogUnavailable, stop
from tidemill.schemas.ports import Edge, LogRecord

POLL_MS: Final = 200
POLL_RECORDS_MAX: Final = 500
STALL_SECONDS_MAX: Final = 20.0
"""A read fails after this time without progress."""
FIRST: Final = Edge(offset=0)


class Reader:
    """Reads topics up to their ends at the start of a read; one read at a time."""

    def __init__(self, consumer: AIOKafkaConsumer, cluster: Any) -> None:
        self._consumer = consumer
        self._cluster = cluster

    def partitions(self, topic: str) -> list[int]:
        """The partitions of a topic; none if it does not exist."""
        return sorted(self._cluster.partitions_for_topic(topic) or ())

    def topics(self) -> set[str]:
        """The names of all topics."""
        return set(self._cluster.topics())

    async def ends(self, topic: str, numbers: Iterable[int]) -> dict[int, tuple[int, int]]:
        """The first available offset and the next offset of each partition.

        Raises:
            LogUnavailable: The broker does not answer.
        """
        tps = [TopicPartition(topic, number) for number in numbers]
        with _unavailable():
            first, end = await self._consumer.beginning_offsets(tps), await self._consumer.end_offsets(tps)
        return {tp.partition: (first[tp], end[tp]) for tp in tps}

    async def newest(self, topic: str) -> float | None:
        """When the newest record of partition 0 was written, Unix seconds; None if it is empty.

        Raises:
            LogUnavailable: The broker does not answer.
        """
        if not self.partitions(topic):
            return None
        end = (await self.ends(topic, [0]))[0][1]
        async with aclosing(self.records(topic, {0: Edge(offset=end - 1)})) as records:
            return max([record.timestamp / 1000 async for record in records], default=None)

    async def value(self, topic: str, partition: int, offset: int) -> bytes | None:
        """The value of one record; None if the log has removed it.

        Raises:
            LogUnavailable: The broker does not answer.
        """
        here = {partition: Edge(offset=offset)}
        async with aclosing(self.records(topic, here, end=Edge(offset=offset + 1))) as records:
            return next(iter([record.value async for record in records]), None)

    async def records(
        self, topic: str, starts: Mapping[int, Edge] | Edge = FIRST, *, end: Edge | None = None
    ) -> AsyncGenerator[Any, None]:
        """The records of a topic, each partition in order, from `starts` on; a missing topic has none.

        It stops before `end`, by default at the current ends.

        Raises:
            LogUnavailable: The broker does not answer, or the read stalled for `STALL_SECONDS_MAX`.
        """
        if isinstance(starts, Edge):
            starts = dict.fromkeys(self.partitions(topic), starts)
        with _unavailable():
            left = await self._seek(topic, starts, end)
            while left:
                for record in await self._next(left):
                    yield record

    async def _seek(self, topic: str, starts: Mapping[int, Edge], end: Edge | None) -> dict[TopicPartition, int]:
        """Seek to the start of each partition with records in the range; returns the offsets to stop before."""
        tps = [TopicPartition(topic, number) for number in starts]
        # Assigned first, so that the client looks up the leaders while it requests the offsets.
        self._consumer.assign(tps)
        self._consumer.pause(*tps)
        ends = await self.ends(topic, starts)
        begins = await self._offsets(topic, starts, ends)
        stops = {} if end is None else await self._offsets(topic, dict.fromkeys(starts, end), ends)
        left = {
            TopicPartition(topic, number): stop
            for number, (_, last) in ends.items()
            if begins[number] < (stop := min(stops.get(number, last), last))
        }
        for tp in left:
            self._consumer.seek(tp, begins[tp.partition])
        self._consumer.resume(*left)
        return left

    async def _offsets(
        self, topic: str, edges: Mapping[int, Edge], ends: Mapping[int, tuple[int, int]]
    ) -> dict[int, int]:
        times = {TopicPartition(topic, n): edge.at_ms for n, edge in edges.items() if edge.offset is None}
        found = await self._consumer.offsets_for_times(times) if times else {}
        # A time after the last record means the end of the partition.
        by_time = {tp.partition: place.offset if place else ends[tp.partition][1] for tp, place in found.items()}
        return {
            n: max(by_time[n] if edge.offset is None else edge.offset, ends[n][0]) for n, edge in edges.items()
        }

    async def _next(self, left: dict[TopicPartition, int]) -> list[Any]:
        """The next records; empty if a partition has ended, which is then removed from `left`."""
        async with asyncio.timeout(STALL_SECONDS_MAX):
            while True:
                batches = await self._consumer.getmany(*left, timeout_ms=POLL_MS, max_records=POLL_RECORDS_MAX)
                stops = dict(left)
                for tp, stop_at in stops.items():
                    # The last offsets may have no records, so the position counts.
                    if await self._consumer.position(tp) >= stop_at:
                        del left[tp]
                        self._consumer.pause(tp)
                found = [
                    record for tp, records in batches.items() for record in records if record.offset < stops[tp]
                ]
                if found or len(left) < len(stops):
                    return found


@asynccontextmanager
async def reading(kafka: Kafka) -> AsyncIterator[Reader]:
    """Open a reader.

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
        with _unavailable():
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await consumer.start()
                # The consumer knows only the topics that it reads, and a request for another one may create it.
                cluster = await consumer._client.fetch_all_metadata()  # noqa: SLF001
        yield Reader(consumer, cluster)
    finally:
        await stop(consumer)


class LogHistory:
    """Reads topics; every read opens a connection."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka

    async def entries(self, topic: str, start: Edge, end: Edge | None) -> AsyncGenerator[LogRecord, None]:
        """The records of a topic, in order within each partition; none if the topic does not exist.

        `end` is exclusive; None is the present end of each partition.

        Raises:
            LogUnavailable: The log does not answer.
        """
        async with (
            reading(self._kafka) as reader,
            aclosing(reader.records(topic, start, end=end)) as records,
        ):
            async for record in records:
                yield LogRecord(at_ms=record.timestamp, value=record.value or b"", headers=tuple(record.headers))


@contextmanager
def _unavailable() -> Iterator[None]:
    """Raise errors of the client as `LogUnavailable`."""
    try:
        yield
    except LogUnavailable:
        raise
    except (KafkaError, TimeoutError) as error:
        raise LogUnavailable(type(error).__name__) from error
