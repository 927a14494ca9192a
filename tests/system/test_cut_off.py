"""A results process that loses the coordinator of its group alone: it reaches every leader as before.

The leaders of all partitions are on one broker, the coordinator is on another, and one process is cut off from
that. Its successor takes the batch over and ends it; the first one writes nothing beside it, and what a third
process takes over later is what the second one left.
"""

import hashlib
import json
import random
import time
from itertools import count, pairwise

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from support.catalog import set_up
from support.cuts import BACK, OUT, Network
from support.facts import batch_id, commands, lines
from support.fleet import Fleet
from support.quorum import Quorum
from support.waiting import until

from tidemill.configuration.security import cluster
from tidemill.configuration.settings import Settings
from tidemill.kafka import admin
from tidemill.kafka.freeze_guard import FROZEN
from tidemill.results.app import NAME
from tidemill.schemas.log import codec, topics
from tidemill.schemas.resources.batch import Status

pytestmark = pytest.mark.kafka

LINES = 400
CUT = frozenset({OUT, BACK})
SEED = 5


async def coordinator_of(kafka):
    """The broker that coordinates the group of results; the topic of the offsets is made by the first who asks."""
    client = AIOKafkaAdminClient(bootstrap_servers=kafka.split(","))
    await client.start()

    async def found():
        try:
            return await client.find_coordinator(NAME)
        except KafkaError:
            return None

    try:
        return await until(found, "a coordinator")
    finally:
        await client.close()


async def make_topics(kafka, leader, monkeypatch):
    """All topics, on one broker."""
    new = admin._new

    def placed(row, settings):
        made = new(row, settings)
        return NewTopic(made.name, -1, -1, {0: [leader]}, made.topic_configs)

    monkeypatch.setattr(admin, "_new", placed)
    model = {"backends": [{"url": "http://127.0.0.1:9/v1"}]}
    settings = Settings(partitions=1, replication=1, models={"chat": model})
    await admin.ensure_topics(settings, cluster(kafka))
    await set_up(cluster(kafka), settings)
    await admin.ensure_model_topics(settings, cluster(kafka), "chat")


