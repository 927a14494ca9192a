"""Setting up the topics, on a real broker."""

from dataclasses import replace

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from support.waiting import until

from tidemill.configuration.settings import Settings
from tidemill.ingest.files.packing import RequestRecord
from tidemill.ingest.kafka import RequestProducer
from tidemill.kafka import admin
from tidemill.kafka.connection import LogUnavailable, cluster_id, topic_identities
from tidemill.kafka.producer import Log
from tidemill.ops import doctor
from tidemill.schemas import ids
from tidemill.schemas.log import topics
from tidemill.schemas.log.codec import RequestHead
from tidemill.sealing.vault import Vault

pytestmark = pytest.mark.kafka

MODELS = {name: {"backends": [{"url": "http://127.0.0.1:9/v1"}]} for name in ("small", "org/large")}


@pytest.fixture
def apart(monkeypatch, request):
    """A table whose names are this test's own, since the broker is everybody's."""

    def own(row):
        return replace(row, name=f"{request.node.name}.{row.name}")

    named = (topics.COMMANDS, topics.OUTCOMES)
    rest = [own(row) for row in topics.TOPICS if row not in named]
    monkeypatch.setattr(topics, "COMMANDS", own(topics.COMMANDS))
    monkeypatch.setattr(topics, "OUTCOMES", own(topics.OUTCOMES))
    monkeypatch.setattr(topics, "TOPICS", (topics.COMMANDS, topics.OUTCOMES, *rest))
    for prefix in ("REQUESTS_PREFIX", "EXPRESS_PREFIX"):
        monkeypatch.setattr(topics, prefix, f"{request.node.name}.{getattr(topics, prefix)}")


@pytest.fixture
async def client(kafka):
    """An administrator's client."""
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    yield client
    await client.close()


async def partitions(client, names):
    """Partitions by topic."""
    return {topic["topic"]: len(topic["partitions"]) for topic in await client.describe_topics(names)}


async def _is(client, name, count):
    return await partitions(client, [name]) == {name: count}


async def _has(kafka, name, wanted):
    return (await admin.topic_configs(kafka, [name], only=wanted))[name] == wanted


@pytest.mark.usefixtures("apart")
async def test_makes_the_table(kafka, client):
    """Every row becomes a topic with its partitions, policy and retention; a second time changes nothing."""
    settings = Settings(models=MODELS, partitions=3)
    for _ in range(2):
        await admin.ensure_topics(settings, kafka)
        await admin.ensure_model_topics(settings, kafka, *MODELS)

    rows = (*topics.TOPICS, *admin.of_models(MODELS))
    expected = {row.name: 3 if row.spread else 1 for row in rows}
    assert await partitions(client, list(expected)) == expected
    answers = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in expected])
    configs = {
        resource[3]: {entry[0]: entry[1] for entry in resource[4]}
        for answer in answers
        for resource in answer.resources
    }
    for row in rows:
        config = configs[row.name]
        assert config["cleanup.policy"] == ("compact" if row.compacted else "delete")
        assert row.compacted or config["retention.ms"] == str(row.retention_ms)
        assert row.compacted or config["retention.bytes"] == "-1"


@pytest.mark.usefixtures("apart")
async def test_a_model_gets_its_topics_when_it_needs_them(kafka, client):
    """No topic of a model is created with the others."""
    settings = Settings(models=MODELS, partitions=2)
    await admin.ensure_topics(settings, kafka)
    names = [row.name for row in admin.of_models(MODELS)]
    assert not {*names} & {topic["topic"] for topic in await client.describe_topics()}
    await admin.ensure_model_topics(settings, kafka, "org/large")
    assert await partitions(client, names[2:]) == dict.fromkeys(names[2:], 2)


