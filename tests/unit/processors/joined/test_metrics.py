"""Limits that follow a server's metrics, which count each input of a call as a request."""

from pathlib import Path

import pytest
from support.dispatching import World, joinable
from support.servers import server
from support.waiting import until

from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.limits.headroom import Headroom
from tidemill.processors.limits.server_metrics import ServerMetrics
from tidemill.schemas import ids

CAPACITY = 64
INPUTS = 8


@pytest.mark.parametrize("others", [0, 16])
async def test_headroom_does_not_take_our_inputs_for_requests_of_others(others: int) -> None:
    """Calls with eight inputs each fill only the part of the server that others leave."""
    one = server("http://a", ConcurrencyLimit(1_000), headroom=Headroom(chance=lambda: 0.5))
    most = 0
    for now in range(120):
        one.in_flight = one.allowed(float(now) + 0.99)
        one.company = (INPUTS - 1) * one.in_flight
        requests = others + INPUTS * one.in_flight
        running = min(CAPACITY, requests)
        metrics = ServerMetrics(running=running, waiting=requests - running)
        one.apply_metrics(metrics, one.in_flight, float(now) + 1)
        if now > 60:
            most = max(most, requests)
    assert 0.5 * CAPACITY <= most <= CAPACITY


async def test_a_server_knows_the_inputs_in_flight(tmp_path: Path) -> None:
    """As long as the calls last, however they end."""
    world = World(tmp_path, inputs_per_call=INPUTS, limit=2)
    world.line = joinable
    world.inference.gate.clear()
    world.publish(ids.new_batch_id(), 0, 2 * INPUTS)
    await until(lambda: world.inference.in_flight == 2, "two calls")
    servers = [backend.server for backend in world.fleet.backends]
    assert sum(one.company for one in servers) == 2 * (INPUTS - 1)
    await world.stage.close()
    assert sum(one.company for one in servers) == 0
