"""Producers beside a quiet time, and before a topic that refuses their records, on a real broker."""

import asyncio
import secrets
from dataclasses import replace

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from support.waiting import until

from tidemill.configuration import security
from tidemill.kafka.admin import topic_configs
from tidemill.kafka.producer import Log
from tidemill.processors import kafka as processors_kafka
from tidemill.schemas.log import topics

pytestmark = pytest.mark.kafka


@pytest.fixture
async def admin(kafka):
    """An administrator's client."""
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    yield client
    await client.close()


@pytest.fixture
async def topic(admin):
    """A topic of one partition."""
    name = f"test-{secrets.token_hex(4)}"
    await admin.create_topics([NewTopic(name, 1, 1)])
    return name


async def test_a_refused_result_is_no_outage(kafka, admin, topic, monkeypatch, caplog):
    """The log of the process and the batch say which it is, once; a change of the topic ends it."""
    monkeypatch.setattr(processors_kafka, "OUTCOMES", replace(topics.OUTCOMES, name=topic))
    outbox = processors_kafka.KafkaOutbox(kafka)

    async def allow(size):
        wanted = {"max.message.bytes": str(size)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=wanted)])

        async def has():
            return (await topic_configs(kafka, [topic], only=wanted))[topic] == wanted

        await until(has, "the new value")

    await allow(300)
    sending = asyncio.create_task(outbox.send("b", secrets.token_bytes(2000), []))
    await until(lambda: caplog.text.count("sending outcomes failed (MessageSizeTooLargeError)") > 1)
    assert outbox.refusal == "MessageSizeTooLargeError"
    assert caplog.text.count(f"{topic} refuses results (MessageSizeTooLargeError)") == 1
    await allow(10_000)
    await sending
    assert outbox.refusal == ""
    await outbox.stop()


async def test_a_connection_that_is_not_used_is_closed(kafka, topic, monkeypatch):
    """The next record opens another: a balancer may have dropped the old one, and would lose the record."""
    monkeypatch.setattr(security, "IDLE_MS", 300)
    log = Log(kafka)
    first = await log.send(topic, "k", b"1")
    connections = log._current.client._conns
    await until(lambda: not any(connection.connected() for connection in connections.values()))
    assert await log.send(topic, "k", b"2") == first + 1
    await log.stop()
