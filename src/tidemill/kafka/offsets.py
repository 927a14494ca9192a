"""The offsets of many partitions, in few requests: the first, the next, and those that a group has committed."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final, TypeVar

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import KafkaError, NoError, for_code
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.offset import OffsetRequest

from tidemill.configuration.security import Kafka, client_options
from tidemill.kafka.connection import CONNECT_SECONDS_MAX, REQUEST_MS_MAX, LogUnavailable
from tidemill.schemas.log.topics import Topic

T = TypeVar("T")

FIRST: Final = -2
NEXT: Final = -1
_READ_UNCOMMITTED: Final = 0


class Offsets:
    """Requests offsets; connects with the first request."""

    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka
        self._client: AIOKafkaClient | None = None
        self._connecting = asyncio.Lock()
        self._cluster = ClusterMetadata()
        self._is_stale = True
        """Whether leaders may have moved."""

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def partitions(self) -> dict[str, list[int]]:
        """The current partitions of all topics.

        Raises:
            LogUnavailable: No broker answers.
        """
        return await self._answer(self._partitions)

    async def first(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The first available offset of each partition; one whose leader does not answer is omitted.

        Raises:
            LogUnavailable: No broker answers.
        """
        return await self._answer(lambda client: self._offsets(client, tps, FIRST))

    async def next(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset of each partition's next record; one whose leader does not answer is omitted.

        Raises:
            LogUnavailable: No broker answers.
        """
        return await self._answer(lambda client: self._offsets(client, tps, NEXT))

    async def since(self, tps: Collection[TopicPartition], at: float) -> dict[TopicPartition, int]:
        """The offset of each partition's first record since a Unix time; that of its next record if it has none.

        A partition whose leader does not answer is omitted.

        Raises:
            LogUnavailable: No broker answers.
        """
        # Asked first: a record that is written between the two requests must not be skipped.
        ends = await self.next(tps)
        found = await self._answer(lambda client: self._offsets(client, tps, int(at * 1000)))
        return {tp: offset if offset >= 0 else ends[tp] for tp, offset in found.items() if tp in ends}

    async def committed(self, group: str, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """The offsets that a group has committed; partitions without one are omitted.

        Raises:
            LogUnavailable: No broker answers.
        """
        return await self._answer(lambda client: self._committed(client, group, tps))

    async def _answer(self, ask: Callable[[AIOKafkaClient], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                return await ask(await self._connected())
        except (KafkaError, TimeoutError) as error:
            self._is_stale = True
            await self.close()
            raise LogUnavailable(type(error).__name__) from error

    async def _connected(self) -> AIOKafkaClient:
        async with self._connecting:
            if self._client is None:
                client = AIOKafkaClient(**client_options(self.kafka), request_timeout_ms=REQUEST_MS_MAX)
                try:
                    await client.bootstrap()
                except BaseException:
                    await client.close()
                    raise
                self._client = client
            return self._client

    async def _partitions(self, client: AIOKafkaClient) -> dict[str, list[int]]:
        self._cluster = await client.fetch_all_metadata()
        self._is_stale = False
        return {
            topic: sorted(self._cluster.partitions_for_topic(topic) or ())
            for topic in self._cluster.topics(exclude_internal_topics=False)
        }

    async def _offsets(
        self, client: AIOKafkaClient, tps: Collection[TopicPartition], which: int
    ) -> dict[TopicPartition, int]:
        if self._is_stale:
            await self._partitions(client)
        by_leader: defaultdict[int, defaultdict[str, list[tuple[int, int]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for tp in tps:
            leader = self._cluster.leader_for_partition(tp)
            if leader is not None and leader >= 0:
                by_leader[leader][tp.topic].append((tp.partition, which))
        answers = await asyncio.gather(
            *(
                client.send(leader, OffsetRequest(-1, _READ_UNCOMMITTED, list(topics.items())))
                for leader, topics in by_leader.items()
            ),
        )
        found = {
            TopicPartition(topic, number): place[1]
            for answer in answers
            for topic, partitions in answer.topics
            for number, code, *place in partitions
            if for_code(code) is NoError
        }
        self._is_stale = len(found) < len(tps)
        return found

    async def _committed(
        self, client: AIOKafkaClient, group: str, tps: Iterable[TopicPartition]
    ) -> dict[TopicPartition, int]:
        coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
        topics: defaultdict[str, list[int]] = defaultdict(list)
        for tp in tps:
            topics[tp.topic].append(tp.partition)
        answer = await client.send(coordinator, OffsetFetchRequest(group, list(topics.items())))
        # A broker that does not coordinate the group reports this here, without any partition.
        if (kind := for_code(getattr(answer, "error_code", 0))) is not NoError:
            raise kind(group)
        found = {}
        for topic, partitions in answer.topics:
            for number, offset, _, code in partitions:
                if (kind := for_code(code)) is not NoError:
                    raise kind(f"{topic}/{number}")
                if offset >= 0:
                    found[TopicPartition(topic, number)] = offset
        return found


async def is_unused(kafka: Kafka, *topics: Topic) -> bool:
    """Whether none of the topics has ever had a record.

    Raises:
        LogUnavailable: Not all partitions answer.
    """
    offsets = Offsets(kafka)
    try:
        counts = await offsets.partitions()
        tps = [TopicPartition(topic.name, number) for topic in topics for number in counts.get(topic.name, ())]
        found = await offsets.next(tps)
    finally:
        await offsets.close()
    if len(found) < len(tps):
        raise LogUnavailable("not all partitions answer")
    return not any(found.values())
