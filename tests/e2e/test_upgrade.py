"""A rolling upgrade: versions N and N+1 of each stage side by side, and then the old processes go one by one.

The later version is a copy of the package with an additional field in everything that is sent or stored: each
message, each shape inside of one, each state in a table, and the headers of records of lines.
"""

import asyncio
import itertools
import json
import shutil
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient
from openai import OpenAI
from support.backend import Behaviour
from support.fleet import Fleet
from support.quorum import Quorum
from support.stack import KEY
from support.waiting import wait_until

from tidemill.kafka.producer import partition_of
from tidemill.schemas import ids
from tidemill.schemas.log import topics

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("api", "ingest", "processors", "results", "schemas", "src")
STAGES = ("results", "processors", "ingest", "api")
"""In the order of docs/how-to/cluster.md."""
PARTITIONS = 4
"""Each step has a batch in each, so that every process of results and ingest has some."""
LINES = 50
"""Of each batch, and of the stream at each step."""
GROUPS = ("tidemill-results", "tidemill-processors", "tidemill-ingest", "tidemill-intake")
FAILS_EVERY = 9
LOOK_SECONDS_MAX = 5.0
CHAT = "/v1/chat/completions"
STREAM = b"upgraded"
KEPT = "    model_config = ConfigDict(frozen=True)\n"
LATER = (
    ("schemas/log/messages.py", "    v: Literal[1] = 1\n", '    later: str = "message"\n'),
    (
        "schemas/bounds.py",
        '    model_config = ConfigDict(frozen=True, extra="ignore")\n',
        '    later: str = "shape"\n',
    ),
    ("results/state/reducer.py", KEPT, '    later: str = "state"\n'),
    ("ingest/streams/stream.py", KEPT, '    later: str = "stream"\n'),
    ("schemas/log/codec.py", "    attempts: Count = 1\n", "    later: Count = 1\n"),
    ("schemas/log/codec.py", "    headers = [\n", '        ("tidemill-later", b"lines"),\n'),
)
"""A file, a text in it, and the text that the later version inserts after it."""


@pytest.fixture(scope="module")
def later(tmp_path_factory):
    """The later version."""
    folder = tmp_path_factory.mktemp("later")
    for part in FOLDERS:
        shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, more in LATER:
        file = folder / name
        text = file.read_text("utf-8")
        assert old in text, f"{name} has changed"
        file.write_text(text.replace(old, old + more), "utf-8")
    return folder / "src"


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with Quorum(tmp_path_factory.mktemp("broker"), brokers=1) as quorum:
        yield quorum.bootstrap


@pytest.fixture(scope="module")
def fleet(broker, inference, tmp_path_factory):
    environ = {
        "TIDEMILL_KAFKA": broker,
        "TIDEMILL_INTAKE_API_KEYS": "true",
        "TIDEMILL_PARTITIONS": str(PARTITIONS),
        "TIDEMILL_PART_AGE_SECONDS": "1",
    }
    with Fleet(tmp_path_factory.mktemp("fleet"), environ, inference.models("chat", max_in_flight=8)) as fleet:
        yield fleet


def answers(body, nth):
    """Some lines are refused."""
    del nth
    number = int(body["messages"][0]["content"])
    return Behaviour(status=400 if number % FAILS_EVERY == 0 else 200, latency_seconds=0.01)


def lines(step, count=LINES):
    for number in range(step * LINES, step * LINES + count):
        body = {"model": "chat", "messages": [{"role": "user", "content": str(number)}]}
        yield json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": body}).encode()


async def send(broker, value, *headers):
    """Append to the stream; returns the id of its batch, if the record is its first one."""
    async with AIOKafkaProducer(bootstrap_servers=broker) as producer:
        told = [("authorization", f"Bearer {KEY}".encode()), *headers]
        sent = await producer.send_and_wait(topics.INTAKE.name, value, key=STREAM, headers=told)
    return ids.stream_batch_id(sent.partition, sent.offset)


def members(broker):
    """The number of processes of each consumer group, if the group is stable."""
    # Keep a reference: the client answers only while it lives.
    admin = AdminClient({"bootstrap.servers": broker})
    try:
        asked = admin.describe_consumer_groups(list(GROUPS), request_timeout=LOOK_SECONDS_MAX)
        groups = {name: answer.result(2 * LOOK_SECONDS_MAX) for name, answer in asked.items()}
    except KafkaException:
        # The first group of a cluster creates the topic `__consumer_offsets`.
        return {}
    return {name: len(group.members) for name, group in groups.items() if group.state is ConsumerGroupState.STABLE}


