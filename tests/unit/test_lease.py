"""A process that was frozen writes nothing: it ends before the first request leaves."""

import pytest

from tidemill.lease import FROZEN_SECONDS_MAX, Lease, guarded


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
