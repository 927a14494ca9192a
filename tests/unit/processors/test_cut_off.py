"""Without a valid membership in its group, a processor starts no call: another may make the same calls."""

from types import SimpleNamespace

import pytest

from tidemill.kafka.freeze_guard import MEMBERSHIP_SECONDS, Membership, MembershipGuard
from tidemill.processors.member import REBALANCE_DRAIN_SECONDS_MAX, Member
from tidemill.processors.models import Models
from tidemill.processors.partitions.handover import Handover


class Dispatcher:
    """The part of a dispatcher that the guard uses."""

    def __init__(self):
        self.calls = True
        self.drained_seconds = None
        self.lines = ()

    def halt(self):
        self.calls = False

    def resume(self):
        self.calls = True

    async def drain(self, seconds):
        self.drained_seconds = seconds
        self.halt()

    def forget_waiting(self): ...


class Marks:
    """A coordinator that takes all marks."""

    async def write(self, marks): ...


@pytest.fixture
def times():
    return [100.0]


@pytest.fixture
def member(times):
    member, models = Member.__new__(Member), Models.__new__(Models)
    membership = Membership(clock=lambda: times[-1])
    member._app = SimpleNamespace(membership=membership, rebalancing=True, stop_seconds=7.0)
    member._app.membership.renew(100.0)
    held_records = SimpleNamespace(clear=lambda: None)
    models.awake = {
        name: SimpleNamespace(dispatcher=Dispatcher(), held_records=held_records) for name in ("one", "other")
    }
    models._leaving, member._work, member._models = {}, None, models
    member._is_leaving = member._is_stopping = False
    member._handover, member._handing_over = Handover(Marks(), lambda: times[-1]), None
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


async def test_calls_do_not_resume_between_revocation_and_assignment(member, times):
    """Even if the coordinator answers again."""
    times.append(100.0 + MEMBERSHIP_SECONDS)
    await member._hold()
    await member._leave(set())
    member._app.membership.clear()
    await member._hold()
    assert calls(member) == [False, False]