def key_of(step, partition):
    """An idempotency key whose batch is in that partition."""
    keys = (f"{step}-{number}" for number in itertools.count())
    return next(key for key in keys if partition_of(ids.derived_batch_id("default", key), PARTITIONS) == partition)


class Work:
    """Batches by REST through each api process, and one stream that gets lines at every step."""

    def __init__(self, fleet, broker):
        self._fleet = fleet
        self._broker = broker
        self._step = 0
        self.stream = None

    def clients(self):
        """An SDK for each running api process."""
        members = [member for member in self._fleet.members if member.stage == "api" and member.wanted]
        return [OpenAI(base_url=self._fleet.url(member), api_key=KEY, max_retries=10) for member in members]

    def wait(self, condition, what):
        def looked():
            self._fleet.tend()
            return condition()

        try:
            return wait_until(looked, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._fleet.tails()}") from error

    def step(self, *headers):
        """Run some lines through all processes, and check that each is in its file once."""
        two = dict.fromkeys(GROUPS, 2)
        self.wait(lambda: members(self._broker) == two, "two processes in each group")
        value = b"\n".join(lines(self._step))
        sent = asyncio.run(send(self._broker, value, *headers))
        self.stream = self.stream or sent
        self._step += 1
        clients = self.clients()
        made = []
        for partition in range(PARTITIONS):
            client, key = clients[partition % len(clients)], key_of(self._step, partition)
            file = client.files.create(file=("in.jsonl", value), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint=CHAT, completion_window="24h",
                extra_headers={"idempotency-key": key},
            )  # fmt: skip
            assert batch.id == ids.derived_batch_id("default", key)
            made.append(batch.id)
        for batch_id in made:
            self.check(clients[-1], self.ended(clients[-1], batch_id), range((self._step - 1) * LINES, self.total))
        self.wait(lambda: self.shown(clients[0], self.stream) == self.total, "the stream's lines so far")

    @property
    def total(self):
        return self._step * LINES

    def shown(self, client, batch_id):
        counts = {batch.id: batch.request_counts for batch in client.batches.list(limit=100)}.get(batch_id)
        return counts and counts.completed + counts.failed

    def ended(self, client, batch_id):
        self.wait(lambda: client.batches.retrieve(batch_id).status == "completed", f"the end of {batch_id}")
        return client.batches.retrieve(batch_id)

    def check(self, client, batch, numbers):
        output, errors = (
            [int(json.loads(line)["custom_id"].removeprefix("line-")) for line in content.text.splitlines()]
            for content in map(client.files.content, (batch.output_file_id, batch.error_file_id))
        )
        assert output == [number for number in numbers if number % FAILS_EVERY]
        assert errors == [number for number in numbers if number % FAILS_EVERY == 0]
        receipt = batch.tidemill["receipt"]
        assert (receipt["lines"], receipt["missing"], receipt["double"]) == (len(numbers), 0, 0)


async def versions(broker, topic):
    """Which versions have written to a topic: records with and without the additional field."""
    consumer = AIOKafkaConsumer(bootstrap_servers=broker)
    await consumer.start()
    found = set()
    try:
        await consumer._client.set_topics([topic])
        parts = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        ends = await consumer.end_offsets(parts)
        consumer.assign(parts)
        await consumer.seek_to_beginning()
        while any([await consumer.position(part) < ends[part] for part in parts]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found |= {
                    b'"later"' in (record.value or b"") or "tidemill-later" in dict(record.headers)
                    for record in records
                }
    finally:
        await consumer.stop()
    return found


def test_versions_side_by_side(fleet, broker, later, backend):
    """One process of each stage per version; the older ones go one by one; no line is lost, double or repeated."""
    backend.reset(answers)
    older = {stage: fleet.start(stage) for stage in STAGES}
    for stage in STAGES:
        fleet.start(stage, package=later)
    work = Work(fleet, broker)
    work.step()
    for stage in STAGES:
        fleet.start(stage, package=later)
        assert fleet.stop(older[stage]) == 0, fleet.tails()
        work.step()
    asyncio.run(send(broker, b"", ("tidemill-end", b"true")))
    client = work.clients()[0]
    work.check(client, work.ended(client, work.stream), range(work.total))
    assert backend.calls == work.total * (PARTITIONS + 1)
    assert fleet.restarts == 0, fleet.tails()
    for topic in (topics.COMMANDS, topics.OUTCOMES, topics.BATCHES, topics.STATES, topics.express("chat")):
        assert asyncio.run(versions(broker, topic.name)) == {True, False}, topic.name
