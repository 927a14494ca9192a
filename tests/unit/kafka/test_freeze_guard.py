"""A process ends before its first request after a freeze, and waits while its membership is not confirmed."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from tidemill.kafka.freeze_guard import (
    FROZEN_SECONDS_MAX,
    MEMBERSHIP_SECONDS,
    FreezeGuard,
    Membership,
    guard_requests,
    track_membership,
)


class Ended(Exception):
    pass


def end():
    raise Ended


@pytest.fixture
def times():
    return [100.0]


@pytest.fixture
def guard(times):
    return FreezeGuard(end, clock=lambda: times[-1])


def test_a_short_pause_is_no_freeze(guard, times):
    """On a busy machine the thread records the time late."""
    times.append(100.0 + FROZEN_SECONDS_MAX)
    guard.check()
    guard.record()
    times.append(times[-1] + FROZEN_SECONDS_MAX)
    guard.check()


@pytest.mark.parametrize("first", ["check", "record"])
def test_a_frozen_process_ends(guard, times, first):
    """Whichever thread resumes first."""
    times.append(100.1 + FROZEN_SECONDS_MAX)
    with pytest.raises(Ended):
        getattr(guard, first)()


async def test_no_request_leaves_after_a_freeze(guard, times):
    """Guarding a client twice has no further effect."""

    async def wait():
        guard.check()

    class Client:
        sent = 0

        async def send(self, node, request, *, group=None):
            self.sent += 1
            return node, request, group

    client = Client()
    guard_requests(client, wait)
    guard_requests(client, wait)
    assert await client.send(1, "r", group="g") == (1, "r", "g")
    times.append(200.0)
    with pytest.raises(Ended):
        await client.send(1, "r")
    assert client.sent == 1


def test_a_membership_is_valid_from_the_sending_of_the_heartbeat(times):
    """Not from its answer; without partitions it is always valid."""
    membership = Membership(clock=lambda: times[-1])
    assert membership.is_valid
    membership.renew(90.0)
    times.append(90.0 + MEMBERSHIP_SECONDS - 0.1)
    assert membership.is_valid
    times.append(90.0 + MEMBERSHIP_SECONDS)
    assert not membership.is_valid
    membership.clear()
    assert membership.is_valid


async def test_a_request_waits_for_a_valid_membership(times):
    """It leaves once the coordinator answers again."""
    membership, sent = Membership(clock=lambda: times[-1]), []

    async def send(request):
        sent.append(request)

    client = SimpleNamespace(send=send)
    guard_requests(client, membership.wait_valid)
    membership.renew(0.0)
    waiting = asyncio.ensure_future(client.send("r"))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert (done, sent) == (set(), [])
    membership.renew(times[-1])
    await waiting
    assert sent == ["r"]


class SyncGroupRequest:
    """Has the name of aiokafka's class."""


class Coordinator:
    """The part of aiokafka's coordinator that the module uses."""

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


async def test_answers_of_the_coordinator_renew_the_membership():
    """An accepted heartbeat and a finished join do; a refused heartbeat and other requests do not."""
    renewed = []
    membership = SimpleNamespace(renew=renewed.append, clock=time.monotonic)
    coordinator = Coordinator([True, False, 0, 25, 0])
    track_membership(coordinator, membership)
    track_membership(coordinator, membership)
    assert len(renewed) == 1, "an assignment proves the membership"
    assert await coordinator._do_heartbeat()
    assert not await coordinator._do_heartbeat()
    assert len(renewed) == 2
    for request in (SyncGroupRequest(), SyncGroupRequest(), object()):
        await coordinator._send_req(request)
    assert len(renewed) == 3


async def test_a_silent_coordinator_gets_a_new_connection(monkeypatch):
    """Long before the request times out."""
    monkeypatch.setattr("tidemill.kafka.freeze_guard.HEARTBEAT_SECONDS_MAX", 0.05)
    renewed = []
    coordinator = Coordinator([None])
    track_membership(coordinator, SimpleNamespace(renew=renewed.append, clock=time.monotonic))
    assert not await coordinator._do_heartbeat()
    assert coordinator.closed == [2]
    assert len(renewed) == 1
