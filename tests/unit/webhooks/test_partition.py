"""The owner of a partition under a virtual clock: crashes anywhere, and what it does with receivers that fail."""

import random
from itertools import pairwise

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.delivering import BEGAN, DAY, World

from tidemill.schemas.resources.audit import Action
from tidemill.schemas.webhooks import messages
from tidemill.schemas.webhooks.messages import (
    Due,
    Event,
    EventType,
    Resend,
    State,
)
from tidemill.schemas.webhooks.table import KEPT_MAX, is_disabled
from tidemill.telemetry import tracing
from tidemill.webhooks.http import SPANS_MAX
from tidemill.webhooks.schedule import DISABLE_SECONDS, FIRST_SECONDS, LIFE_SECONDS


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


async def test_a_delivery_that_is_sent_again_begins_anew():
    """Its attempts count on, and its pauses are the first ones again; also in a process that takes over."""
    world = World()
    world.endpoint()
    world.answer = lambda _: 500
    event = world.publish("batch_1")
    await world.run(LIFE_SECONDS + 3600, step=60.0)
    before = len(world.calls)
    assert before >= 20
    assert not is_disabled(world.endpoint(), world.stored.health("we_1"))
    world.put(Resend(endpoint_id="we_1", delivery_id=messages.delivery_id("we_1", event.id)))
    await world.run(2.0, step=1.0)
    assert len(world.calls) == before + 1
    await world.begin()
    (found,) = world.stored.of("we_1")
    assert (found.attempts, found.attempts_before) == (before + 1, before)
    assert found.next_at <= world.calls[-1][0] + FIRST_SECONDS + 1
    # Not longer: the pause after it is shortened at random, too.
    await world.run(FIRST_SECONDS + 1, step=1.0)
    assert len(world.calls) == before + 2


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
