"""Records for a log that does not answer."""

import asyncio
import gc
import socket

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError

from tidemill import metrics
from tidemill.kafka import producer
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.producer import Log, Outage
from tidemill.kafka.producer import producer as log_producer

TOPIC = "tidemill.batches"


async def failures(kafka):
    """What `PRODUCE_FAILURES` counts for two records."""
    log, before = Log(kafka), metrics.PRODUCE_FAILURES._value.get()
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            await log.send(TOPIC, "b", b"{}")
    await log.stop()
    return metrics.PRODUCE_FAILURES._value.get() - before


async def test_each_record_without_a_broker_counts():
    """Not only the first one, whose producer is replaced: the counter of an outage rises as long as it lasts."""
    assert await failures("127.0.0.1:9") == 2


async def test_a_record_that_waits_for_a_silent_broker_counts(monkeypatch):
    """The bound of a record is shorter than that of a connection."""
    monkeypatch.setattr(producer, "SEND_SECONDS_MAX", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert await failures("{}:{}".format(*silent.getsockname())) == 2


def test_an_outage_is_named_once(caplog):
    """At its begin and at its end; a partition that fails among others is one outage."""
    caplog.set_level("INFO")
    now = [0.0]
    outage = Outage(lambda: now[0])
    for at, step in ((1, outage.fail), (5, outage.fail), (9, outage.end), (12, outage.fail), (60, outage.end)):
        now[0] = at
        step()
    outage.end()
    assert [record.getMessage() for record in caplog.records] == [
        "Kafka does not acknowledge records of this process; work stands still until it answers",
        "Kafka acknowledges records again, after 59 s",
    ]


async def test_a_queue_that_is_given_up_logs_no_errors():
    """Neither of a batch that the client has queued a second time, nor of one on its way."""
    loop, said = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: said.append(context))
    client = log_producer("127.0.0.1:9")
    queue, places = client._message_accumulator, [TopicPartition(TOPIC, number) for number in range(2)]
    queue._txn_manager.set_pid_and_epoch(1, 0)
    futures = [await queue.add_message(place, b"k", b"v", 1) for place in places]
    again, on_its_way = [queue._pop_batch(place) for place in places]
    queue.reenqueue(again)
    producer._fail_queue(queue)
    failed = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(error) for error in failed] == [KafkaTimeoutError] * 2
    await client.client.close()
    client._closed = True
    del queue, again, on_its_way, client, futures
    gc.collect()
    await asyncio.sleep(0)
    assert said == []
