"""Getting into a Kafka that asks for TLS and passwords, through every door that the stages use."""

import asyncio
import logging
from pathlib import Path

import pytest
import trustme
from aiokafka.errors import KafkaError
from support.secured import MUTUAL, PASSWORD, USER, secured
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill.configuration.security import Cluster
from tidemill.configuration.settings import SettingsError, load
from tidemill.faust.stage_app import create_app, raw_topic
from tidemill.kafka.admin import TopicError, ensure_topics
from tidemill.kafka.connection import check_broker
from tidemill.kafka.follower import Follower
from tidemill.kafka.history import reading
from tidemill.kafka.producer import Log
from tidemill.processors.kafka import KafkaOutbox
from tidemill.schemas.log import topics

pytestmark = pytest.mark.kafka

WAYS = [
    ("SSL", "PLAIN"),
    ("SASL_PLAINTEXT", "PLAIN"),
    ("SASL_PLAINTEXT", "SCRAM-SHA-256"),
    ("SASL_SSL", "SCRAM-SHA-512"),
    (MUTUAL, "PLAIN"),
]


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with secured(tmp_path_factory.mktemp("secured")) as node:
        yield node


@pytest.fixture
def settings(broker, monkeypatch):
    """Makes the settings of a way in, as an operator would set them."""
    monkeypatch.setenv("THE_PASSWORD", PASSWORD)

    def make(protocol, mechanism):
        monkeypatch.setenv("TIDEMILL_KAFKA", broker.address(protocol))
        if protocol == MUTUAL:
            protocol = "SSL"
            monkeypatch.setenv("TIDEMILL_KAFKA_SECURITY__CERT_FILE", str(broker.client_file))
        monkeypatch.setenv("TIDEMILL_KAFKA_SECURITY__PROTOCOL", protocol)
        if protocol.startswith("SASL"):
            monkeypatch.setenv("TIDEMILL_KAFKA_SECURITY__SASL_MECHANISM", mechanism)
            monkeypatch.setenv("TIDEMILL_KAFKA_SECURITY__USERNAME", USER)
            monkeypatch.setenv("TIDEMILL_KAFKA_SECURITY__PASSWORD_ENV", "THE_PASSWORD")
        if protocol.endswith("SSL"):
            monkeypatch.setenv("TIDEMILL_KAFKA_SECURITY__CA_FILE", str(broker.ca_file))
        return load()

    return make


@pytest.fixture(autouse=True)
async def connections_end():
    """Wait until brokers have closed their side: asyncio keeps a connection with TLS open until then."""
    yield
    # A transport that is closed may be held until the next collection.
    transports = asyncio.get_running_loop()._transports
    await until(lambda: all(one._sock is None for one in transports.values()), "the end of all connections")


