"""Access on a machine with other users: files, processes, ports, and the broker's access lists."""

import asyncio
import json
import logging
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from support import stranger
from support.process_memory import held
from support.stack import KEY
from support.waiting import WAIT_SECONDS_MAX

from tidemill.configuration import signing_keys
from tidemill.configuration.security import Cluster, client_options
from tidemill.configuration.settings import Settings
from tidemill.kafka.admin import TopicError, ensure_model_topics, ensure_topics, set_acls
from tidemill.kafka.log_space import usable_bytes
from tidemill.local.embedded import jars
from tidemill.local.fork_server import STAGES
from tidemill.runtime import run_file
from tidemill.schemas.log import acls, topics

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

TOPICS = (*topics.TOPICS, topics.requests("chat"), topics.express("embed"))
NAMES = [row.name for row in TOPICS]
WAIT_MS = 10_000
CRC_AT = 17
"""Offset of the checksum in a batch of records."""


@pytest.fixture(autouse=True)
def _quiet():
    """Clients log each refusal, as expected."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("aiokafka").setLevel(logging.NOTSET)


def spoilt():
    """A batch of records with a wrong checksum: a user with the right to write gets that error."""
    made = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=1_000,
    )  # fmt: skip
    made.append(0, timestamp=0, key=b"k", value=b"v", headers=[])
    batch = made.build()
    batch[CRC_AT] ^= 0xFF
    return bytes(batch)


@asynccontextmanager
async def client(where):
    """A connected client, and the number of the only broker."""
    found = AIOKafkaClient(**client_options(where))
    try:
        await found.bootstrap()
        (broker,) = found.cluster.brokers()
        assert await found.ready(broker.nodeId)
        yield found, broker.nodeId
    finally:
        await found.close()


async def refused(where):
    """The topics that a user may not read, and those that it may not write to, as the broker answers."""
    refusal = TopicAuthorizationFailedError.errno
    async with client(where) as (asking, node):
        fetch = FetchRequest(0, 0, 1_000, 0, [(name, [(0, 0, 100)]) for name in NAMES], "")
        fetched = (await asking.send(node, fetch)).topics
        produce = ProduceRequest(None, -1, WAIT_MS, [(name, [(0, spoilt())]) for name in NAMES])
        produced = (await asking.send(node, produce)).topics
    codes = [{name: parts[0][1] for name, parts in answers} for answers in (fetched, produced)]
    assert [set(found) for found in codes] == [set(NAMES)] * 2
    assert all(code != 0 for code in codes[1].values()), "or something was written"
    return [{name for name, code in found.items() if code == refusal} for found in codes]


@pytest.mark.parametrize("role", acls.ROLES)
async def test_a_role_reads_and_writes_the_topics_of_its_lists(stack, role):
    """Read and write each topic as each role; the broker refuses every topic outside of the role's lists."""
    reads, writes = await refused(stack.cluster(role))
    assert reads == {row.name for row in TOPICS if role not in row.read_by}
    assert writes == {row.name for row in TOPICS if role not in row.written_by}


@pytest.mark.parametrize("role", acls.ROLES)
async def test_a_role_administers_nothing(stack, role):
    """A role cannot create, change or delete topics or access lists, nor join another stage's consumer group."""
    where = stack.cluster(role)
    admin = AIOKafkaAdminClient(**client_options(where))
    await admin.start()
    try:
        made = await admin.create_topics([NewTopic("tidemill.own", 1, 1)])
        ((_, code, _),) = made.topic_errors
        assert for_code(code) is TopicAuthorizationFailedError
        deleted = await admin.delete_topics([topics.KEYS.name])
        assert for_code(deleted.topic_error_codes[0][1]) is TopicAuthorizationFailedError
        change = ConfigResource(ConfigResourceType.TOPIC, topics.KEYS.name, configs={"retention.ms": "1"})
        (altered,) = await admin.alter_configs([change])
        assert for_code(altered.resources[0][0]) is TopicAuthorizationFailedError
        for stage, groups in acls.GROUPS.items():
            if stage != role:
                with pytest.raises(GroupAuthorizationFailedError):
                    await admin.find_coordinator(groups[0])
    finally:
        await admin.close()
    with pytest.raises(TopicError, match=r"access lists of .* cannot be set"):
        await set_acls(where, acls.acls())


@pytest.mark.parametrize("role", acls.STAGES)
async def test_ingest_alone_creates_the_topics_of_models(stack, role):
    """Another stage that needs one reports the remedy."""
    await ensure_topics(Settings(), stack.cluster(role), role=role)
    if role == "ingest":
        await ensure_model_topics(Settings(), stack.cluster(role), "fresh")
        return
    with pytest.raises(TopicError, match=r"tidemill\.requests\.not-yet.*`tidemill acls --apply`"):
        await ensure_model_topics(Settings(), stack.cluster(role), "not-yet")


