"""The owner of a partition under a virtual clock: crashes anywhere, and what it does with receivers that fail."""

import asyncio
import random
from itertools import pairwise

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tidemill.kafka.partitions.owner import Record
from tidemill.schemas.log import codec, topics
from tidemill.schemas.resources.audit import Action
from tidemill.schemas.webhooks import messages
from tidemill.schemas.webhooks.messages import (
    Due,
    Endpoint,
    EndpointRecord,
    Event,
    EventType,
    Resend,
    State,
)
from tidemill.schemas.webhooks.table import KEPT_MAX, Deliveries, Endpoints, is_disabled
from tidemill.telemetry import tracing
from tidemill.webhooks.http import SPANS_MAX, Outcome
from tidemill.webhooks.partition import Partition, Resources
from tidemill.webhooks.schedule import DISABLE_SECONDS, LIFE_SECONDS, Slots

BEGAN = 1_800_000_000
DAY = 86_400


class Crash(BaseException):
    """The process ends here."""


class World:
    """The log, the receivers and the time, which outlive the processes."""

    def __init__(self, seed=0, crashing=0.0):
        self.chance = random.Random(seed)
        self.crashing = crashing
        self.now = float(BEGAN)
        self.events, self.acked = [], 0
        self.stored = Deliveries()
        """The deliveries as a reader of the log has them."""
        self.rows = []
        self.audit, self.dead = [], []
        self.order = []
        """Endpoint, batch and event, as they were published."""
        self.calls = []
        """Time, URL, webhook-id."""
        self.answer = lambda _: 200
        self.endpoints = Endpoints()
        self.crashes = 0
        self.partition = None

    def endpoint(self, endpoint_id="we_1", enabled_at=BEGAN):
        shown = Endpoint(
            id=endpoint_id, created_at=BEGAN, event_types=tuple(EventType), name="n",
            url=f"https://example.com/{endpoint_id}", signing_secret_hint="", updated_at=BEGAN,
        )  # fmt: skip
        secret = messages.WrappedSecret(id="s", wrapped_by="k", wrapped="")
        record = EndpointRecord(project="p", endpoint=shown, secrets=(secret,), enabled_at=enabled_at)
        self.endpoints.apply(endpoint_id, codec.encode(record))
        return record

    def publish(self, batch_id, endpoint_id="we_1", kind="completed", **more):
        event = messages.event_of(batch_id, kind, int(self.now))
        self.order.append((endpoint_id, batch_id, event.id))
        self.put(Due(project="p", endpoint_id=endpoint_id, event=event, **more))
        return event

    def put(self, message):
        self.events.append(codec.encode(message))

    async def send(self, topic, key, value, *, headers=(), partition=None):
        del headers, partition
        if self.chance.random() < self.crashing / 2:
            raise Crash
        if topic == topics.DELIVERIES.name:
            self.rows.append((key, value))
            self.stored.apply(key, value)
        elif topic == topics.DEAD.name:
            self.dead.append(value)
        elif topic == topics.AUDIT.name:
            self.audit.append(codec.decode_audit(value))
        elif topic == topics.EVENTS.name:
            self.events.append(value)
        else:
            raise AssertionError(topic)
        if self.chance.random() < self.crashing / 2:
            raise Crash
        return 0

    async def post(self, url, headers, body):
        del body
        name, event_id = url.rpartition("/")[2], headers["webhook-id"]
        endpoint_id = name if name.startswith("we_") else "we_1"
        stored = self.stored.get(messages.delivery_id(endpoint_id, event_id))
        assert stored.state is State.PENDING, "the log has the end of the delivery"
        of_batch = [each for each in self.order if each[:2] == (endpoint_id, stored.event.batch_id)]
        for _, _, earlier in of_batch[: of_batch.index((*of_batch[0][:2], event_id))]:
            found = self.stored.get(messages.delivery_id(endpoint_id, earlier))
            assert found.state is not State.PENDING, "an earlier event of the batch has not ended"
        self.calls.append((self.now, url, event_id))
        status = self.answer(headers["webhook-id"])
        return Outcome(seconds=0.1, status=status, error=None if status else "timeout")

    async def valid(self, record, now):
        del record, now
        return [b"secret"]

    async def catch_up(self):
        return

    def table(self):
        """The deliveries as a new process reads them."""
        found = Deliveries()
        for key, value in self.rows:
            found.apply(key, value)
        return found

    async def begin(self):
        """Start a process, as after a crash."""
        if self.partition is not None:
            self.partition.abandon()
            self.crashes += 1
        self.partition = Partition(0, Resources(
            sender=self, caller=self, secrets=self, endpoints=self.endpoints, stored=self.table(),
            catch_up=self.catch_up, partition_of=lambda _: 0, wake=lambda: None,
            clock=lambda: self.now, monotonic=lambda: self.now - BEGAN, slots=Slots(),
        ))  # fmt: skip
        self.read = self.acked
        self.acks = set()
        await self.partition.load()

    def record(self, offset):
        def ack():
            self.acks.add(offset)
            while self.acked in self.acks:
                self.acked += 1

        return Record(
            topic=topics.EVENTS.name, partition=0, offset=offset, key=b"", value=self.events[offset], headers=(),
            timestamp=self.now, ack=ack,
        )  # fmt: skip

    async def work(self):
        """Handle new records, and do what is due."""
        if self.read < len(self.events):
            first, self.read = self.read, min(len(self.events), self.read + self.chance.randint(1, 5))
            await self.partition.handle([self.record(offset) for offset in range(first, self.read)])
        for _ in range(3):
            await asyncio.sleep(0)
        if self.partition.is_due():
            await self.partition.tick()

    async def run(self, seconds, step=5.0):
        """Let time pass; a crash starts another process."""
        end = self.now + seconds
        if self.partition is None:
            await self.begin()
        while self.now < end:
            try:
                await self.work()
                if self.chance.random() < self.crashing:
                    await self.restart()
            except Crash:
                await self.restart()
            self.now += step

    async def restart(self):
        while True:
            try:
                await self.begin()
            except Crash:
                continue
            return

    async def settle(self):
        """Run without further crashes until nothing is left."""
        self.crashing = 0.0
        await self.run(LIFE_SECONDS, step=60.0)


