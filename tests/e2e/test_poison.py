"""Unreadable records stop no partition of any stage, and become dead letters."""

import json

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.producer import message_accumulator
from aiokafka.producer import producer as producer_module
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from openai import OpenAI
from support.stack import KEY
from support.waiting import until

from tidemill.configuration.settings import Settings
from tidemill.kafka import history
from tidemill.kafka.admin import ensure_model_topics
from tidemill.ops import dead_letters
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics

pytestmark = [pytest.mark.e2e, pytest.mark.kafka]

BATCH = ids.new_batch_id().encode()
LINES = (codec.KIND, codec.LINES)
POISON = (
    (topics.COMMANDS, b"{", ()),
    (topics.COMMANDS, None, ()),
    (topics.OUTCOMES, b"\xff", ()),
    (topics.OUTCOMES, b"x\n", (LINES, ("tidemill-batch", b"../../etc"), ("tidemill-marks", b"[[0,2,false]]"))),
    (topics.OUTCOMES, b"x\n", (LINES, ("tidemill-batch", BATCH), ("tidemill-marks", b"[[-1,2,false]]"))),
    (topics.OUTCOMES, b"x\n", (LINES, ("tidemill-batch", BATCH), ("tidemill-marks", b"[[99999999,2,false]]"))),
    (topics.OUTCOMES, b"x\n", (LINES, ("tidemill-batch", BATCH),
                               ("tidemill-marks", b"[[0,2,false,[99999999999,0,0,0]]]"))),
    (topics.OUTCOMES, b"", (LINES, ("tidemill-batch", BATCH), ("tidemill-marks", b"[[0,2,false]]"),
                            ("tidemill-ref", b'{"key":"../x","offset":0,"length":2}'))),
    (topics.requests("chat"), b"{", (("tidemill-batch", b"\xff"),)),
)  # fmt: skip


