"""A process answers at its health port while it waits for what its stage needs."""

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
from aiokafka import ConsumerRecord
from support import ports
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill.configuration.catalog import Applied
from tidemill.configuration.settings import Settings
from tidemill.faust import stage_runner
from tidemill.faust.monitored_apps import MonitoredApps
from tidemill.kafka.admin import TopicError
from tidemill.kafka.catalog import Catalog
from tidemill.kafka.follower import Follower, Tail
from tidemill.runtime.heartbeat import Heartbeat
from tidemill.schemas.log import topics


class Topic(Catalog):
    """A catalog whose topic has no record before `fill`."""

    def __init__(self, _):
        super().__init__(None)

    def fill(self):
        """A process of the api has written its settings."""
        self._fold.applied = Applied(digest="", author="file", at=0)
        self._contents = None
        self.applied()


def ask(port, path):
    """The status, and the faults of the body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=WAIT_SECONDS_MAX) as answer:
            return answer.status, {}
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["faults"]
    except OSError:
        return None, {}


async def test_a_process_waits_for_a_broker_that_is_not_ready(unused_tcp_port, monkeypatch, caplog):
    """A stop ends the wait; a refusal ends the process at once, with its message."""
    monitored, made = MonitoredApps(), []
    settings = Settings(kafka=f"127.0.0.1:{unused_tcp_port}", health_port=ports.free_port())
    beat = Heartbeat(monitored.look)
    waiting = asyncio.create_task(stage_runner._run(settings, "webhooks", made.append, monitored, beat))
    await until(lambda: caplog.text.count("; next attempt in ") > 1, "two attempts")
    assert not waiting.done()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await waiting is False
    assert not made

    async def refuse(*_, **__):
        raise TopicError("Topics cannot be created: no rights.")

    monkeypatch.setattr(stage_runner, "ensure_topics", refuse)
    with pytest.raises(SystemExit):
        await stage_runner._with_topics(settings, "webhooks", asyncio.Event())
    assert "Topics cannot be created: no rights." in caplog.text


async def test_a_process_that_waits_for_the_catalog_is_alive(monkeypatch):
    """And not ready, and says why: a startup probe must not end it. It goes on once the api has written."""

    async def answer(*_, **__):
        return 4

    made = asyncio.Event()

    def make(*_):
        made.set()
        raise RuntimeError("as far as this test goes")

    topics = []
    monkeypatch.setattr(stage_runner, "ensure_topics", answer)
    monkeypatch.setattr(stage_runner, "check_broker", answer)
    monkeypatch.setattr(stage_runner, "Catalog", lambda kafka: topics.append(Topic(kafka)) or topics[0])
    port = ports.free_port()
    monitored = MonitoredApps()
    settings = Settings(kafka="127.0.0.1:9", health_port=port)
    running = asyncio.create_task(
        stage_runner._run(settings, "ingest", make, monitored, Heartbeat(monitored.look))
    )
    await until(lambda: bool(topics))
    for path, status, faults in (("/livez", 200, set()), ("/readyz", 503, {"catalog", "assignment"})):
        found, said = await asyncio.to_thread(ask, port, path)
        assert (found, said.keys()) == (status, faults)
    assert "the catalog is empty" in said["catalog"]
    assert not made.is_set()
    topics[0].fill()
    with pytest.raises(RuntimeError, match="as far as"):
        await running


async def test_a_stage_does_not_start_with_added_partitions(monkeypatch, caplog):
    """It says what to do, and makes nothing: its answers would be lost."""

    async def answer(*_, **__):
        return 6

    def filled(kafka):
        catalog = Topic(kafka)
        catalog.apply("partitions", b'{"count": 4}', 0)
        catalog.fill()
        return catalog

    monkeypatch.setattr(stage_runner, "ensure_topics", answer)
    monkeypatch.setattr(stage_runner, "Catalog", filled)
    monitored, made = MonitoredApps(), []
    settings = Settings(kafka="127.0.0.1:9", health_port=ports.free_port())
    with pytest.raises(SystemExit):
        await stage_runner._run(settings, "ingest", made.append, monitored, Heartbeat(monitored.look))
    assert "have 6 partitions, and the batches were written to 4" in caplog.text
    assert not made


async def test_a_stop_ends_a_start_that_waits_for_the_log(monkeypatch):
    """A stage repeats its first requests without a bound."""

    async def answer(*_, **__):
        return 4

    def filled(kafka):
        catalog = Topic(kafka)
        catalog.fill()
        return catalog

    starting = asyncio.Event()

    async def start():
        starting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(stage_runner, "ensure_topics", answer)
    monkeypatch.setattr(stage_runner, "Catalog", filled)
    monitored = MonitoredApps()
    settings = Settings(kafka="127.0.0.1:9", health_port=ports.free_port())
    stage = SimpleNamespace(start=start, store=None)
    running = asyncio.create_task(
        stage_runner._run(settings, "ingest", lambda *_: stage, monitored, Heartbeat(monitored.look))
    )
    await starting.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        assert await running is False


async def test_what_a_stage_reads_before_its_apps_start_is_progress():
    """Else the supervisor ends a start that reads a year of batches. Records that arrive later prove nothing."""
    heartbeat = stage_runner._heartbeat(MonitoredApps())
    topic = topics.BATCHES.name
    follower = Follower("127.0.0.1:9", topic, print)
    follower.begin(Tail(identity="c/t", end=3))
    marks = [heartbeat.progress()]
    for offset in range(4):
        await follower.take([ConsumerRecord(topic, 0, offset, 0, 0, b"k", b"v", None, 1, 1, ())])
        marks.append(heartbeat.progress())
    assert [mark - marks[0] for mark in marks] == [0, 1, 2, 3, 3]