@pytest.mark.parametrize("role", ["api", "ingest", "processors"])
async def test_a_stage_that_keeps_a_reserve_sees_the_disk(stack, role):
    """Without the right to request the free space, it would keep no reserve."""
    assert await usable_bytes(stack.cluster(role))


def test_the_command_sets_topics_and_lists(stack):
    """With the credentials of an administrator; the broker refuses other users."""
    for role, code, words in ((acls.ADMIN, 0, "All topics exist, and"), ("api", 2, "Topics cannot be created")):
        done = subprocess.run(
            [sys.executable, "-m", "tidemill", "acls", "--apply"],
            env={**stack.environ_of_all, **stack.way_in(role)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, words in done.stdout + done.stderr) == (code, True), done.stderr


async def test_the_broker_refuses_clients_without_a_password(stack):
    """At the clients' listener and at the controller's, and with another role's password."""
    ports = json.loads((stack.data / "kafka" / "ports").read_text())
    fetch = FetchRequest(0, 0, 1_000, 0, [(topics.KEYS.name, [(0, 0, 100)])], "")
    produce = ProduceRequest(None, -1, WAIT_MS, [(topics.KEYS.name, [(0, spoilt())])])
    for port in ports.values():
        with pytest.raises((KafkaError, OSError)):
            await asyncio.wait_for(
                AIOKafkaClient(bootstrap_servers=f"127.0.0.1:{port}").bootstrap(), WAIT_SECONDS_MAX
            )
        for request in (fetch, produce):
            plain = await create_conn("127.0.0.1", port, request_timeout_ms=5_000)
            with pytest.raises((KafkaError, OSError)):
                await asyncio.wait_for(plain.send(request), WAIT_SECONDS_MAX)
            plain.close()
    wrong = run_file.security(stack.data / "kafka" / "users", "api").model_copy(
        update={"username": "tidemill-admin"}
    )
    with pytest.raises(KafkaError):
        async with client(Cluster(servers=stack.kafka, security=wrong)):
            pass


def secrets(stack):
    """All passwords and keys of the installation."""
    users = stack.data / "kafka" / "users"
    signing = (stack.data / signing_keys.KEPT).read_text().strip()
    return {KEY, signing, *(file.read_text() for file in users.glob("tidemill-*"))}


def processes(stack):
    """All processes of the installation."""
    supervisor = psutil.Process(stack.supervisor)
    return [supervisor, *supervisor.children(recursive=True)]


def test_another_user_reaches_no_file(stack):
    """Another user can read and write no file in the data folder, and write no file that the processes use."""
    control = stack.data.parent / "open to all"
    control.touch()
    control.chmod(0o666)
    assert stranger.reach([control]) == {str(control): ["read", "write"]}, "or the rest would prove nothing"
    own = [stack.data, *stack.data.rglob("*")]
    assert len(own) > len(NAMES)
    assert stranger.reach(own) == {}
    used = {Path(file.path) for process in processes(stack) for file in process.open_files()}
    used |= {Path(part.path) for process in processes(stack) for part in process.memory_maps()}
    cache = jars.cache_folder()
    used |= {cache, *cache.rglob("*")}
    reached = stranger.reach(path for path in used if path.is_absolute() and path.exists())
    assert {path for path, ways in reached.items() if ways != ["read"]} == set()


def test_another_user_sees_no_secret_of_a_process(stack):
    """The environment is closed, and command lines, which everybody sees, have none."""
    pids = [process.pid for process in processes(stack)]
    assert stranger.read(Path(f"/proc/{pid}/environ") for pid in pids) == {}
    lines = stranger.read(Path(f"/proc/{pid}/cmdline") for pid in pids)
    assert len(lines) == len(pids)
    assert not [secret for secret in secrets(stack) for line in lines.values() if secret in line]


def test_a_process_has_its_own_password_alone(stack):
    """In memory, by which the one that they were forked from has none."""
    passwords = {file.name: file.read_text().strip() for file in (stack.data / "kafka" / "users").iterdir()}
    expected = {pid: {passwords[acls.user(stage)]} for stage in STAGES for pid in stack.pids(stage)}
    server = psutil.Process(next(iter(expected))).parent()
    expected[server.pid] = set()
    assert {pid: held(pid, passwords.values()) for pid in expected} == expected


def test_no_port_reveals_a_secret(stack):
    """Health ports and the API reveal no secret to a client without a key."""
    told = json.loads((stack.data / "run.json").read_text())
    for address in (*told["health"].values(), told["api"].removesuffix("/v1")):
        for path in ("/", "/livez", "/readyz", "/metrics", "/v1/models", "/v1/batches", "/v1/files"):
            try:
                with urllib.request.urlopen(address + path, timeout=WAIT_SECONDS_MAX) as answer:
                    body = answer.read().decode()
            except urllib.error.HTTPError as error:
                body = error.read().decode()
            assert not [secret for secret in secrets(stack) if secret in body], address + path