@pytest.mark.usefixtures("apart")
async def test_a_first_line_creates_only_missing_topics(kafka):
    """Ingest learns at its start which models have theirs, and connects: its first line waits for neither."""
    settings = Settings(models=MODELS, partitions=2)
    old, new = MODELS
    await admin.ensure_topics(settings, kafka)
    await admin.ensure_model_topics(settings, kafka, old)
    created = []

    async def create(model):
        created.append(model)
        await admin.ensure_model_topics(settings, kafka, model)

    async def records():
        for model in (old, new, old):
            batch_id = ids.new_batch_id()
            head = RequestHead(batch_id=batch_id, project="p", first=0, deadline=0, url="/v1/embeddings")
            yield RequestRecord(model=model, key=f"{batch_id}/0", value=b"{}", head=head)

    log = Log(kafka)
    requests = RequestProducer(kafka, log, partitions=2, ensure_topics=create, vault=Vault(None))
    await requests.start(MODELS)
    assert requests._producer._current is not None
    await requests.publish(records())
    await requests.stop()
    await log.stop()
    assert created == [new]


@pytest.mark.usefixtures("apart")
async def test_partitions_that_differ_are_told(kafka, client):
    """Commands and outcomes with different partitions are an error that names both."""
    await admin.ensure_topics(Settings(partitions=2), kafka)
    await client.create_partitions({topics.OUTCOMES.name: NewPartitions(total_count=5)})
    await until(lambda: _is(client, topics.OUTCOMES.name, 5), "the new partitions")
    with pytest.raises(admin.TopicError, match=r"commands has .* 2 partitions and .*outcomes 5"):
        await admin.ensure_topics(Settings(partitions=2), kafka)


@pytest.mark.usefixtures("apart")
async def test_doctor_judges_topics_as_a_start_does(kafka, client):
    """New ones are right; partitions that end a start, and values that break a stage, are failures."""
    await admin.ensure_topics(Settings(partitions=2), kafka)
    assert [finding.verdict for finding in await doctor._topics(Settings(), kafka, None)] == ["ok"]
    small = {"max.message.bytes": "1000"}
    await client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topics.OUTCOMES.name, configs=small)])
    intake = next(row.name for row in topics.TOPICS if row.name.endswith("intake"))
    await client.create_partitions({intake: NewPartitions(total_count=6)})
    await until(lambda: _is(client, intake, 6), "the new partitions")
    await until(lambda: _has(kafka, topics.OUTCOMES.name, small), "the new value")
    size, partitions = await doctor._topics(Settings(), kafka, None)
    assert (size.what, size.verdict, size.fix) == (topics.OUTCOMES.name, "fail", "set max.message.bytes=2097152")
    assert (partitions.what, partitions.verdict) == ("partitions", "fail")
    assert "intake 6; they must have the same number" in partitions.text
    assert "cannot be added" in partitions.fix


async def test_a_broker_out_of_reach(unused_tcp_port):
    """The error names its address."""
    with pytest.raises(admin.TopicError, match=f"127.0.0.1:{unused_tcp_port}"):
        await admin.ensure_topics(Settings(), f"127.0.0.1:{unused_tcp_port}")


async def test_a_recreated_topic_is_another_topic(kafka, client):
    """Though its name and its cluster are the same; a topic that does not exist has no identity."""
    name = "test_a_recreated_topic"

    async def exists():
        return any(topic["topic"] == name for topic in await client.describe_topics())

    async def is_gone():
        return not await exists()

    found = []
    for _ in range(2):
        await client.create_topics([NewTopic(name, 1, 1)])
        await until(exists)
        found.append((await topic_identities(kafka, [name]))[name])
        assert ids.is_same_topic(found[-1], (await topic_identities(kafka, [name]))[name])
        await client.delete_topics([name])
        await until(is_gone)
    assert not ids.is_same_topic(*found)
    assert found[0].startswith(f"{await cluster_id(kafka)}/")
    with pytest.raises(LogUnavailable, match="UnknownTopic"):
        await topic_identities(kafka, [name])
