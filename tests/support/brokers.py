"""A real Kafka for a test session: a given one, else a container, else the embedded one."""

import asyncio
import functools
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from support.waiting import WAIT_SECONDS_MAX, one_at_a_time

from tidemill.configuration.security import Cluster
from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import ensure_topics, set_acls
from tidemill.local import embedded as embedded_kafka
from tidemill.local import parent_death
from tidemill.local.embedded.broker import Broker, BrokerError
from tidemill.schemas.log import acls
from tidemill.storage.atomic_file import write_private

ROOT = Path(__file__).resolve().parents[2]
GIVEN = "TIDEMILL_TEST_KAFKA"
DOCKER_SECONDS_MAX = 2
AOT_SECONDS_MAX = 6
START_CACHE_SECONDS_MAX = 120
POLL_SECONDS = 0.05
STARTS_MAX = 3
PORT_TAKEN = "java.net.BindException: Address already in use"
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
"""Settings of a broker without passwords and access lists."""


class StartedBroker(Broker):
    """The embedded broker with a process of its own, which `tidemill up` leaves to its supervisor."""

    process: "subprocess.Popen[bytes] | None" = None

    @property
    def pid(self) -> int | None:
        """The running process, if any."""
        return self.process.pid if self.process and self.process.poll() is None else None

    async def start(self) -> str:
        """Start it and wait until it answers; call this from a thread that lives as long as the broker.

        A port is free when it is chosen, and any program may take it in the seconds until Kafka listens. The
        broker then starts again, with other ports.

        Returns:
            `host:port` for clients.

        Raises:
            BrokerError: It cannot be prepared, died, or did not answer within `WAIT_SECONDS_MAX`.
        """
        for _ in range(STARTS_MAX - 1):
            try:
                return await self._start()
            except BrokerError:
                logs = self.output, self._logs / "kafka.log"
                if not any(PORT_TAKEN in log.read_text("utf-8", errors="replace") for log in logs if log.exists()):
                    raise
        return await self._start()

    async def _start(self) -> str:
        await self.prepare()
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: ASYNC220  it returns at once
                parent_death.command(self.command()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
                cwd=self.folder,
                env=self.environ,
            )
        answered = asyncio.ensure_future(self.answers())
        patience = time.monotonic() + WAIT_SECONDS_MAX
        try:
            while not answered.done() and self.pid and time.monotonic() < patience:
                await asyncio.wait([answered], timeout=POLL_SECONDS)
            if answered.done() and self.pid:
                return self.bootstrap
        finally:
            answered.cancel()
        state = "did not answer" if self.pid else "died"
        self.kill()
        raise BrokerError(f"The embedded Kafka {state}.\n{self.last_words()}")

    def stop(self, *, aot_seconds_max: float = AOT_SECONDS_MAX) -> None:
        """Stop it, or kill it after `WAIT_SECONDS_MAX`; blocks."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(WAIT_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
        else:
            self.keep_aot_cache(aot_seconds_max)
        self.process = None

    def kill(self) -> None:
        """Kill it, like a crash."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class OpenBroker(StartedBroker):
    """The embedded broker without passwords, like a given one or a container."""

    def cluster(self, role: str = "") -> Cluster:
        """Without a password."""
        del role
        return Cluster(servers=self.bootstrap)

    def _write_properties(self, name: str, records: str, *, clean: bool) -> str:
        name = super()._write_properties(name, records, clean=clean)
        self.add(name, OPEN)
        return name

    def add(self, name: str, more: Mapping[str, object]) -> None:
        """Append to a configuration; of two values of one name the last one counts."""
        text = (self.folder / name).read_text("utf-8")
        write_private(self.folder / name, text + "".join(f"{key}={value}\n" for key, value in more.items()))


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
    """Whether a Docker engine listens at its address; one that is out of order fails the session."""
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
    copy_formatted(folder)
    broker = OpenBroker(folder)
    with _own_loop() as loop:
        try:
            yield loop.run_until_complete(broker.start())
        finally:
            broker.stop()


@functools.cache
def make_start_cache() -> None:
    """Create the start cache of this machine's Java, unless it exists, without a time limit.

    Without it each broker would record its run, but fail to create the cache in time when it stops, while other
    tests keep the cores busy. That more than doubles the CPU time of a broker.
    """
    with one_at_a_time("start-cache"), tempfile.TemporaryDirectory() as folder, _own_loop() as loop:
        broker = StartedBroker(Path(folder))
        loop.run_until_complete(broker.prepare_java())
        if not any("record" in option for option in broker._aot_options()):
            return
        try:
            loop.run_until_complete(broker.start())
            loop.run_until_complete(ensure_topics(Settings(), broker.cluster()))
            loop.run_until_complete(set_acls(broker.cluster(), acls.acls()))
        finally:
            broker.stop(aot_seconds_max=START_CACHE_SECONDS_MAX)


def copy_formatted(data: Path) -> None:
    """Give a data folder without a Kafka a formatted one without topics, and passwords that all tests share."""
    if not (data / "kafka").exists():
        shutil.copytree(_formatted(), data / "kafka")


@functools.cache
def _formatted() -> Path:
    """A formatted folder; formatting runs Java, so it is made only once per version of Kafka and settings."""
    made_by = sorted(file for file in Path(embedded_kafka.__path__[0]).glob("*") if file.is_file())
    version = hashlib.sha256(b"".join(map(Path.read_bytes, made_by))).hexdigest()[:12]
    folder = ROOT / ".cache" / f"kafka-{version}"
    folder.parent.mkdir(exist_ok=True)
    with one_at_a_time("format"), tempfile.TemporaryDirectory(dir=folder.parent) as new, _own_loop() as loop:
        if not folder.exists():
            broker = Broker(Path(new))
            loop.run_until_complete(broker.prepare())
            (broker.folder / "ports").unlink()
            broker.folder.rename(folder)
    return folder


@contextmanager
def _own_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A temporary event loop; `asyncio.run` would unset the one that pytest keeps in this thread."""
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        loop.close()
