"""Reads a range of a topic, without a consumer group."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from tidemill.api.dependencies import Edge, LogRecord
from tidemill.configuration.security import Kafka, client_options
from tidemill.kafka.connection import CONNECT_SECONDS_MAX, REQUEST_MS_MAX, STOP_SECONDS_MAX, LogUnavailable

POLL_MS: Final = 500
POLL_RECORDS_MAX: Final = 200
SILENCE_SECONDS_MAX: Final = 30.0
"""A broker that gives nothing for so long, though there is more, is given up."""


class History:
    """Reads topics; every reading has a connection of its own."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka

    async def entries(self, topic: str, start: Edge, end: Edge | None) -> AsyncGenerator[LogRecord, None]:
        """The records of a topic, those of each partition in order; of a topic that is not there, none.

        Args:
            topic: Its name.
            start: Where to begin in each partition.
            end: Where to stop in each, this one left out; None is where they end now.

        Raises:
            LogUnavailable: The broker does not answer.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                if not (partitions := await self._partitions(topic)):
                    return
            consumer = AIOKafkaConsumer(
                **client_options(self._kafka),
                request_timeout_ms=REQUEST_MS_MAX,
                fetch_max_wait_ms=POLL_MS,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
            )
            try:
                async with asyncio.timeout(CONNECT_SECONDS_MAX):
                    await consumer.start()
                    ends = await _begun(consumer, partitions, start, end)
                async for entry in _read(consumer, ends):
                    yield entry
            finally:
                await _stop(consumer)
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(type(error).__name__) from error

    async def _partitions(self, topic: str) -> list[TopicPartition]:
        admin = AIOKafkaAdminClient(**client_options(self._kafka), request_timeout_ms=REQUEST_MS_MAX)
        try:
            await admin.start()
            # To ask a broker for one topic may make it.
            if topic not in await admin.list_topics():
                return []
            (found,) = await admin.describe_topics([topic])
            return [TopicPartition(topic, partition["partition"]) for partition in found["partitions"]]
        finally:
            await admin.close()


async def _begun(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition], start: Edge, end: Edge | None
) -> dict[TopicPartition, int]:
    """Go to the start of each partition that has something; returns where each ends."""
    consumer.assign(partitions)
    first, last = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    starts = await _offsets(consumer, start, last)
    ends = dict(last) if end is None else await _offsets(consumer, end, last)
    bounds = {
        partition: (max(starts[partition], first[partition]), min(ends[partition], last[partition]))
        for partition in partitions
    }
    for partition, (begin, stop) in bounds.items():
        if begin < stop:
            consumer.seek(partition, begin)
        else:
            consumer.pause(partition)
    return {partition: stop for partition, (begin, stop) in bounds.items() if begin < stop}


async def _offsets(
    consumer: AIOKafkaConsumer, edge: Edge, last: dict[TopicPartition, int]
) -> dict[TopicPartition, int]:
    if edge.offset is not None:
        return dict.fromkeys(last, edge.offset)
    found = await consumer.offsets_for_times(dict.fromkeys(last, edge.at_ms))
    # A time after the last record is where the partition ends.
    return {partition: place.offset if (place := found.get(partition)) else end for partition, end in last.items()}


async def _read(consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> AsyncIterator[LogRecord]:
    left = dict(ends)
    silent_until = asyncio.get_running_loop().time() + SILENCE_SECONDS_MAX
    while left:
        got: dict[TopicPartition, list[Any]] = await consumer.getmany(
            *left, timeout_ms=POLL_MS, max_records=POLL_RECORDS_MAX
        )
        now = asyncio.get_running_loop().time()
        if any(got.values()):
            silent_until = now + SILENCE_SECONDS_MAX
        elif now > silent_until:
            raise TimeoutError
        for partition, records in got.items():
            for record in records:
                if record.offset < ends[partition]:
                    yield LogRecord(
                        at_ms=record.timestamp, value=record.value or b"", headers=tuple(record.headers)
                    )
        for partition in list(left):
            # The last offsets may hold no record, so the position counts.
            if await consumer.position(partition) >= ends[partition]:
                del left[partition]
                consumer.pause(partition)


async def _stop(consumer: AIOKafkaConsumer) -> None:
    with suppress(KafkaError, OSError):
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await consumer.stop()
