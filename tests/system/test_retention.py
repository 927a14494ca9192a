"""How long a real broker keeps what batches need."""

import secrets

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from support.waiting import until

from tidemill.configuration.settings import Settings
from tidemill.kafka import admin
from tidemill.schemas.log import topics

pytestmark = pytest.mark.kafka

WEEK_SECONDS = 7 * 86_400.0


async def test_the_shortest_counts(kafka):
    """A topic with a shortened retention counts, and a missing one is left out."""
    model = f"m-{secrets.token_hex(4)}"
    await admin.ensure_topics(Settings(kafka=kafka), kafka)
    await admin.ensure_model_topics(Settings(), kafka, model)
    assert await admin.retention(kafka, [model]) == (WEEK_SECONDS, WEEK_SECONDS, ())
    name = topics.requests(model).name
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    try:
        shorter = {"retention.ms": "3600000", "retention.bytes": "1000000000"}
        await client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=shorter)])
    finally:
        await client.close()

    async def is_shorter():
        return await admin.retention(kafka, [model]) == (3600.0, WEEK_SECONDS, (name,))

    await until(is_shorter, "the shorter time and the size")
    assert name in await admin.topic_configs(kafka, [name])
    assert not await admin.topic_configs(kafka, ["tidemill.requests.none"])


async def test_a_broker_that_is_away(monkeypatch):
    """It is an `OSError`, which the guard takes as no news."""
    monkeypatch.setattr(admin, "SECONDS_MAX", 0.5)
    with pytest.raises(OSError, match="cannot be read"):
        await admin.retention("127.0.0.1:1", ["m"])