@pytest.mark.parametrize("seed", range(30))
async def test_no_crash_loses_an_event(seed):
    """Every event arrives, in the order of its batch; none whose end the log has is sent again (`World.post`)."""
    world, failing = World(seed, crashing=0.05), random.Random(seed)
    for name in ("we_1", "we_2"):
        world.endpoint(name)
    world.answer = lambda _: 200 if failing.random() > 0.3 else failing.choice([500, None, 302])
    wanted = set()
    for number in range(20):
        for name in ("we_1", "we_2"):
            for kind in ("expired", "completed"):
                wanted.add((name, world.publish(f"batch_{number}", name, kind).id))
        await world.run(10.0)
    await world.settle()
    assert world.crashes > 3
    assert world.acked == len(world.events)
    found = [each for name in ("we_1", "we_2") for each in world.stored.of(name)]
    assert {(each.endpoint_id, each.event.id) for each in found if each.state is State.SUCCEEDED} == wanted
    assert len(world.calls) > len(wanted)


@pytest.mark.parametrize("seed", range(5))
async def test_the_log_gives_the_same_state(seed):
    """A process that reads the log is where the one is that wrote it."""
    world = World(seed)
    world.endpoint()
    world.answer = lambda webhook_id: 500 if webhook_id[-1] in "01234567" else 200
    for number in range(2 * KEPT_MAX):
        world.publish(f"batch_{number}")
        await world.run(5.0)
    before = world.partition
    await world.begin()
    for name in ("_pending", "_ended", "_health"):
        assert getattr(world.partition, name) == getattr(before, name), name
    assert len(world.partition._ended["we_1"]) <= KEPT_MAX


async def test_a_receiver_that_is_down_gets_its_events_for_three_days():
    """With pauses that grow; then the delivery fails."""
    world = World()
    world.endpoint()
    world.answer = lambda _: None
    world.publish("batch_1")
    await world.run(LIFE_SECONDS + 3600, step=5.0)
    times = [at for at, _, _ in world.calls]
    assert 70 < len(times) < 170
    assert all(later - earlier <= 3600 + 5 for earlier, later in pairwise(times))
    assert BEGAN + LIFE_SECONDS - 3 * 3600 < times[-1] <= BEGAN + LIFE_SECONDS
    (found,) = world.stored.of("we_1")
    assert (found.state, found.attempts, found.last.error) == (State.FAILED, len(times), "timeout")


async def test_attempts_are_spans_in_the_trace_of_the_batch(monkeypatch):
    """The first few of a delivery; without a trace there are none."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    world, answers = World(), iter([None, 500])
    world.endpoint()
    world.answer = lambda _: next(answers, 200)
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    world.publish("batch_1", traceparent=f"00-{trace}-{parent}-01")
    await world.run(600.0)
    spans = kept.get_finished_spans()
    known = {(span.name, span.context.trace_id, span.parent.span_id) for span in spans}
    assert known == {("deliver batch.completed", int(trace, 16), int(parent, 16))}
    found = [[span.attributes.get(each) for each in ("error.type", "http.response.status_code")] for span in spans]
    assert found == [["timeout", None], ["500", 500], [None, 200]]
    world.answer = lambda _: None
    world.publish("batch_2")
    world.publish("batch_3", traceparent=f"00-{trace}-{parent}-01")
    await world.run(DAY)
    assert [span.attributes[tracing.BATCH_ID] for span in kept.get_finished_spans()[3:]] == ["batch_3"] * SPANS_MAX


async def test_an_endpoint_is_disabled_after_five_days_of_failures():
    """It says so in its health, the metric's source, and the audit trail; a change enables it again."""
    world = World()
    record = world.endpoint()
    world.answer = lambda _: 500
    for day in range(6):
        world.publish(f"batch_{day}")
        await world.run(DAY, step=30.0)
    health = world.stored.health("we_1")
    assert health.failing_since <= BEGAN + 60
    assert DISABLE_SECONDS <= health.disabled_at - health.failing_since < DISABLE_SECONDS + 3700
    assert is_disabled(record, health)
    assert [(entry.action, entry.target, entry.project) for entry in world.audit] == [
        (Action.WEBHOOK_DISABLE, "we_1", "p")
    ]
    assert [is_disabled(*each) for each in world.partition.failed()] == [True]
    assert {each.state for each in world.stored.of("we_1")} == {State.FAILED}
    assert (count := len(world.calls)) == sum(each.attempts for each in world.stored.of("we_1"))
    world.publish("batch_ignored")
    await world.run(DAY, step=30.0)
    assert len(world.calls) == count
    world.endpoint(enabled_at=int(world.now))
    world.answer = lambda _: 200
    world.publish("batch_again")
    await world.run(60.0)
    assert len(world.calls) == count + 1
    assert world.stored.health("we_1") is None


