"""Without a valid membership in its group, a processor starts no call: another may make the same calls."""

from types import SimpleNamespace

import pytest

from tidemill.kafka.freeze_guard import MEMBERSHIP_SECONDS, Membership, MembershipGuard
from tidemill.processors.model_app import ModelApp


class Dispatcher:
    """The part of a dispatcher that the guard uses."""

    def __init__(self):
        self.calls = True

    def halt(self):
        self.calls = False

    def resume(self):
        self.calls = True

    async def drain(self, seconds):
        del seconds
        self.halt()

    def forget_waiting(self): ...


@pytest.fixture
def times():
    return [100.0]


@pytest.fixture
def model(times):
    model = ModelApp.__new__(ModelApp)
    model.app = SimpleNamespace(membership=Membership(clock=lambda: times[-1]), rebalancing=True)
    model.app.membership.renew(100.0)
    model.dispatcher = Dispatcher()
    model._assignment = SimpleNamespace(windows=(), leave=lambda: None)
    model.held_records = SimpleNamespace(clear=lambda: None)
    model._membership_guard = MembershipGuard(model.app.membership, model.dispatcher)
    return model


async def test_no_call_starts_without_the_coordinator(model, times):
    """Calls resume once it answers."""
    await model._hold()
    assert model.dispatcher.calls
    times.append(100.0 + MEMBERSHIP_SECONDS)
    await model._hold()
    assert not model.dispatcher.calls
    model.app.membership.renew(times[-1])
    await model._hold()
    assert model.dispatcher.calls


async def test_calls_do_not_resume_between_revocation_and_assignment(model, times):
    """Even if the coordinator answers again."""
    times.append(100.0 + MEMBERSHIP_SECONDS)
    await model._hold()
    await model._leave(set())
    model.app.membership.clear()
    await model._hold()
    assert not model.dispatcher.calls
