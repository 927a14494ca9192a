"""The reasons why a batch waits: who reports them, how long they count, and when they are shown."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.facts import NOW, batch_id, commands, lines
from support.result_files import input_file
from support.simchecks import check_waiting
from support.simulated import Simulation

from tidemill.kafka.partitions.ack_gate import AckGate
from tidemill.results.files.overlay_store import OverlayStore
from tidemill.results.files.rebuild import Rebuild
from tidemill.results.state import batch_gauges, reducer
from tidemill.results.state.stalls import SILENCE_SECONDS, SOURCES_MAX, Stalls, show
from tidemill.schemas.log import codec, topics
from tidemill.schemas.log.messages import CancelRequested, Rejected, Stalled, Tick
from tidemill.schemas.log.part import file_key
from tidemill.schemas.resources.batch import Batch, BatchError, RequestCounts, Status
from tidemill.schemas.resources.waiting import USUAL, WAITING_MAX, Reason, Waiting, explanation, merged

TOTAL = 100
HOLD_SECONDS = 30


def waiting(reason=Reason.SERVER_REFUSES, lines=10, server="http://a/v1", status=503, since=NOW):
    return Waiting(reason=reason, lines=lines, server=server, status=status, message=f"{server} says", since=since)


def said(source="p0", number=1, *waits):
    return Stalled(batch_id=batch_id(0), source=source, number=number, waiting=waits, hold_seconds=HOLD_SECONDS)


def at_work(status=Status.IN_PROGRESS):
    batch = Batch(
        id=batch_id(0), endpoint="/v1/embeddings", input_file_id="f", completion_window="24h", status=status,
        model="m", created_at=NOW, expires_at=NOW + 86_400, request_counts=RequestCounts(total=TOTAL),
    )  # fmt: skip
    return reducer.State(id=batch.id, partition=0, batch=batch)


def shown(stalls, state, at, done=0, reported_at=0.0):
    stalls.look(state, done, at)
    return stalls.shown(state, done, at, NOW + at, reported_at={"m": reported_at})


FACTS = st.builds(
    said,
    st.sampled_from(["p0", "p1", "p2"]),
    st.integers(1, 6),
    st.builds(waiting, st.sampled_from(Reason), st.integers(0, 200), st.sampled_from([None, "http://a/v1"])),
)


@given(st.lists(FACTS, max_size=12), st.randoms())
def test_order_and_copies_of_reports_do_not_matter(facts, chance):
    """The report with the highest number of each process counts."""
    facts = list({(fact.source, fact.number): fact for fact in facts}.values())
    mixed = facts * 2
    chance.shuffle(mixed)
    one, other = Stalls(), Stalls()
    for fact in facts:
        one.add(fact, 1.0)
    for fact in mixed:
        other.add(fact, 1.0)
    assert shown(one, at_work(), 2.0) == shown(other, at_work(), 2.0)
    last = {fact.source: fact for fact in sorted(facts, key=lambda fact: fact.number)}
    assert {one.reason for one in shown(one, at_work(), 2.0)} == {
        found.reason for fact in last.values() for found in fact.waiting
    } - {Reason.BATCHES_AT_WORK}


def test_a_batch_in_the_queue_says_so_until_it_starts():
    """The report of its place is shown in place of the silence of ingest, and not once the batch is at work."""
    stalls = Stalls(moved=(Status.VALIDATING, 0))
    stalls.add(said("queue-0", 1, waiting(Reason.BATCHES_AT_WORK, 0)), 1.0)
    for at, reason in (
        (2.0, Reason.BATCHES_AT_WORK),
        (SILENCE_SECONDS + 1, Reason.BATCHES_AT_WORK),
        (HOLD_SECONDS + 2, Reason.VALIDATION),
    ):
        (one,) = shown(stalls, at_work(Status.VALIDATING), at)
        assert one.reason is reason
    stalls.add(said("queue-0", 2, waiting(Reason.BATCHES_AT_WORK, 0)), HOLD_SECONDS + 2)
    assert shown(stalls, at_work(), HOLD_SECONDS + 3) == ()


@given(
    st.lists(st.builds(waiting, st.sampled_from(Reason), st.integers(0, 200)), max_size=40), st.integers(1, 300)
)
def test_merged_reasons_are_bounded(waits, left):
    """In number, and in lines; stalls come first, then reasons with the most lines."""
    found = merged(waits, left)
    assert len(found) <= WAITING_MAX
    order = [(one.reason in USUAL, -one.lines) for one in found]
    assert order == sorted(order)
    assert all(one.lines <= left for one in found)
    assert len(explanation(found)) < 1_000


def test_a_report_counts_for_its_hold_time():
    """A process that is gone makes room for others."""
    stalls = Stalls()
    for number in range(SOURCES_MAX + 3):
        stalls.add(said(f"p{number}", 1, waiting(lines=1)), 0.0)
    (one,) = shown(stalls, at_work(), 1.0)
    assert one.lines == SOURCES_MAX
    late = HOLD_SECONDS + 0.0
    assert late in stalls.due(1.0)
    (one,) = shown(stalls, at_work(), late)
    assert one.reason is Reason.NO_PROCESSOR
    assert stalls.add(said("p99", 1, waiting()), late)
    (one,) = shown(stalls, at_work(), late)
    assert one.reason is Reason.SERVER_REFUSES


def test_the_owner_detects_silence():
    """No check, no process, or processes that work on other batches: after a while without progress or report."""
    stalls = Stalls()
    assert shown(stalls, at_work(Status.VALIDATING), SILENCE_SECONDS - 1) == ()
    stalls = Stalls(moved=(Status.VALIDATING, 0))
    (one,) = shown(stalls, at_work(Status.VALIDATING), SILENCE_SECONDS)
    assert (one.reason, one.since) == (Reason.VALIDATION, NOW)
    assert shown(stalls, at_work(), SILENCE_SECONDS + 1) == ()
    (one,) = shown(stalls, at_work(), 2 * SILENCE_SECONDS + 1)
    assert (one.reason, one.lines, one.since) == (Reason.NO_PROCESSOR, TOTAL, NOW + SILENCE_SECONDS + 1)
    (one,) = shown(stalls, at_work(), 3 * SILENCE_SECONDS, reported_at=2.5 * SILENCE_SECONDS)
    assert one.reason is Reason.QUEUED
    assert shown(stalls, at_work(), 3 * SILENCE_SECONDS + 1, done=1) == ()
    assert shown(stalls, at_work(), 9 * SILENCE_SECONDS, done=TOTAL) == ()


def test_a_new_owner_goes_on_showing_the_last_reasons():
    """A deadline right after a restart needs them."""
    state = show(at_work(), (waiting(),))
    stalls = Stalls(moved=(Status.IN_PROGRESS, 0))
    assert shown(stalls, state, SILENCE_SECONDS - 1) == (waiting(),)
    stalls.add(said("p0", 1), SILENCE_SECONDS - 1)
    assert shown(stalls, state, SILENCE_SECONDS - 1) == ()


def outcome(fact):
    return (topics.OUTCOMES.name, ((codec.KIND, fact.kind.encode()),), codec.encode(fact))


@pytest.mark.parametrize("seed", range(40))
async def test_expired_lines_name_the_reason_they_waited(seed, tmp_path):
    """With crashes and late records: in the batch, in each error line, and after a rebuild."""
    simulation = Simulation(seed)
    simulation.store.objects |= dict.fromkeys(("files/in0", file_key("file-x")), input_file(TOTAL))
    events = list(lines(simulation.chance, 0, TOTAL))
    kept = simulation.chance.randint(1, len(events) // 2)
    facts = [said("p0", number, waiting(lines=20 + number)) for number in (1, 2, 3)]
    simulation.log.events += [*commands(0, TOTAL), *events[:kept]]
    simulation.log.events += map(outcome, facts)
    end = outcome(Tick(at=NOW + 3_600))
    late = [outcome(said("p0", 9)), outcome(said("p1", 1, waiting(Reason.STORE)))]
    simulation.log.events += [end, *late]
    await simulation.run(crashes_max=simulation.chance.randint(0, 6))
    batch = simulation.log.published[-1].batch
    assert batch.status is Status.EXPIRED
    (held,) = batch.tidemill.waiting
    assert held.reason is Reason.SERVER_REFUSES
    content = simulation.store.objects[simulation.log.files[batch.error_file_id]]
    expired = [found["error"] for found in map(json.loads, content.splitlines()) if found["error"]]
    assert expired
    for error in expired:
        assert error["code"] == "batch_expired"
        assert "http://a/v1 says (since 2026-09-" in error["message"]
    simulation.fuse.left, simulation.fuse.burnt = -1, False
    rebuild = Rebuild(batch=batch, store=OverlayStore(tmp_path, simulation.store), bill_copies=False)
    for _, headers, value in simulation.log.events:
        await rebuild.add(headers, value)
    assert (await rebuild.finish()).is_equal


@pytest.mark.parametrize("seed", range(40))
async def test_no_ended_batch_says_that_its_lines_wait(seed):
    """However it ends, with crashes, and without the report that takes the reasons back."""
    simulation = Simulation(seed)
    chance, total = simulation.chance, simulation.chance.choice((1, 10, TOTAL))
    simulation.store.objects["files/in0"] = input_file(TOTAL)
    results = list(lines(chance, 0, total))
    if chance.random() < 0.3:
        results.insert(chance.randint(0, len(results)), outcome(Tick(at=NOW + 3_600)))
    elif chance.random() < 0.3:
        cancel = CancelRequested(batch_id=batch_id(0), at=NOW + 5)
        results.insert(chance.randint(0, len(results)), (topics.COMMANDS.name, (), codec.encode(cancel)))
    for number in range(3):
        results.insert(chance.randint(0, len(results)), outcome(said("p0", number, waiting(lines=total))))
    simulation.log.events += [*commands(0, total), *results]
    await simulation.run(crashes_max=chance.randint(0, 4))
    batches = [record.batch for record in simulation.log.published]
    for batch in batches:
        check_waiting(batch)
    assert batches[-1].status.is_terminal


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
async def test_an_ended_batch_is_not_blocked(status):
    """Something blocked it before, such as a timer that failed."""
    simulation = Simulation(1)
    partition = simulation.partition()
    created, _ = commands(0, 0)
    await partition.load()
    await partition.command(codec.decode_command(created[2]), list)
    (active,) = partition.active_batches
    partition.batches.block(active, (Reason.FILES, "The work that is due failed: ValueError."))
    simulation.now += 3
    await partition.fact(Tick(at=simulation.now, writer=partition.owner.writer), list)
    assert [one.reason for one in simulation.log.published[-1].batch.tidemill.waiting] == [Reason.FILES]
    if status is Status.FAILED:
        fault = BatchError(code="empty_file", message="x")
        await partition.fact(Rejected(batch_id=batch_id(0), errors=(fault,), at=NOW + 5), list)
    else:
        await partition.command(CancelRequested(batch_id=batch_id(0), at=NOW + 5), list)
        simulation.now += 60
        await partition.fact(Tick(at=simulation.now, writer=partition.owner.writer), list)
        await asyncio.gather(*partition._background._tasks)
        await partition.fact(codec.decode_fact(simulation.log.events[-1][2]), list)
    assert simulation.log.published[-1].batch.status is status
    check_waiting(simulation.log.published[-1].batch)


async def test_a_stall_is_published_once_and_so_is_its_end():
    """The record has the reason, then that the batch is quiet; a batch that goes on has none."""
    simulation = Simulation(3)
    partition, gate = simulation.partition(), AckGate()
    await partition.load()
    simulation.log.events += [*commands(0, TOTAL), *lines(simulation.chance, 0, TOTAL)]
    events = len(simulation.log.events)
    for at in range(events // 2):
        simulation.now += 0.6
        await simulation.handle(partition, gate, at)
    assert simulation.log.published[-1].batch.tidemill.progress.lines_per_second > 0

    async def pass_(seconds, step=5.0):
        until = simulation.now + seconds
        while simulation.now < until:
            simulation.now = min(until, simulation.now + step)
            if partition.due_at is not None and partition.due_at <= simulation.now:
                await partition.fact(Tick(at=simulation.now, writer=partition.owner.writer), list)

    before = len(simulation.log.published)
    await partition.fact(said("p0", 1, waiting(lines=50)), list)
    await pass_(25)
    batch = simulation.log.published[-1].batch
    assert [one.reason for one in batch.tidemill.waiting] == [Reason.SERVER_REFUSES]
    assert (batch.tidemill.progress.lines_per_second, batch.tidemill.progress.done_latest_at) == (0, None)
    assert +batch_gauges.stalled([partition.active_batches]) == {"server_refuses": 1}
    await pass_(300)
    (one,) = simulation.log.published[-1].batch.tidemill.waiting
    assert one.reason is Reason.NO_PROCESSOR
    assert len(simulation.log.published) - before <= 5
    for at in range(events // 2, events):
        simulation.now += 0.6
        await simulation.handle(partition, gate, at)
    await asyncio.gather(*partition._background._tasks)
    for at in range(events, len(simulation.log.events)):
        await simulation.handle(partition, gate, at)
    assert simulation.log.published[-1].batch.status is Status.COMPLETED
    assert simulation.log.published[-1].batch.tidemill.waiting == ()


async def test_each_model_of_a_batch_has_its_own_reasons():
    """One that nothing serves shows while another goes on; the slack is that of each unfinished model."""
    simulation = Simulation(5)
    partition, gate = simulation.partition(), AckGate()
    await partition.load()
    models = ("a", "b", "c")
    results = list(lines(simulation.chance, 0, TOTAL, models))
    of = {model: [event for event in results if codec.lines_model(event[1]) == model] for model in models}
    simulation.log.events += [*commands(0, TOTAL, models), *of["a"], *of["c"]]
    await partition.fact(said("p0", 1, waiting()).model_copy(update={"model": "c"}), list)
    for at in range(len(simulation.log.events) - 1):
        simulation.now += 3
        await simulation.handle(partition, gate, at)
        if partition.due_at is not None and partition.due_at <= simulation.now:
            await partition.fact(Tick(at=simulation.now, writer=partition.owner.writer), list)
    batch = simulation.log.published[-1].batch
    (one,) = [one for one in batch.tidemill.waiting if one.reason is Reason.NO_PROCESSOR]
    assert "the model b" in one.message
    assert one.lines == batch.tidemill.models[1].request_counts.total
    assert set(batch_gauges.slack([partition.active_batches], simulation.now, simulation.now)) == {"b", "c"}


async def test_a_report_is_shown_at_once():
    """However short a time ago the batch was published: the next report comes ten seconds later."""
    simulation = Simulation(3)
    partition, gate = simulation.partition(), AckGate()
    await partition.load()
    simulation.log.events += commands(0, TOTAL)
    for at in range(len(simulation.log.events)):
        await simulation.handle(partition, gate, at)
    simulation.now += 1
    await partition.fact(Tick(at=simulation.now, writer=partition.owner.writer), list)
    assert simulation.log.published
    for waits in ([waiting(lines=50)], []):
        simulation.now += 0.1
        await partition.fact(said("p0", 2 - len(waits), *waits), list)
        assert [one.reason for one in simulation.log.published[-1].batch.tidemill.waiting] == [
            one.reason for one in waits
        ]


async def test_a_report_on_an_inactive_batch_is_ignored():
    """It may come after the end or a deletion, or name an unknown batch."""
    simulation = Simulation(1)
    partition = simulation.partition()
    await partition.load()
    acked = []
    await partition.fact(said("p0", 1, waiting()), lambda: acked.append(True))
    assert acked
    assert not partition.active_batches
    assert not simulation.log.published


@pytest.mark.parametrize(
    ("stream", "step"), [(batch_id(0), "append lines, or seal it"), ("crawl", "a record with tidemill-end")]
)
def test_an_open_batch_says_why_its_input_is_not_complete(stream, step):
    """It does not ask for more lines while all its lines are done, and names the step that its stream allows."""
    state = at_work().model_copy(update={"growing": True}).with_extras(stream=stream)
    stalls, late = Stalls(), SILENCE_SECONDS + 1
    assert shown(stalls, state, 0.0, TOTAL) == ()
    (one,) = shown(stalls, state, late, TOTAL)
    assert one.reason is Reason.OPEN
    assert step in one.message
    stalls.add(said("join", 1, waiting(Reason.FILES)), late)
    assert [one.reason for one in shown(stalls, state, late, TOTAL)] == [Reason.FILES]