@pytest.mark.usefixtures("backend")
async def test_every_stage_goes_on(stack):
    """Poison in every partition of each topic, then a batch that has to pass them all."""
    before = stack.ends()
    await ensure_model_topics(Settings(), stack.cluster(), "chat")
    producer = AIOKafkaProducer(**stack.clients())
    await producer.start()
    sent = set()
    for topic, value, headers in POISON:
        for partition in await producer.partitions_for(topic.name):
            record = await producer.send_and_wait(
                topic.name, value, key=b"k", headers=list(headers), partition=partition
            )
            sent.add(f"{topic.name}/{partition}/{record.offset}")
    await producer.stop()
    client = OpenAI(base_url=stack.api, api_key=KEY)
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
    lines = [
        json.dumps({"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        for n in range(100)
    ]
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    await until(lambda: client.batches.retrieve(made.id).status == "completed", "its end")

    async def buried():
        async with history.reading(stack.cluster("operator")) as reader:
            return sent <= (await dead_letters.known(reader)).ids

    await until(buried, "all of them among the dead letters")
    assert stack.ends() == before, "no process ended over it"


class _Raw(str):
    """A header name encoded as raw bytes, which no ordinary client sends."""

    __slots__ = ("raw",)

    def encode(self, *_):
        return self.raw


def raw(name):
    found = _Raw("x")
    found.raw = name
    return found


OURS = ("tidemill-kind", "tidemill-batch", "tidemill-marks", "tidemill-ref", "tidemill-v", "tidemill-first",
        "tidemill-deadline", "tidemill-created", "tidemill-url", "tidemill-project", "authorization")  # fmt: skip
KEYS = (None, b"", b"\xff\xfe", b"k" * 10_000)
HEADERS = (
    (),
    ((raw(b"\xff\xfe"), b"x"),),
    tuple((name, None) for name in OURS),
    tuple((name, b"\xff" * 40) for name in OURS),
    tuple((name, b"9" * 5000) for name in OURS),
    ((codec.KIND, codec.LINES), ("tidemill-batch", BATCH), ("tidemill-marks", b"[[" + b"9" * 400 + b",1,false]]")),
    (("", b""),) * 20_000,
)
VALUES = (None, b"", b"{", b"\xff", b"[" * 100_000, b"x" * 1_000_000, b'{"v":1,"kind":"tick","at":1e999}')
WRITABLE = (
    topics.COMMANDS, topics.OUTCOMES, topics.INTAKE, topics.requests("chat"), topics.express("chat"),
    topics.BATCHES, topics.FILES, topics.KEYS, topics.LEDGER, topics.CLAIMS, topics.UPLOADS, topics.DEAD,
)  # fmt: skip
BURIED = WRITABLE[:5]
"""Inputs of each stage: an unreadable record becomes a dead letter."""


def corpus():
    """Combinations of odd keys, headers and values."""
    for place in range(max(len(HEADERS), len(VALUES))):
        for turn in range(2):
            key, value = KEYS[(place + turn) % len(KEYS)], VALUES[(place + 3 * turn) % len(VALUES)]
            # The client refuses a record without key and value.
            yield b"" if key is value else key, HEADERS[place % len(HEADERS)], value


def forged(neighbour):
    """Well-formed records with wrong content: topic, batch, headers, value."""
    strange = ids.new_batch_id()
    created = {"v": 1, "project": "p", "batch": batch(strange, status="completed")}
    lines = (LINES, ("tidemill-batch", neighbour.encode()))

    def fact(topic, under, kind, **fields):
        return (
            topic,
            under,
            (("tidemill-kind", kind.encode()),),
            json.dumps({"v": 1, "kind": kind, **fields}).encode(),
        )

    yield fact(topics.COMMANDS, strange, "batch_created", **created)
    yield fact(topics.COMMANDS, strange, "batch_created", **created | {"batch": batch(neighbour)})
    yield fact(topics.COMMANDS, strange, "batch_created", **created | {"batch": batch("x" * 1_000_000)})
    yield fact(topics.OUTCOMES, strange, "opened", **created)
    yield fact(topics.OUTCOMES, strange, "accepted", batch_id=strange, total=1 << 60, model="m", at=1)
    yield fact(topics.OUTCOMES, strange, "accepted", batch_id=strange, total=1, model="m" * 1000, at=1)
    bill = {"tariff": {}, "cost": dict.fromkeys(("total", "input", "output", "discount"), "0")}
    models = [{"completed": 1, "failed": 0, "usage": {}, "bill": bill}]
    yield fact(
        topics.OUTCOMES, neighbour, "compacted", batch_id=neighbour, receipt={"lines": 1}, models=models, at=1
    )
    yield fact(topics.OUTCOMES, strange, "tick", at=1 << 60)
    yield topics.OUTCOMES, neighbour, (*lines, ("tidemill-marks", b"[[5000000,2,false]]")), b"x\n"
    yield topics.OUTCOMES, neighbour, (*lines, ("tidemill-marks", b"[[0,3,false]]")), b"x\n"
    yield topics.OUTCOMES, strange, (*lines, ("tidemill-marks", b"[[0,2,false]]")), b"x\n"  # under another key


def batch(batch_id, status="validating"):
    return {
        "id": batch_id, "endpoint": "/v1/chat/completions", "input_file_id": "file-x", "completion_window": "24h",
        "status": status, "created_at": 1, "expires_at": 2,
    }  # fmt: skip


def created(client, count):
    """A batch of so many lines."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
    lines = [
        json.dumps({"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        for n in range(count)
    ]
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


@pytest.mark.usefixtures("backend")
async def test_whatever_is_written_to_a_topic(stack, monkeypatch):
    """Invalid keys, headers and values, and false facts: no stage restarts, and a batch completes."""
    for module in (message_accumulator, producer_module):
        monkeypatch.setattr(module, "DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
    before = stack.ends()
    await ensure_model_topics(Settings(), stack.cluster(), "chat")
    client = OpenAI(base_url=stack.api, api_key=KEY)
    neighbour = created(client, 20_000)
    await until(lambda: client.batches.retrieve(neighbour.id).status == "in_progress", "its lines")
    sent = set()
    async with AIOKafkaProducer(**stack.clients(), max_request_size=2 << 20) as producer:
        for topic in WRITABLE:
            for partition in await producer.partitions_for(topic.name):
                for key, headers, value in corpus():
                    # A compacted topic takes no record without a key.
                    key = b"" if topic.compacted and key is None else key  # noqa: PLW2901
                    record = await producer.send_and_wait(
                        topic.name, value, key=key, headers=list(headers), partition=partition
                    )
                    if topic in BURIED:
                        sent.add(f"{topic.name}/{partition}/{record.offset}")
        for topic, batch_id, headers, value in forged(neighbour.id):
            record = await producer.send_and_wait(topic.name, value, key=batch_id.encode(), headers=list(headers))
            sent.add(f"{topic.name}/{record.partition}/{record.offset}")
    after = created(client, 10)
    for made in (neighbour, after):
        await until(lambda made=made: client.batches.retrieve(made.id).status == "completed", "its end")
    shown = client.batches.retrieve(neighbour.id)
    assert shown.request_counts.completed == 20_000
    assert shown.model_extra["tidemill"]["fault"]["records"] >= 2
    found = set()

    async def buried():
        async with history.reading(stack.cluster()) as reader:
            found.update((await dead_letters.known(reader)).ids)
        return sent <= found

    await until(buried, "the letters of all of them")
    assert stack.ends() == before, "no process ended over it"
