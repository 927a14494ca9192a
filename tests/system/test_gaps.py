"""A stage reads a partition whose log has gaps, on a real broker."""

import asyncio
import secrets

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from support.waiting import until

from tidemill.configuration.settings import Settings
from tidemill.faust.monitored_apps import MonitoredApps
from tidemill.faust.stage_app import create_app, raw_topic

pytestmark = pytest.mark.kafka

MIB = 1 << 20


class Reading:
    """A Faust app that acknowledges each record of one partition, and keeps its value."""

    def __init__(self, kafka, folder, topic):
        self.app = create_app(f"gaps-{topic}", Settings(), kafka=kafka, state=folder)
        self.tp = TopicPartition(topic, 0)
        self.values = []
        self._agent = self.app.agent(raw_topic(self.app, topic))(self._consume)
        self.app.oldest = lambda: None
        self.monitored = MonitoredApps()

    async def _consume(self, events):
        async for event in events.noack().events():
            self.values.append(event.value)
            event.ack()

    async def committed(self):
        """The committed offset of the partition."""
        return self.app.consumer._committed_offset.get(self.tp)

    def lag(self):
        """Records that are neither committed nor markers."""
        ((_, _, probe, _),) = self.monitored._apps
        return probe.lag().get(self.tp.topic)

    async def __aenter__(self):
        self.monitored.add([self.app])
        await self.app.start()
        return self

    async def __aexit__(self, *_):
        await self.app.stop()


@pytest.fixture
async def topic(kafka):
    """A topic of one partition."""
    name = f"gaps-{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(name, 1, 1, topic_configs={"max.message.bytes": str(2 * MIB)})])
    await admin.close()
    return name


async def send(kafka, topic, *values, **options):
    """Write records, in one batch if the options allow it."""
    async with AIOKafkaProducer(bootstrap_servers=kafka, **options) as producer:
        sent = [await producer.send(topic, value, partition=0) for value in values]
        await asyncio.gather(*sent)


async def test_a_batch_that_is_too_large_when_decompressed_delays_no_later_record(kafka, topic, tmp_path):
    """One replacement has its last offset: those of the records beyond the bound are a gap."""
    large = {
        "compression_type": "gzip",
        "linger_ms": 500,
        "max_batch_size": 128 * MIB,
        "max_request_size": 128 * MIB,
    }
    line, count = b" " * 900_000, 80
    await send(kafka, topic, b"first")
    await send(kafka, topic, *[line] * count, **large)
    await send(kafka, topic, b"last")
    async with Reading(kafka, tmp_path, topic) as reading:
        await until(lambda: b"last" in reading.values)
        first, *lines, replaced, last = reading.values
        assert (first, replaced, last) == (b"first", None, b"last")
        assert set(lines) == {line}
        assert len(lines) < count
        await until(lambda: reading.lag() == 0)
        assert await reading.committed() == count + 2


async def test_transactions_delay_no_record_and_aborted_ones_are_not_read(kafka, topic, tmp_path):
    """Their markers take offsets; an open transaction holds its partition until it ends."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"tx-{topic}")
    async with producer, Reading(kafka, tmp_path, topic) as reading:
        for value, ends in ((b"1", "commit"), (b"2", "abort"), (b"3", "abort"), (b"4", "commit"), (b"5", "abort")):
            await producer.begin_transaction()
            await producer.send_and_wait(topic, value, partition=0)
            await (producer.commit_transaction() if ends == "commit" else producer.abort_transaction())
        await until(lambda: reading.values == [b"1", b"4"])
        await until(lambda: reading.lag() == 0)
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"6", partition=0)
        await send(kafka, topic, b"7")
        await until(lambda: reading.lag() == 2)
        assert reading.values == [b"1", b"4"]
        await producer.commit_transaction()
        await until(lambda: reading.values == [b"1", b"4", b"6", b"7"])
        await until(lambda: reading.lag() == 0)
