"""A process that was frozen ends before a request leaves; one that its group may have given up waits."""

import asyncio
from types import SimpleNamespace

import pytest

from tidemill.kafka.freeze_guard import FROZEN_SECONDS_MAX, LEASE_SECONDS, Lease, Membership, followed, guarded


class Ended(Exception):
    pass


def end():
    raise Ended


@pytest.fixture
def times():
    return [100.0]


@pytest.fixture
def lease(times):
    return Lease(end, clock=lambda: times[-1])


def test_who_goes_on_after_a_while_may_write(lease, times):
    """Beats come late on a busy machine."""
    times.append(100.0 + FROZEN_SECONDS_MAX)
    lease.check()
    lease.beat()
    times.append(times[-1] + FROZEN_SECONDS_MAX)
    lease.check()


@pytest.mark.parametrize("first", ["check", "beat"])
def test_who_stood_still_ends(lease, times, first):
    """Whichever thread is the first to go on."""
    times.append(100.1 + FROZEN_SECONDS_MAX)
    with pytest.raises(Ended):
        getattr(lease, first)()


async def test_no_request_leaves_after_a_freeze(lease, times):
    """The check stands before the door, and only once."""

    class Client:
        sent = 0

        async def send(self, node, request, *, group=None):
            self.sent += 1
            return node, request, group

    client = Client()
    guarded(client, lease.check)
    guarded(client, lease.check)
    assert await client.send(1, "r", group="g") == (1, "r", "g")
    times.append(200.0)
    with pytest.raises(Ended):
        await client.send(1, "r")
    assert client.sent == 1


def test_a_membership_holds_from_what_was_sent(times):
    """Not from when the answer came; and before the first assignment there is nothing to lose."""
    membership = Membership(clock=lambda: times[-1])
    assert membership.holds
    membership.renewed(90.0)
    times.append(90.0 + LEASE_SECONDS - 0.1)
    assert membership.holds
    times.append(90.0 + LEASE_SECONDS)
    assert not membership.holds
    membership.left()
    assert membership.holds, "who has let go of everything may write"


async def test_a_request_waits_for_the_membership(lease, times):
    """It leaves once the coordinator answers again."""
    membership, sent = Membership(clock=lambda: times[-1]), []

    async def send(request):
        sent.append(request)

    client = SimpleNamespace(send=send)
    guarded(client, lease.check, membership.held)
    membership.renewed(0.0)
    waiting = asyncio.ensure_future(client.send("r"))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert (done, sent) == (set(), [])
    membership.renewed(times[-1])
    await waiting
    assert sent == ["r"]


class SyncGroupRequest:
    """As aiokafka's, as far as it matters."""


class Coordinator:
    """As aiokafka's, as far as it is reached into."""

    coordinator_id = 2

    def __init__(self, answers):
        self.closed = []
        self._hung_up = asyncio.Event()
        self._answers = list(answers)
        self._client = SimpleNamespace(_conns={(node, "g"): self._connection(node) for node in (1, 2)})

    def _connection(self, node):
        def close():
            self.closed.append(node)
            self._hung_up.set()

        return SimpleNamespace(close=close)

    async def _do_heartbeat(self):
        answer = self._answers.pop(0)
        if answer is None:
            await self._hung_up.wait()
        return bool(answer)

    async def _send_req(self, request):
        del request
        return SimpleNamespace(error_code=self._answers.pop(0))


async def test_what_the_coordinator_answers_renews():
    """A heartbeat that it takes and the end of a join; not a heartbeat that it refuses, and no other request."""
    renewed = []
    membership = SimpleNamespace(renewed=renewed.append)
    coordinator = Coordinator([True, False, 0, 25, 0])
    followed(coordinator, membership)
    followed(coordinator, membership)
    assert len(renewed) == 1, "what has just got an assignment is counted in"
    assert await coordinator._do_heartbeat()
    assert not await coordinator._do_heartbeat()
    assert len(renewed) == 2
    for request in (SyncGroupRequest(), SyncGroupRequest(), object()):
        await coordinator._send_req(request)
    assert len(renewed) == 3


async def test_a_coordinator_that_says_nothing_is_asked_anew(monkeypatch):
    """Over another connection, long before the request would be given up."""
    monkeypatch.setattr("tidemill.kafka.freeze_guard.HEARTBEAT_SECONDS_MAX", 0.05)
    renewed = []
    coordinator = Coordinator([None])
    followed(coordinator, SimpleNamespace(renewed=renewed.append))
    assert not await coordinator._do_heartbeat()
    assert coordinator.closed == [2]
    assert len(renewed) == 1
