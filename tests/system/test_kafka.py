"""The door to Kafka, on a real broker."""

import asyncio
import os
import secrets
import signal

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from support.brokers import OpenBroker
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill.kafka import connection
from tidemill.kafka import follower as follower_module
from tidemill.kafka import producer as producer_module
from tidemill.kafka.connection import LogUnavailable, topic_identities
from tidemill.kafka.follower import RUN_BYTES_MAX, RUN_RECORDS_MAX, Follower, Tail, start_together
from tidemill.kafka.offsets import Offsets
from tidemill.kafka.producer import Log, Producer, producer

pytestmark = pytest.mark.kafka


async def new_topic(bootstrap: str) -> str:
    """A compacted topic of one partition."""
    name = f"test-{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(name, 1, 1, topic_configs={"cleanup.policy": "compact"})])
    await admin.close()
    return name


async def values(bootstrap: str, topic: str) -> list[bytes]:
    """All values of a topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        found = []
        while await consumer.position(partition) < end:
            batches = await consumer.getmany(partition, timeout_ms=1000)
            found += [record.value for record in batches.get(partition, [])]
        return found
    finally:
        await consumer.stop()


@pytest.fixture
async def log(kafka):
    """A log that is stopped in the end."""
    log = Log(kafka)
    await log.start()
    yield log
    await log.stop()


async def test_a_follower_sees_everything_in_order(kafka, log):
    """What was there, what comes later, and tombstones."""
    topic, seen = await new_topic(kafka), []
    assert [await log.send(topic, f"k{n}", b"v") for n in range(3)] == [0, 1, 2]
    follower = Follower(kafka, topic, lambda *record: seen.append(record))
    await follower.start()
    await follower.caught_up()
    assert seen == [(f"k{n}", b"v", n) for n in range(3)]
    await log.send(topic, "k0", None)
    await until(lambda: seen[-1] == ("k0", None, 3))
    assert follower.position == 4
    await follower.stop()


async def test_a_follower_gives_way_to_other_tasks(kafka, log):
    """After a run of records, or of bytes, though one answer of the broker brings many of both."""
    topic, runs = await new_topic(kafka), [[]]
    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(log.send(topic, f"k{number}", b"v" * (RUN_BYTES_MAX // 4 if number > 150 else 1)))

    async def other():
        while True:
            await asyncio.sleep(0)
            runs.append([])

    task = asyncio.create_task(other())
    follower = Follower(kafka, topic, lambda _, value, __: runs[-1].append(len(value)))
    await follower.start()
    await follower.caught_up()
    await follower.stop()
    task.cancel()
    assert sum(map(len, runs)) == 200
    assert max(map(len, runs)) <= RUN_RECORDS_MAX
    assert max(map(sum, runs)) < RUN_BYTES_MAX + RUN_BYTES_MAX // 4


async def test_a_follower_starts_where_resume_says(kafka, log):
    """Once it knows where the topic ends."""
    topic, seen, tails = await new_topic(kafka), [], []
    for number in range(3):
        await log.send(topic, f"k{number}", b"v")
    follower = Follower(
        kafka, topic, lambda *record: seen.append(record[2]), resume=lambda tail: tails.append(tail) or 2
    )
    await follower.start()
    await follower.caught_up()
    await follower.stop()
    assert seen == [2]
    assert [tail.end for tail in tails] == [3]
    assert isinstance(tails[0], Tail)
    assert tails[0].identity == (await topic_identities(kafka, [topic]))[topic]


async def test_offsets_of_a_time(kafka):
    """The first record that is not older; the next one if all are older, or if there is none."""
    name = await new_topic(kafka)
    place = TopicPartition(name, 0)
    offsets = Offsets(kafka)
    assert await offsets.since([place], 0) == {place: 0}
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    for at in (10, 20, 30):
        await producer.send_and_wait(name, b"v", b"%d" % at, timestamp_ms=at * 1000)
    await producer.stop()
    found = [(await offsets.since([place], at))[place] for at in (0, 10, 11, 30, 31)]
    await offsets.close()
    assert found == [0, 0, 1, 2, 3]


async def test_followers_that_start_together_share_requests(kafka, log, monkeypatch):
    """Each sees its own topic whole and in order, also if another one fails meanwhile."""
    names, topics, faults = [await new_topic(kafka) for _ in range(3)], [], [OSError("the disk is full")]
    send = AIOKafkaClient.send

    async def counted(client, node, request, **how):
        if type(request).__name__.startswith("FetchRequest"):
            topics.append(len(request.topics))
        return await send(client, node, request, **how)

    def apply(name):
        def add(*record):
            if name == names[1] and faults:
                raise faults.pop()
            seen[name].append(record[2])

        return add

    async def have_seen(*ends):
        await until(lambda: [seen[name] for name in names] == [list(range(end)) for end in ends])

    monkeypatch.setattr(AIOKafkaClient, "send", counted)
    seen = {name: [] for name in names}
    followers = [Follower(kafka, name, apply(name)) for name in names]
    await asyncio.gather(*(log.send(name, "k", b"v") for name in names[:2] * 3))
    start_together(*followers)
    await have_seen(3, 3, 0)
    assert not faults
    await asyncio.gather(*(log.send(name, "k", b"v") for name in names * 3))
    await have_seen(6, 6, 3)
    await followers[1].catch_up()
    assert max(topics) == len(names)
    for follower in followers:
        await follower.stop()


async def test_records_that_come_during_a_rest_share_a_request(kafka, log, monkeypatch):
    """The first one after a pause does not wait, and all come in order."""
    topic, seen, fetches, awake = await new_topic(kafka), [], [], asyncio.Event()
    send = AIOKafkaClient.send

    async def counted(client, node, request, **how):
        if type(request).__name__.startswith("FetchRequest"):
            fetches.append(request)
        return await send(client, node, request, **how)

    monkeypatch.setattr(AIOKafkaClient, "send", counted)
    follower = Follower(
        kafka, topic, lambda *record: seen.append(record[2]), rest_seconds=1.0, sleep=lambda _: awake.wait()
    )
    await follower.start()
    await follower.caught_up()
    await log.send(topic, "k", b"v")
    await until(lambda: seen)
    fetches.clear()
    for _ in range(20):
        await log.send(topic, "k", b"v")
    assert seen == [0]
    assert len(fetches) <= 1
    awake.set()
    await until(lambda: len(seen) == 21)
    assert seen == list(range(21))
    await follower.stop()


async def test_a_catch_up_does_not_wait_behind_a_fetch(kafka, monkeypatch):
    """The broker answers the requests of a connection in order, and a fetch without records as late as it may."""
    monkeypatch.setattr(follower_module, "POLL_MS", 3_600_000)
    follower = Follower(kafka, await new_topic(kafka), print)
    await follower.start()
    await follower.caught_up()
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        for _ in range(3):
            await follower.catch_up()
    await follower.stop()


async def test_records_that_come_during_a_rest_share_a_produce_request(kafka, monkeypatch):
    """Those of twenty batches that end together; the first one after a pause does not wait."""
    topic, requests, awake = await new_topic(kafka), [], asyncio.Event()
    send = AIOKafkaClient.send

    async def counted(client, node, request, **how):
        if type(request).__name__.startswith("ProduceRequest"):
            requests.append(request)
        return await send(client, node, request, **how)

    monkeypatch.setattr(AIOKafkaClient, "send", counted)
    log = Log(kafka, rest=awake.wait)
    await log.start()
    assert await log.send(topic, "k", b"v") == 0
    sending = []
    for _ in range(20):
        sending.append(asyncio.ensure_future(log.send(topic, "k", b"v")))
        await asyncio.sleep(0)
    assert len(requests) == 1
    awake.set()
    assert await asyncio.gather(*sending) == list(range(1, 21))
    assert len(requests) == 2
    await log.stop()


async def test_a_follower_whose_store_fails_grows_old(kafka, log, monkeypatch):
    """It is connected again and again, and has the records of an idle topic only while its leader answers."""
    monkeypatch.setattr(follower_module, "POLL_MS", 50)
    topic, tries, is_full = await new_topic(kafka), [], True

    def apply(_key: str, _value: bytes | None, offset: int) -> None:
        tries.append(offset)
        if is_full:
            raise OSError("full")

    follower = Follower(kafka, topic, apply)
    await follower.start()
    await follower.caught_up()
    seen = follower._current
    await until(lambda: follower._current > seen)
    await log.send(topic, "k", b"v")
    await until(lambda: tries)
    seen = follower._current
    await until(lambda: len(tries) > 2)
    assert follower._current == seen
    is_full = False
    await until(lambda: follower._current > seen)
    await follower.stop()


async def test_an_empty_topic_is_caught_up_with(kafka):
    """At once."""
    follower = Follower(kafka, await new_topic(kafka), print)
    await follower.start()
    await follower.caught_up()
    await follower.stop()


async def test_a_record_whose_apply_raises_is_tried_again(kafka, log):
    """And is not passed over."""
    topic, seen = await new_topic(kafka), []
    await log.send(topic, "k", b"v")

    def apply(key: str, value: bytes | None, offset: int) -> None:
        seen.append((key, value, offset))
        if len(seen) == 1:
            raise ValueError

    follower = Follower(kafka, topic, apply)
    await follower.start()
    await follower.caught_up()
    assert seen == [("k", b"v", 0)] * 2
    await follower.stop()


async def test_a_topic_that_comes_later_is_waited_for(kafka, log):
    """A stage may start before the topics are made."""
    name, seen = f"test-{secrets.token_hex(4)}", []
    follower = Follower(kafka, name, lambda *record: seen.append(record))
    await follower.start()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(name, 1, 1)])
    await admin.close()
    await log.send(name, "k", b"v")
    await until(lambda: seen)
    await follower.stop()


async def test_all_who_wait_for_a_producer_hear_that_it_is_given_up(tmp_path):
    """Also one without a time limit of its own; the next record goes through another producer."""
    broker = OpenBroker(tmp_path)
    sender = None
    try:
        kafka = await broker.start()
        topic = await new_topic(kafka)
        sender = Producer(lambda: producer(kafka))
        await sender.delivered(await sender.enqueue(topic, "k", b"before"))
        broker.kill()
        patient, hasty = [await sender.enqueue(topic, "k", value) for value in (b"patient", b"hasty")]
        waiting = asyncio.create_task(sender.delivered(patient))
        with pytest.raises(LogUnavailable):
            await sender.delivered(hasty, 1)
        with pytest.raises(LogUnavailable):
            await asyncio.wait_for(waiting, WAIT_SECONDS_MAX)
        assert await broker.start() == kafka
        after = await sender.enqueue(topic, "k", b"after")
        assert await sender.delivered(after) == 1
        assert after.by is not hasty.by
        assert await values(kafka, topic) == [b"before", b"after"]
    finally:
        if sender is not None:
            await asyncio.wait_for(sender.stop(), WAIT_SECONDS_MAX)
        broker.stop()


@pytest.mark.parametrize("kind", ["producer", "consumer"])
async def test_a_client_that_cannot_end_in_time_leaves_no_connection(tmp_path, kind, monkeypatch):
    """Its broker is there and answers nothing."""
    monkeypatch.setattr(connection, "STOP_SECONDS_MAX", 0.2)
    broker = OpenBroker(tmp_path)
    try:
        kafka = await broker.start()
        topic = await new_topic(kafka)
        if kind == "producer":
            client = producer(kafka)
            connections = client.client
        else:
            client = AIOKafkaConsumer(topic, bootstrap_servers=kafka, group_id="any")
            connections = client._client
        await client.start()
        os.killpg(broker.pid, signal.SIGSTOP)
        if kind == "producer":
            await client.send(topic, b"v")
        await connection.stop(client)
        assert not any(found.connected() for found in connections._conns.values())
    finally:
        os.killpg(broker.pid, signal.SIGCONT)
        broker.stop()


async def test_a_broken_producer_is_replaced(kafka):
    """A fatal fault replaces it, whether a send or the producer itself notices."""
    topic, sender = await new_topic(kafka), Producer(lambda: producer(kafka))
    first = await sender.enqueue(topic, "k", b"1")
    await sender.delivered(first)
    first.by._sender.sender_task.cancel()
    await asyncio.wait([first.by._sender.sender_task])
    second = await sender.enqueue(topic, "k", b"2")
    assert await sender.delivered(second, 10) == 1
    await sender.stop()


async def test_a_refused_record_is_not_appended_later(tmp_path, monkeypatch):
    """Its caller sends it again, and once the broker is back the log has it once."""
    monkeypatch.setattr(producer_module, "SEND_SECONDS_MAX", 2)
    broker = OpenBroker(tmp_path)
    log = None
    try:
        kafka = await broker.start()
        topic, seen = await new_topic(kafka), []
        log = Log(kafka)
        await log.send(topic, "k", b"before")
        follower = Follower(kafka, topic, lambda *record: seen.append(record[1]))
        await follower.start()
        await follower.caught_up()
        broker.kill()
        for number in range(3):
            with pytest.raises(LogUnavailable):
                await log.send(topic, "k", b"refused %d" % number)
        assert await broker.start() == kafka

        async def taken() -> bool:
            try:
                await log.send(topic, "k", b"after")
            except LogUnavailable:
                return False
            return True

        await until(taken)
        await until(lambda: seen[-1] == b"after")
        assert seen == [b"before", b"after"]
        assert await values(kafka, topic) == seen
        await follower.stop()
    finally:
        if log is not None:
            await asyncio.wait_for(log.stop(), WAIT_SECONDS_MAX)
        broker.stop()
