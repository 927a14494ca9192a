"""Configuration of a one-node Kafka in KRaft mode.

Kafka runs in the data folder, and all paths in the configuration are relative to it: Java properties, lists with
commas, XML and patterns of log names each have special characters, which the name of a folder may contain.
"""

import json
import random
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from tidemill.local.embedded import users
from tidemill.schemas import UNREADABLE
from tidemill.schemas.log import acls

LOOPBACK = "127.0.0.1"
CLIENTS = "CLIENTS"
"""Name of the listener for clients."""
PORT_LOWEST = 10_000
PORT_TRIES_MAX = 200
SESSION_MS = 9_000
SESSION_MS_AFTER_CRASH = 1_500
HEARTBEATS_A_SESSION = 4
RECORD_BYTES_MAX = 2 * 1024 * 1024
LOG_FILE_BYTES_MAX = 8 * 1024 * 1024


class PortError(Exception):
    """No free port was found."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Ports of the node on the loopback address: for clients, and for its own controller."""

    clients: int
    controller: int


def properties(*, ports: Ports, logs: str, clean: bool, password: str) -> str:
    """The text of `server.properties`, with the folder of the records relative to that of Kafka.

    Both listeners require a password. A user may do what its ACLs allow; the administrator, which the node itself
    also logs in as, may do everything. After a stop that was not clean the controller keeps the session of the
    dead broker, and the new broker waits for its end, so the session is short then.
    """
    session = SESSION_MS if clean else SESSION_MS_AFTER_CRASH
    clients = f"{CLIENTS}://{LOOPBACK}:{ports.clients}"
    admin = acls.user(acls.ADMIN)
    jaas_key = f"{users.MECHANISM.lower()}.sasl.jaas.config"
    settings: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{LOOPBACK}:{ports.controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"{clients},CONTROLLER://{LOOPBACK}:{ports.controller}",
        "advertised.listeners": clients,
        "listener.security.protocol.map": f"{CLIENTS}:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT",
        "inter.broker.listener.name": CLIENTS,
        "sasl.enabled.mechanisms": users.MECHANISM,
        "sasl.mechanism.inter.broker.protocol": users.MECHANISM,
        "sasl.mechanism.controller.protocol": users.MECHANISM,
        f"listener.name.{CLIENTS.lower()}.{jaas_key}": users.jaas(admin, password),
        f"listener.name.controller.{jaas_key}": users.jaas(admin, password),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "false",
        "super.users": f"User:{admin}",
        "log.dirs": logs,
        "broker.session.timeout.ms": session,
        "broker.heartbeat.interval.ms": session // HEARTBEATS_A_SESSION,
        # By default an idle controller writes a record every half second.
        "metadata.max.idle.interval.ms": 0,
        "auto.create.topics.enable": "false",
        "message.max.bytes": RECORD_BYTES_MAX,
        # One node keeps one replica, and internal topics need one partition.
        "default.replication.factor": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        # All members of a group run here: none is slow to join, and a dead one is noticed soon.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1_000,
        # Sized for a small heap and two cores.
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def log4j2(file: str) -> str:
    """The text of `log4j2.xml`: a file of bounded size (a relative path) and its predecessor."""
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN" shutdownHook="disable">
  <Appenders>
    <RollingFile name="file" fileName="{file}" filePattern="{file}.%i">
      <PatternLayout pattern="%d{{yyyy-MM-dd'T'HH:mm:ss.SSS}} %p %c{{1}}: %m%n"/>
      <SizeBasedTriggeringPolicy size="{LOG_FILE_BYTES_MAX}"/>
      <DefaultRolloverStrategy max="1"/>
    </RollingFile>
  </Appenders>
  <Loggers>
    <Root level="WARN"><AppenderRef ref="file"/></Root>
    <Logger name="kafka.server" level="INFO"/>
    <Logger name="org.apache.kafka.server" level="INFO"/>
  </Loggers>
</Configuration>
"""


def keep_ports(file: Path) -> Ports:
    """The ports saved in a file while they are free, else new ones, which are saved.

    Clients that wait for the broker to return use its old address.

    Raises:
        PortError: No port is free.
    """
    try:
        kept = Ports(**json.loads(file.read_bytes()))
        if is_free(kept.clients) and is_free(kept.controller):
            return kept
    except (OSError, TypeError, *UNREADABLE):
        pass
    clients = free_port()
    ports = Ports(clients=clients, controller=free_port(other_than=clients))
    file.write_text(json.dumps(asdict(ports)))
    return ports


def free_port(*, other_than: int = 0) -> int:
    """A free port outside the range of outgoing connections.

    A client that retries while the broker is down could otherwise take the port of the broker.

    Raises:
        PortError: No free port was found in `PORT_TRIES_MAX` attempts.
    """
    for _ in range(PORT_TRIES_MAX):
        port = random.randrange(PORT_LOWEST, _ephemeral_lowest())  # noqa: S311  no secret
        if port != other_than and is_free(port):
            return port
    raise PortError(f"no free port was found on {LOOPBACK} in {PORT_TRIES_MAX} attempts")


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        # Servers set this, too, so that remains of closed connections do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen()
        except OSError:
            return False
    return True


def _ephemeral_lowest() -> int:
    """The lowest port of outgoing connections; the usual one if the kernel does not report it."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    except (OSError, ValueError, IndexError):
        lowest = 32_768
    return max(lowest, 2 * PORT_LOWEST)
