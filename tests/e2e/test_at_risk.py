"""A batch shows that the log will drop its records before it ends."""

import json
import urllib.request

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from openai import OpenAI
from support.backend import Behaviour
from support.batches import create, one_line
from support.stack import KEY, Stack
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill.schemas.log import topics

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]


@pytest.fixture
def forgetful(tmp_path, inference):
    """A separate installation, since the test changes its topics."""
    with Stack(tmp_path / "data", inference.models("chat")) as stack:
        yield stack


async def test_a_shortened_topic_shows_on_the_batch(forgetful, backend):
    """In the API, in the metrics and in the log; the stages stay ready."""
    backend.reset(lambda *_: Behaviour(latency_seconds=300))
    client = OpenAI(base_url=forgetful.api, api_key=KEY)
    made = client.batches.retrieve(create(client, one_line()))
    await until(lambda: client.batches.retrieve(made.id).status == "in_progress", "its start")
    admin = AIOKafkaAdminClient(**forgetful.clients())
    await admin.start()
    shorter = {"retention.ms": "20000"}
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topics.COMMANDS.name, configs=shorter)])
    await admin.close()
    await until(
        lambda: client.batches.retrieve(made.id).tidemill["at_risk"] == made.created_at + 20,
        "the batch in danger",
    )
    health = json.loads((forgetful.data / "run.json").read_text())["health"]

    def told(path):
        with urllib.request.urlopen(f"{health['results']}{path}", timeout=WAIT_SECONDS_MAX) as answer:
            return answer.read().decode()

    for metric in (
        'tidemill_batches_at_risk{status="in_progress"} 1.0',
        'tidemill_kafka_consumer_lag_seconds{consumer="tidemill-results"}',
    ):
        await until(lambda metric=metric: metric in told("/metrics"), metric)
    assert "ok" in told("/readyz")
    log = forgetful.data / "logs" / "processors.log"
    await until(lambda: "the log keeps its records for" in log.read_text(), "a warning")
