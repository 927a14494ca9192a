"""A real Kafka for a test session: what is given, else a container, else the embedded one."""

import asyncio
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tidemill.configuration.security import Cluster
from tidemill.local.embedded import users
from tidemill.local.embedded.broker import Broker

GIVEN = "TIDEMILL_TEST_KAFKA"
DOCKER_SECONDS_MAX = 2
CONTAINER_SETTINGS = {
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    "KAFKA_MESSAGE_MAX_BYTES": str(2 * 1024 * 1024),
    "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
}


OPEN = {
    "listener.security.protocol.map": "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "authorizer.class.name": "",
}
"""What makes the embedded broker ask for nothing."""


class OpenBroker(Broker):
    """The embedded broker for tests that are not about access: it is open, as a given one or a container is."""

    def cluster(self, role: str = "") -> Cluster:
        """Without a password."""
        del role
        return Cluster(servers=self.bootstrap)

    def _write_properties(self, name: str, records: str, *, clean: bool) -> str:
        name = super()._write_properties(name, records, clean=clean)
        self.add(name, OPEN)
        return name

    def add(self, name: str, more: Mapping[str, object]) -> None:
        """Add to a configuration: of two values of one name the last one counts."""
        text = (self.folder / name).read_text("utf-8")
        users.write(self.folder / name, text + "".join(f"{key}={value}\n" for key, value in more.items()))


@contextmanager
def any_kafka(folder: Path) -> Iterator[str]:
    """`host:port` of a broker that lives as long as the block; the embedded one uses the folder."""
    if given := os.environ.get(GIVEN):
        yield given
    elif docker_answers():
        with container() as bootstrap:
            yield bootstrap
    else:
        with embedded(folder) as bootstrap:
            yield bootstrap


def docker_answers() -> bool:
    """Whether somebody listens where a Docker engine would; an engine out of order fails the session."""
    where = urlsplit(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
    is_path = where.scheme == "unix"
    with socket.socket(socket.AF_UNIX if is_path else socket.AF_INET) as probe:
        probe.settimeout(DOCKER_SECONDS_MAX)
        try:
            probe.connect(where.path if is_path else (where.hostname, where.port))
        except (OSError, TypeError):
            return False
    return True


@contextmanager
def container() -> Iterator[str]:
    """Kafka in a container of its own."""
    from testcontainers.community.kafka import KafkaContainer  # noqa: PLC0415  it is slow to import

    kafka = KafkaContainer().with_kraft()
    for name, value in CONTAINER_SETTINGS.items():
        kafka = kafka.with_env(name, value)
    with kafka:
        yield kafka.get_bootstrap_server()


@contextmanager
def embedded(folder: Path) -> Iterator[str]:
    """Kafka as `tidemill up` starts it, but open."""
    broker = OpenBroker(folder)
    # `asyncio.run` would leave this thread without the loop that belongs to pytest.
    loop = asyncio.new_event_loop()
    try:
        yield loop.run_until_complete(broker.start())
    finally:
        broker.stop()
        loop.close()