@pytest.fixture
def quiet():
    """What clients say about being refused is expected."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("aiokafka").setLevel(logging.NOTSET)


@pytest.mark.parametrize(("protocol", "mechanism"), WAYS)
async def test_every_door_gets_in(protocol, mechanism, settings, tmp_path):
    """Topics are made, records sent, followed, read back, and given to a Faust app."""
    found = settings(protocol, mechanism)
    cluster = found.cluster
    assert await ensure_topics(found, cluster) == found.partitions
    await check_broker(cluster)
    log, outbox, seen = Log(cluster), KafkaOutbox(cluster), []
    follower = Follower(cluster, topics.BATCHES.name, lambda key, *_: seen.append(key))
    app = create_app(f"secured-{protocol}-{mechanism}", found, kafka=cluster, state=tmp_path / "state")
    given = []

    async def take(events):
        async for event in events.noack().events():
            given.append(event.message.key)
            event.ack()

    app.agent(raw_topic(app, topics.COMMANDS.name))(take)
    key = f"{protocol}-{mechanism}"
    await follower.start()
    await outbox.start()
    await app.start()
    try:
        await log.send(topics.BATCHES.name, key, b"{}")
        await log.send(topics.COMMANDS.name, key, b"{}")
        await outbox.send(key, b"{}", [])
        async with reading(cluster) as reader:
            assert len(reader.partitions(topics.OUTCOMES.name)) == found.partitions
        await until(lambda: key in seen, "the record at the follower")
        await until(lambda: key.encode() in given, "the record at the agent")
    finally:
        await app.stop()
        await follower.stop()
        await outbox.stop()
        await log.stop()


@pytest.mark.usefixtures("quiet")
async def test_a_wrong_password_is_refused(settings, monkeypatch):
    """The error does not show the password."""
    found = settings("SASL_SSL", "SCRAM-SHA-512")
    monkeypatch.setenv("THE_PASSWORD", "not-the-password")
    with pytest.raises(TopicError) as refusal:
        await ensure_topics(found, found.cluster)
    assert "not-the-password" not in f"{refusal.value!r}{found!r}"


@pytest.mark.usefixtures("quiet")
async def test_a_client_without_a_certificate_is_refused(settings, broker):
    """Where the broker asks for one; another broker's is none that this one knows."""
    security = settings(MUTUAL, "PLAIN").kafka_security
    stranger = trustme.CA().issue_cert("tidemill").private_key_and_cert_chain_pem
    with stranger.tempfile() as file:
        for other in (None, Path(file)):
            bare = security.model_copy(update={"cert_file": other})
            with pytest.raises((KafkaError, OSError)):
                await asyncio.wait_for(
                    check_broker(Cluster(servers=broker.address(MUTUAL), security=bare)), WAIT_SECONDS_MAX
                )
    await check_broker(Cluster(servers=broker.address(MUTUAL), security=security))


@pytest.mark.usefixtures("quiet")
async def test_a_stranger_is_not_trusted(settings, broker):
    """A certificate that the system does not know is refused where no `ca_file` is named."""
    security = settings("SSL", "PLAIN").kafka_security.model_copy(update={"ca_file": None})
    with pytest.raises((KafkaError, OSError)):
        await asyncio.wait_for(
            check_broker(Cluster(servers=broker.address("SSL"), security=security)), WAIT_SECONDS_MAX
        )


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"PROTOCOL": "SASL_SSL"}, "needs a username, and a password_env or a password_file"),
        ({"PROTOCOL": "SASL_SSL", "USERNAME": "u", "PASSWORD_FILE": "/nowhere/word"}, "word: no such file"),
        (
            {"PROTOCOL": "SASL_SSL", "USERNAME": "u", "PASSWORD_FILE": "/dev/null", "PASSWORD_ENV": "HOME"},
            "are both set",
        ),
        ({"PROTOCOL": "SASL_SSL", "USERNAME": "u", "PASSWORD_ENV": "NOT_SET"}, "NOT_SET is not set"),
        ({"PROTOCOL": "SSL", "CA_FILE": "/nowhere/ca.pem"}, "ca.pem: no such file"),
        ({"PROTOCOL": "SSL", "KEY_FILE": "/nowhere/key.pem"}, "not the cert_file"),
        ({"PROTOCOL": "TLS"}, "kafka_security.protocol"),
    ],
)
def test_impossible_settings_fail_at_the_start(environ, told, monkeypatch):
    """Before anything is connected."""
    monkeypatch.setenv("TIDEMILL_KAFKA", "127.0.0.1:9")
    for name, value in environ.items():
        monkeypatch.setenv(f"TIDEMILL_KAFKA_SECURITY__{name}", value)
    with pytest.raises(SettingsError, match=told):
        load()


def test_security_without_an_external_kafka_is_refused(monkeypatch):
    """The error names the missing setting."""
    monkeypatch.setenv("TIDEMILL_KAFKA_SECURITY__PROTOCOL", "SSL")
    with pytest.raises(SettingsError, match="set without kafka"):
        load()
