"""Without a valid membership in its group, a processor starts no call: another may make the same calls."""

import asyncio
import logging
from types import SimpleNamespace

import pytest
from support.waiting import WAIT_SECONDS_MAX, until

from tidemill.faust import stage_runner
from tidemill.kafka.freeze_guard import MEMBERSHIP_SECONDS, Membership, MembershipGuard
from tidemill.processors.member import REBALANCE_DRAIN_SECONDS_MAX, Member
from tidemill.processors.models import Models, OpenBatches
from tidemill.processors.partitions.handover import Handover
from tidemill.processors.scheduling.handover_reports import HandoverReports
from tidemill.processors.scheduling.stalls import STALL_SECONDS
from tidemill.schemas.log import topics
from tidemill.schemas.resources.waiting import Reason


class Dispatcher:
    """The part of a dispatcher that the guard uses."""

    def __init__(self):
        self.calls = True
        self.drained_seconds = None
        self.drained = asyncio.Event()
        self.drained.set()
        self.lines = ()

    def halt(self):
        self.calls = False

    def resume(self):
        self.calls = True

    async def drain(self, seconds, level):
        self.drained_seconds, self.level = seconds, level
        self.halt()
        await self.drained.wait()

    def forget_waiting(self): ...


class Marks:
    """A coordinator that takes all marks."""

    def __init__(self):
        self.marks = {}

    async def write(self, marks):
        self.marks |= marks

    async def read(self, numbers):
        return {number: text for number in numbers if (text := self.marks.get(number))}


class Consumer:
    """A consumer that commits at once."""

    def assignment(self):
        return ()

    async def commit(self): ...


@pytest.fixture
def times():
    return [100.0]


@pytest.fixture
def member(times):
    member, models = Member.__new__(Member), Models.__new__(Models)
    membership = Membership(clock=lambda: times[-1])
    member._app = SimpleNamespace(membership=membership, rebalancing=True, stop_seconds=33.0)
    member._clock, member._numbers = lambda: times[-1], {3}
    member._app.membership.renew(100.0)
    held_requests = SimpleNamespace(clear=lambda: None)
    models.awake = {
        name: SimpleNamespace(name=name, dispatcher=Dispatcher(), held_requests=held_requests)
        for name in ("one", "other")
    }
    models._leaving, member._work, member._models = {}, None, models
    member._is_leaving = member._has_finished = False
    member._stopping_since, member._handover_reports = None, HandoverReports(lambda: 1e9)
    models.open_batches = OpenBatches()
    member.marks = Marks()
    member._handover, member._handing_over = Handover(member.marks, lambda: times[-1]), None
    member._shared = SimpleNamespace(assignment=SimpleNamespace(windows=(), leave=lambda: None))
    member._guard = MembershipGuard(member._app.membership, models)
    return member


def calls(member):
    """Whether each model may start calls."""
    return [model.dispatcher.calls for model in member._models.awake.values()]


async def test_no_call_starts_without_the_coordinator(member, times):
    """Calls resume once it answers."""
    await member._hold()
    assert calls(member) == [True, True]
    times.append(100.0 + MEMBERSHIP_SECONDS)
    await member._hold()
    assert calls(member) == [False, False]
    member._app.membership.renew(times[-1])
    await member._hold()
    assert calls(member) == [True, True]


@pytest.mark.parametrize(
    ("silent_seconds", "drained_seconds"), [(0.0, REBALANCE_DRAIN_SECONDS_MAX), (MEMBERSHIP_SECONDS, 0.0)]
)
async def test_a_lost_membership_waits_for_no_call(member, times, silent_seconds, drained_seconds):
    """Partitions that are handed over wait for the calls in flight; those that are gone do not."""
    times.append(100.0 + silent_seconds)
    await member._leave(set())
    assert {model.dispatcher.drained_seconds for model in member._models.awake.values()} == {drained_seconds}
    assert {model.dispatcher.level for model in member._models.awake.values()} == {logging.INFO}


async def test_calls_do_not_resume_between_revocation_and_assignment(member, times):
    """Even if the coordinator answers again."""
    times.append(100.0 + MEMBERSHIP_SECONDS)
    await member._hold()
    await member._leave(set())
    member._app.membership.clear()
    await member._hold()
    assert calls(member) == [False, False]


def in_flight(member):
    """Each model has a call in flight, which ends when `drained` is set."""
    for model in member._models.awake.values():
        model.dispatcher.drained.clear()
        model.dispatcher.lines = [SimpleNamespace(entries=[SimpleNamespace(window=SimpleNamespace(number=3))])]


def drained(member):
    """How long each model was asked to wait."""
    return {model.dispatcher.drained_seconds for model in member._models.awake.values()}


