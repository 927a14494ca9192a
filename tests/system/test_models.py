"""Many models of one process: one consumer group, models that sleep, wake, come and change without a rebalance.

The stage runs in the test's own process, so that the test sees who is awake.
"""

import asyncio
import secrets
import time
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer
from support.backend import Backend, Behaviour
from support.brokers import OpenBroker
from support.catalog import fixed_catalog
from support.dependencies import batch_of
from support.processing import rig
from support.waiting import until

from tidemill.configuration.security import Cluster
from tidemill.configuration.serving import serving
from tidemill.configuration.settings import Settings
from tidemill.faust import stage_runner
from tidemill.faust.probe import Probe
from tidemill.kafka.admin import ensure_model_topics, ensure_topics
from tidemill.processors import app as processors
from tidemill.processors import models
from tidemill.processors.app import Processors
from tidemill.schemas import ids
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import BatchRecord
from tidemill.schemas.resources.batch import Status

pytestmark = pytest.mark.kafka

MODELS = 30
LINES = 60


@pytest.fixture
def backend():
    """A server that only the test's own models call."""
    with Backend(lambda _body, _nth: Behaviour(latency_seconds=0.02)) as made:
        yield made


@pytest.fixture(autouse=True)
def group(monkeypatch):
    """A group of the test's own."""
    monkeypatch.setattr(processors, "NAME", f"tidemill-processors-{secrets.token_hex(4)}")


@asynccontextmanager
async def stage(made):
    """Processors, from their first assignment on."""
    catalog = fixed_catalog({}, made.settings.models)
    running = Processors(made.settings, Cluster(servers=made.settings.kafka), catalog)
    (app,) = await running.start()
    probe = Probe(app)
    probe.start()
    try:
        await app.start()
        await until(lambda: probe.is_assigned, "an assignment")
        yield running, app
    finally:
        await stage_runner._stop([app], running, has_crashed=False)


def with_models(made, **changed):
    """The rig's models, and others."""
    return serving({}, made.settings.models | changed)


async def exact(made, batches, lines=LINES):
    """Wait for all outcomes: one for each line, and each of them is right."""
    for batch_id in batches:
        assert len(await made.collect(batch_id, lines)) == lines
    assert not any(mark.failed for mark in made.marks.values())
    assert set(made.times.values()) == {1}


async def test_models_come_and_change_without_a_rebalance(kafka, backend, tmp_path):
    """Thirty work, one is added, one is changed, and one is removed and comes back; then another process joins."""
    async with rig(kafka, backend, tmp_path, count=MODELS) as made, stage(made) as (running, app):
        generation, some = app.consumer_generation_id, made.settings.models[made.models[0]]
        batches = [await made.batch(LINES, model=model) for model in made.models]
        added = f"added-{secrets.token_hex(4)}"
        running.set_models(with_models(made, **{added: some}))
        await made.say("batch_" + "0" * 32, Status.IN_PROGRESS, added)
        await ensure_model_topics(made.settings, kafka, added)
        batches.append(await made.batch(LINES, model=added))
        changed = some.model_copy(update={"max_in_flight": 2})
        running.set_models(with_models(made, **{added: some, made.models[0]: changed}))
        await made.collect(batches[-1], LINES)
        assert app.consumer_generation_id == generation
        async with stage(made) as (second, other):
            second.set_models(with_models(made, **{added: some}))
            assert other.consumer_generation_id > generation
            batches += [await made.batch(LINES, model=model) for model in [*made.models, added]]
            await made.collect(batches[-1], LINES)
        await exact(made, batches)
    assert backend.repeats == 0


