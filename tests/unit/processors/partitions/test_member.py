"""What a process does with calls in flight when it has lost its membership of the group."""

from types import SimpleNamespace

import pytest
from faust.types import TP

from tidemill.kafka.freeze_guard import MEMBERSHIP_SECONDS, Membership
from tidemill.processors.member import Member
from tidemill.schemas.log import topics


class Coordinator:
    """Keeps the marks of the group."""

    def __init__(self):
        self.marks = {}

    async def commit_offsets(self, _, offsets):
        """Take marks."""
        self.marks |= {tp.partition: offset for tp, offset in offsets.items()}

    async def fetch_committed_offsets(self, tps):
        """Give marks."""
        return {tp: self.marks[tp.partition] for tp in tps if tp.partition in self.marks}


class App:
    """The part of a Faust app that a member uses."""

    def __init__(self, clock):
        self.coordinator = Coordinator()
        self.membership = Membership(clock)
        client = SimpleNamespace(_coordinator=self.coordinator)
        self.consumer = SimpleNamespace(_thread=SimpleNamespace(_consumer=client))
        self.on_partitions_assigned = self
        self.drain = self.assigned = None

    def topic(self, *names, **_):
        """A topic."""
        return names

    def agent(self, _):
        """No records come."""
        return lambda take: take

    def timer(self, _):
        """No time passes."""
        return lambda work: work

    def connect(self, assigned, **_):
        """Note what an assignment calls."""
        self.assigned = assigned

    def crash(self, error):
        """Fail the test."""
        raise error

    async def assign(self, *numbers):
        """A rebalance ends."""
        await self.assigned(None, {TP(topics.PROCESSORS.name, number) for number in numbers})


class Lines(list):
    """The lines in flight."""

    batches = ()


def nothing(*_, **__):
    """Do nothing."""


async def at_once(*_, **__):
    """Do nothing, and take no time."""


@pytest.fixture
async def world():
    """A member that is alone, with its app, its calls in flight, and a clock."""
    now, lines = [0.0], Lines()
    app = App(lambda: now[0])
    dispatcher = SimpleNamespace(lines=lines, drain=at_once, forget_waiting=nothing, leave=nothing)
    model = SimpleNamespace(name="m", dispatcher=dispatcher, held_requests={})
    models = SimpleNamespace(at_work=[model], begin=nothing, run=at_once, halt=nothing, resume=nothing)
    assignment = SimpleNamespace(assign=nothing, leave=nothing, windows=())
    shared = SimpleNamespace(assignment=assignment, recovery=SimpleNamespace(start=nothing, stop=nothing))
    member = Member(app, models, shared, 4)
    yield SimpleNamespace(app=app, lines=lines, now=now)
    member.close()


def call(number):
    """A line in flight of a record of this partition."""
    return SimpleNamespace(entries=[SimpleNamespace(window=SimpleNamespace(number=number))])


async def test_a_member_that_was_cut_off_keeps_only_earlier_marks(world):
    """Partition 3 has had another owner, which waits for its mark; partition 1 may have been given away."""
    await world.app.assign(1, 3)
    world.lines.append(call(3))
    await world.app.drain(set())
    await world.app.assign(1)
    world.lines.append(call(1))
    assert world.app.coordinator.marks[3].metadata
    world.app.membership.renew(world.now[0])
    world.now[0] += MEMBERSHIP_SECONDS + 1
    assert not world.app.membership.is_valid
    await world.app.drain(set())
    await world.app.assign(2)
    assert world.app.coordinator.marks[3].metadata
    assert 1 not in world.app.coordinator.marks