async def test_a_stop_during_a_rebalance_has_the_time_of_a_stop(member):
    """The rebalance that still waits for the same calls leaves no mark once the stop is over."""
    in_flight(member)
    member._app.drain, member._app.finish, member._app.consumer = member._leave, member._finish, Consumer()
    member._app.stop = Consumer().commit
    leaving = asyncio.create_task(member._leave(set()))
    await until(lambda: drained(member) == {REBALANCE_DRAIN_SECONDS_MAX}, "the rebalance")
    stop = stage_runner._stop([member._app], SimpleNamespace(stop=Consumer().commit), has_crashed=False)
    stopping = asyncio.create_task(stop)
    await until(lambda: drained(member) == {33.0}, "the stop")
    for model in member._models.awake.values():
        model.dispatcher.drained.set()
    await stopping
    await leaving
    assert set(member.marks.marks.values()) <= {""}


async def test_a_hand_over_stops_no_recovery(member):
    """The other partitions wait for its read: it may take long, and a hand-over may come every second."""
    taken, handovers = [], []
    member._shared.assignment.hand_over = lambda: handovers.append(1)
    member._models.extend = lambda numbers, part: taken.append((numbers, part))
    member._numbers, member._partitions = {0}, 4
    member.marks.marks[3] = "other 1"
    await member._handover.take({3})
    handing_over = asyncio.create_task(member._hand_over())
    member.marks.marks.clear()
    await handing_over
    assert (taken, handovers) == ([({3}, 0.5)], [1])


async def test_an_assignment_ends_the_hand_over_before_it(member):
    """Of a process without partitions none are revoked. The earlier task would take what the later one frees."""
    member._shared.recovery = SimpleNamespace(start=lambda _: None, stop=lambda: None)
    member._shared.assignment.assign = lambda _: None
    member._models.begin = lambda *_: None
    member._models.run = asyncio.Event().wait
    member._partitions, member._app.crash, member.marks.marks[3] = 4, print, "other 1"
    partition = SimpleNamespace(topic=topics.PROCESSORS.name, partition=3)
    await member._assigned(None, [partition])
    first = member._handing_over
    await member._assigned(None, [partition])
    await asyncio.wait([first], timeout=WAIT_SECONDS_MAX)
    assert first.cancelled()
    assert not member._handing_over.done()
    member._stop_handover()
    member._stop_work()


async def test_a_rebalance_after_a_stop_leaves_no_mark(member):
    """The process ends: the next owners need not wait."""
    await member._finish(set())
    in_flight(member)
    leaving = asyncio.create_task(member._leave(set()))
    for model in member._models.awake.values():
        model.dispatcher.drained.set()
    await leaving
    assert set(member.marks.marks.values()) <= {""}


async def test_lines_that_wait_for_calls_of_others_have_a_reason(member, times):
    """Without it, results would say that no processor is there. Batches with pending lines have their own."""
    for batch_id in ("pending", "unread"):
        member._models.open_batches.open(batch_id, frozenset({"one"}))
    member._models.awake["one"].dispatcher.lines = SimpleNamespace(batches={"pending": ()})
    member._models.awake["other"].dispatcher.lines = SimpleNamespace(batches={})
    member.marks.marks[3] = "other 1"
    await member._handover.take({3})
    began_at = times[-1]
    assert member._waits(began_at + STALL_SECONDS - 1) == []
    (fact,) = member._waits(began_at + STALL_SECONDS)
    assert (fact.batch_id, fact.model) == ("unread", "one")
    assert [(one.reason, one.since) for one in fact.waiting] == [(Reason.IN_FLIGHT, 1e9 - STALL_SECONDS)]
    assert member._waits(began_at + STALL_SECONDS + 1) == []
    assert len(member._waits(began_at + 3 * STALL_SECONDS)) == 1
    member.marks.marks.clear()
    await member._handover.step()
    assert [(one.batch_id, one.waiting) for one in member._waits(began_at + 4 * STALL_SECONDS)] == [("unread", ())]
    assert member._waits(began_at + 5 * STALL_SECONDS) == []
    member._stopping_since = began_at
    assert len(member._waits(began_at + 6 * STALL_SECONDS)) == 1


async def test_a_process_that_lost_its_group_marks_no_partition_for_its_old_calls(member, times):
    """They are still in flight at a rebalance after its return; the owner since has calls there, and a mark."""
    in_flight(member)
    for model in member._models.awake.values():
        model.dispatcher.drained.set()
    times.append(100.0 + MEMBERSHIP_SECONDS)
    await member._leave(set())
    owner = Handover(member.marks, lambda: times[-1])
    await owner.hold({3: [lambda: True]})
    marks = dict(member.marks.marks)
    member._app.membership.renew(times[-1])
    await member._leave(set())
    assert member.marks.marks == marks