async def test_a_model_sleeps_and_wakes_without_other_stages(kafka, backend, tmp_path, monkeypatch):
    """No record shows that its batch is open. Asleep it reads nothing, and copies of its lines are not called."""
    monkeypatch.setattr(models, "AWAKE_MAX", 0)
    monkeypatch.setattr(models, "SLEEP_SECONDS", 0.3)
    monkeypatch.setattr(models, "LOOK_SECONDS", 0.1)
    async with rig(kafka, backend, tmp_path) as made, stage(made) as (running, app):
        batch_id = ids.new_batch_id()
        lines = [made.line(f"{batch_id} {number}", f"r-{number}") for number in range(LINES + 1)]

        async def publish(count):
            assert not running._models.awake, "nothing waits"
            assert {tp.topic for tp in app.consumer.assignment()} == {topics.PROCESSORS.name}
            await made.send(b"".join(lines[:count]), made.head(batch_id, 0), key=f"{batch_id}/0")
            await exact(made, [batch_id], count)
            await until(lambda: not running._models.awake, "sleep")

        await publish(LINES)
        # A restarted ingest publishes all lines again, and one more.
        await publish(LINES + 1)
        await made.poll()
    assert (backend.calls, backend.repeats) == (LINES + 1, 0)
    assert set(made.times.values()) == {1}


async def test_a_few_models_stay_awake(kafka, backend, tmp_path, monkeypatch):
    """They are read before any batch shows that it is open; one that is removed sleeps like one of many."""
    monkeypatch.setattr(models, "SLEEP_SECONDS", 0.3)
    monkeypatch.setattr(models, "LOOK_SECONDS", 3600.0)
    async with rig(kafka, backend, tmp_path, count=2) as made, stage(made) as (running, _):
        await until(lambda: running._models.awake.keys() == set(made.models), "both are awake")
        batch_id = ids.new_batch_id()
        await made.send(made.line(batch_id, "r-0"), made.head(batch_id, 0), key=f"{batch_id}/0")
        await exact(made, [batch_id], 1)
        assert running._models.awake.keys() == set(made.models)
        kept = {name: made.settings.models[name] for name in made.models[:1]}
        running.set_models(serving({}, kept))
        running._models._news.set()
        await until(lambda: running._models.awake.keys() == kept.keys(), "the removed one sleeps")


async def test_forgotten_offsets_cost_no_call(kafka, backend, tmp_path, monkeypatch):
    """A broker forgets a group's offsets after some days: the log is read again, and no line is called again."""
    async with rig(kafka, backend, tmp_path) as made:
        async with stage(made):
            batch_id = await made.batch(LINES)
            await exact(made, [batch_id])
        monkeypatch.setattr(processors, "NAME", f"tidemill-processors-{secrets.token_hex(4)}")
        async with stage(made) as (running, _):
            await until(lambda: running._models.awake, "the batch is open, so its model wakes")
            other = await made.batch(1)
            await exact(made, [other], 1)
            await until(lambda: all(model.is_idle for model in running._models.awake.values()), "the rest")
        await made.poll()
    assert (backend.calls, backend.repeats) == (LINES + 1, 0)
    assert set(made.times.values()) == {1}


async def test_a_start_reads_only_recent_batches(tmp_path):
    """There may be millions of older ones, and no line of theirs is called any more."""
    broker = OpenBroker(tmp_path)
    try:
        kafka = await broker.start()
        settings = Settings(kafka=kafka, data=tmp_path)
        await ensure_topics(settings, settings.cluster)
        *old, recent = [ids.new_batch_id() for _ in range(3)]
        producer = AIOKafkaProducer(bootstrap_servers=kafka)
        await producer.start()
        for batch_id, days in ((old[0], 400), (old[1], 10), (recent, 7)):
            record = BatchRecord(project="p", batch=batch_of(batch_id, status=Status.COMPLETED))
            at_ms = int((time.time() - days * 86_400) * 1000)
            value = codec.encode(record)
            await producer.send_and_wait(topics.BATCHES.name, value, batch_id.encode(), timestamp_ms=at_ms)
        await producer.stop()
        running = Processors(settings, settings.cluster, fixed_catalog({}, {}))
        await running.start()
        assert [batch_id in running._closed for batch_id in (*old, recent)] == [False, False, True]
        await running.stop()
    finally:
        await asyncio.to_thread(broker.stop)