class Log:
    """The log as the other stages write and read it."""

    def __init__(self, kafka):
        self._kafka = kafka.split(",")

    async def __aenter__(self):
        self._producer = AIOKafkaProducer(bootstrap_servers=self._kafka)
        await self._producer.start()
        return self

    async def __aexit__(self, *_):
        await self._producer.stop()

    async def send(self, number, *events):
        """Append the records of a batch."""
        key = batch_id(number).encode()
        for topic, headers, value in events:
            await self._producer.send_and_wait(topic, value, key=key, headers=list(headers), partition=0)

    async def read(self, topic, decode, key):
        """What was published under a key, in the order of the log."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self._kafka, enable_auto_commit=False)
        place = TopicPartition(topic, 0)
        await consumer.start()
        found = []
        try:
            consumer.assign([place])
            await consumer.seek_to_beginning(place)
            end = (await consumer.end_offsets([place]))[place]
            while await consumer.position(place) < end:
                records = (await consumer.getmany(place, timeout_ms=500)).get(place, ())
                found += [decode(record.value) for record in records if record.key == key.encode()]
        finally:
            await consumer.stop()
        return found

    async def told(self, number):
        """The records of a batch that results published."""
        return await self.read(topics.BATCHES.name, codec.decode_batch, batch_id(number))

    async def owners(self, number):
        """The owners of its partition that published it."""
        return {record.owner for record in await self.told(number)}


@pytest.fixture(scope="module")
def network():
    with Network() as network:
        yield network


@pytest.fixture(scope="module")
def brokers(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quorum")
    with Quorum(folder, brokers=2, network=network, processes=("results",)) as quorum:
        yield quorum


@pytest.fixture
def fleet(brokers, tmp_path):
    environ = {
        "TIDEMILL_KAFKA": brokers.bootstrap,
        "TIDEMILL_REPLICATION": "1",
        "TIDEMILL_PARTITIONS": "1",
        "TIDEMILL_PART_AGE_SECONDS": "0.2",
    }
    with Fleet(tmp_path, environ, {"chat": {"backends": [{"url": "http://127.0.0.1:9/v1"}]}}) as fleet:
        yield fleet


def begun(number):
    """A batch that begins now."""
    (topic, headers, value), accepted = commands(number, LINES)
    created = codec.decode_command(value)
    now = int(time.time())
    batch = created.batch.model_copy(update={"created_at": now, "expires_at": now + 86_400})
    return [(topic, headers, codec.encode(created.model_copy(update={"batch": batch}))), accepted]


class Frozen(Exception):
    """The machine froze a process for so long that it ended itself."""


def check_awake(fleet):
    """Raise `Frozen` if a process of the test has ended for it."""
    if any(member.wanted and member.process.poll() == FROZEN for member in fleet.members):
        raise Frozen


async def wait(fleet, condition, what):
    """Wait; a failure shows the logs of the processes."""

    async def looked():
        check_awake(fleet)
        return await condition()

    try:
        return await until(looked, what)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{fleet.tails()}") from error


async def trickle(fleet, log, number, events, condition, what):  # noqa: PLR0917
    """Have results come, one record after the other, until a condition is true."""

    async def looked():
        if await condition():
            return True
        if events:
            await log.send(number, events.pop())
        return False

    await wait(fleet, looked, what)


async def check(log, folder, number):
    """Each line once, and what was receipted."""
    told = await log.told(number)
    last = max(told, key=lambda record: (record.owner, record.batch.status.is_terminal)).batch
    assert last.status is Status.COMPLETED
    receipt = last.tidemill.receipt
    assert (receipt.lines, receipt.missing, receipt.double) == (LINES, 0, 0)
    found = []
    for part, file_id in ((receipt.output, last.output_file_id), (receipt.errors, last.error_file_id)):
        record = max(await log.read(topics.FILES.name, codec.decode_file, file_id), key=lambda one: one.owner)
        content = (folder / "data" / "store" / record.key).read_bytes()
        assert hashlib.sha256(content).hexdigest() == part.sha256
        found += [json.loads(text)["custom_id"] for text in content.splitlines()]
    assert sorted(found) == sorted(f"id-{index}" for index in range(LINES))
    bills = await log.read(topics.LEDGER.name, codec.decode_ledger, last.id)
    assert {result.completed for bill in bills for result in bill.models} == {receipt.output.lines}


async def test_a_process_that_loses_its_group_alone(brokers, network, fleet, tmp_path, monkeypatch):
    """Its batch goes on by another process, exact, and the next one by a third that takes that over."""
    coordinator = await coordinator_of(brokers.bootstrap)
    leader = next(node.number for node in brokers.nodes if node.number != coordinator)
    await make_topics(brokers.bootstrap, leader, monkeypatch)
    async with Log(brokers.bootstrap) as log:
        for number in count(step=2):
            first = fleet.start("results", environ={"TIDEMILL_KAFKA": brokers.door("results")})
            try:
                second = await taken_over(fleet, log, network, first, f"broker-{coordinator}", number)
                await check(log, tmp_path, number)
                third = await taken_over_again(fleet, log, network, second, number + 1)
                await check(log, tmp_path, number + 1)
                await check(log, tmp_path, number)
                check_awake(fleet)
                assert first.runs, "it comes back into its group"
                assert third.runs
                break
            except Frozen:
                network.heal()
                for member in fleet.members:
                    fleet.kill(member)
                    member.wanted = False


async def taken_over(fleet, log, network, first, coordinator, number):  # noqa: PLR0917
    """The process that ends a batch of the first, which is cut off from its coordinator."""
    events = list(lines(random.Random(SEED), number, LINES))
    await log.send(number, *begun(number))
    await trickle(fleet, log, number, events, lambda: log.owners(number), "the batch to be at work")
    network.set("results", coordinator, cuts=CUT)
    second = fleet.start("results")
    await trickle(fleet, log, number, events, lambda: is_passed_on(log, number), "the second process to take over")
    check_awake(fleet)
    assert first.runs, "it is no zombie that has ended"
    await log.send(number, *events)
    await wait(fleet, lambda: is_over(log, number), "the end of the batch")
    told = [record.owner for record in await log.told(number)]
    assert all(before <= after for before, after in pairwise(told)), told
    return second


async def taken_over_again(fleet, log, network, second, number):
    """The process that ends a batch of the second, which is killed, once the network is whole."""
    events = list(lines(random.Random(SEED + 1), number, LINES))
    await log.send(number, *begun(number))
    await trickle(fleet, log, number, events, lambda: log.owners(number), "the next batch to be at work")
    fleet.kill(second)
    second.wanted = False
    third = fleet.start("results")
    network.heal()
    await trickle(fleet, log, number, events, lambda: is_passed_on(log, number), "another process to take it over")
    await log.send(number, *events)
    await wait(fleet, lambda: is_over(log, number), "the end of the next batch")
    return third


async def is_passed_on(log, number):
    """Whether a batch has had several owners."""
    return len(await log.owners(number)) > 1


async def is_over(log, number):
    """Whether a batch has ended."""
    return any(record.batch.status.is_terminal for record in await log.told(number))
