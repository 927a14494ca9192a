"""Records for a log that does not answer."""

import socket

import pytest

from tidemill import metrics
from tidemill.kafka import producer
from tidemill.kafka.connection import LogUnavailable
from tidemill.kafka.producer import Log

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
