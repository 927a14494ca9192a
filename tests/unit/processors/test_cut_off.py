"""A processor that its group may have given up begins no call: somebody else may call for the same lines."""

from types import SimpleNamespace

import pytest

from tidemill.kafka.freeze_guard import LEASE_SECONDS, Brake, Membership
from tidemill.processors.model_app import ModelApp


class Dispatcher:
    """As the model's, as far as it matters."""

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
    model.app.membership.renewed(100.0)
    model.dispatcher = Dispatcher()
    model._assignment = SimpleNamespace(lanes=(), leave=lambda: None)
    model.held_records = SimpleNamespace(clear=lambda: None)
    model._brake = Brake(model.app.membership, model.dispatcher)
    return model


async def test_no_call_is_begun_without_the_coordinator(model, times):
    """And calls begin again once it answers."""
    await model._hold()
    assert model.dispatcher.calls
    times.append(100.0 + LEASE_SECONDS)
    await model._hold()
    assert not model.dispatcher.calls
    model.app.membership.renewed(times[-1])
    await model._hold()
    assert model.dispatcher.calls


async def test_a_rebalance_begins_none(model, times):
    """Where partitions are let go of, calls wait for the next assignment."""
    times.append(100.0 + LEASE_SECONDS)
    await model._hold()
    await model._leave(set())
    model.app.membership.left()
    await model._hold()
    assert not model.dispatcher.calls