async def test_a_success_ends_a_row_of_failures():
    """Days of failures with one success between them disable nothing."""
    world = World()
    record = world.endpoint()
    for day in range(12):
        world.answer = lambda _, day=day: 200 if day % 3 == 2 else 500
        world.publish(f"batch_{day}")
        await world.run(DAY, step=60.0)
    assert not is_disabled(record, world.stored.health("we_1"))
    assert not world.audit


async def test_an_ended_delivery_is_sent_again():
    """With the same id, once for each request; an unknown or deleted one changes nothing."""
    world = World()
    world.endpoint()
    event = world.publish("batch_1")
    await world.run(30.0)
    for delivery_id in (messages.delivery_id("we_1", event.id), "whd_unknown"):
        world.put(Resend(endpoint_id="we_1", delivery_id=delivery_id))
    await world.run(30.0)
    assert [webhook_id for _, _, webhook_id in world.calls] == [event.id] * 2
    (found,) = world.stored.of("we_1")
    assert (found.state, found.attempts) == (State.SUCCEEDED, 2)


async def test_a_copy_of_an_event_changes_nothing():
    """Before the end of its delivery and after it, also for a process that has read the end from the log."""
    world = World()
    world.endpoint()
    world.answer = lambda _: 500 if len(world.calls) < 2 else 200
    for _ in range(5):
        world.publish("batch_1")
        await world.run(10.0)
    await world.begin()
    world.publish("batch_1")
    await world.run(10.0)
    assert len(world.calls) == 2


async def test_a_test_is_attempted_once():
    """Its failure says nothing against the endpoint."""
    world = World()
    world.endpoint()
    world.answer = lambda _: 500
    event = Event(id="evt_test", type=EventType.FAILED, created_at=BEGAN, batch_id="batch_test")
    world.order.append(("we_1", "batch_test", "evt_test"))
    world.put(Due(project="p", endpoint_id="we_1", event=event, is_test=True))
    await world.run(600.0)
    assert len(world.calls) == 1
    assert world.stored.health("we_1") is None
    (found,) = world.stored.of("we_1")
    assert (found.state, found.last.status_code) == (State.FAILED, 500)


async def test_nothing_is_left_of_a_deleted_endpoint():
    """Neither what waits, nor what has ended, nor its health."""
    world = World()
    world.endpoint()
    world.publish("batch_1")
    await world.run(30.0)
    world.answer = lambda _: None
    world.publish("batch_2")
    await world.run(30.0)
    assert len(world.stored.of("we_1")) == 2
    world.endpoints.apply("we_1", None)
    world.publish("batch_3")
    await world.run(7200.0)
    assert not world.stored.endpoints()
    count = len(world.calls)
    await world.run(7200.0)
    assert len(world.calls) == count


async def test_a_callback_goes_to_the_url_of_its_batch():
    """One that fails holds up no other, and disables nothing, however long it lasts."""
    world = World()
    world.endpoint()
    urls = {f"batch_{number}": f"https://example.com/{number}" for number in range(20)}
    bad = {}
    world.answer = lambda webhook_id: 500 if webhook_id in bad else 200
    for batch_id, url in urls.items():
        event = world.publish(batch_id, url=url)
        if batch_id != "batch_19":
            bad[event.id] = url
    await world.run(100.0)
    assert event.id in {webhook_id for _, _, webhook_id in world.calls}
    assert list(world.partition._schedule._projects["p"].lanes) == ["example.com"]
    await world.run(LIFE_SECONDS + DAY, step=60.0)
    called = {(url, webhook_id) for _, url, webhook_id in world.calls}
    assert called == {(urls[each.event.batch_id], each.event.id) for each in world.stored.of("we_1")}
    assert world.stored.health("we_1") is None
    assert not world.partition._schedule._projects


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", b'{"kind":"due"}', None])
async def test_a_poisoned_record_is_buried(value):
    """The next one is handled."""
    world = World()
    world.endpoint()
    world.events.append(value)
    world.publish("batch_1")
    await world.run(30.0)
    assert len(world.dead) == 1
    assert len(world.calls) == 1
    assert world.acked == 2
