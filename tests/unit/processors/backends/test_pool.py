"""Which backend takes the next call."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.servers import backend, configured, server
from support.virtual import failed

from tidemill.configuration.servers import Model
from tidemill.configuration.servers import Server as Settings
from tidemill.processors.backends.backend import SCHEDULE_SECONDS, Backend, Permit
from tidemill.processors.backends.permit_queue import NextLine
from tidemill.processors.backends.pool import REFUSED_PART_MAX, BackendPool
from tidemill.processors.failures import Fault, History
from tidemill.processors.limits.concurrency_limit import START_CALLS, ConcurrencyLimit
from tidemill.processors.limits.headroom import Headroom
from tidemill.processors.limits.server_metrics import ServerMetrics
from tidemill.schemas.resources.waiting import Reason

faults = st.sampled_from([Fault.SERVER, Fault.ACCESS_OR_LINE, Fault.SERVER_OR_LINE])


def fail(
    fleet: BackendPool, fault: Fault, now: float, number: int = 0, *, is_suspected=False, **more: bool
) -> str:
    """Make a call that fails; returns the backend that it went to."""
    call = fleet.acquire(now)
    assert call is not None
    history = History(now, failures=2, counted=1) if is_suspected else None
    fleet.failed(call, failed(fault, line=("batch", number), at=now, **more), history)
    return call.backend.base


@given(st.lists(st.integers(0, START_CALLS - 1), min_size=1, max_size=6))
def test_the_least_loaded_is_taken(loads: list[int]) -> None:
    """Among healthy backends."""
    fleet = BackendPool(
        [backend(str(number), ConcurrencyLimit(64), in_flight=load) for number, load in enumerate(loads)]
    )
    call = fleet.acquire(0.0)
    assert call is not None
    assert call.backend.server.in_flight == min(loads) + 1


@given(faults, st.integers(10, 200))
def test_a_broken_backend_swallows_few_calls(fault: Fault, calls: int) -> None:
    """A backend that fails at once has no calls in flight, but the other one still gets the calls."""
    fleet = BackendPool([backend("broken", ConcurrencyLimit(64)), backend("well", ConcurrencyLimit(64))])
    asked: Counter[str] = Counter()
    for number in range(calls):
        now = number / 1000
        call = fleet.acquire(now)
        assert call is not None
        asked[call.backend.base] += 1
        if call.backend.base == "broken":
            fleet.failed(call, failed(fault, line=("batch", number), at=now))
        else:
            fleet.answered(call, now)
    assert asked["broken"] <= 4


def test_when_all_are_down_nobody_is_called() -> None:
    """And the pool knows when to look again: at the end of the first pause."""
    fleet = BackendPool([backend("a", ConcurrencyLimit(64)), backend("b", ConcurrencyLimit(64))])
    assert {fail(fleet, Fault.SERVER, 0.0), fail(fleet, Fault.SERVER, 0.1)} == {"a", "b"}
    assert fleet.acquire(0.2) is None
    at = fleet.opens_at(0.2)
    assert at == min(one.server.breaker.until for one in fleet.backends)
    assert fleet.acquire(at) is not None
    assert fleet.acquire(at) is None


def test_one_that_is_drained_gets_nothing() -> None:
    """Its calls in flight end as usual."""
    fleet = BackendPool(
        [backend("a", ConcurrencyLimit(64), drain=Reason.DRAINED), backend("b", ConcurrencyLimit(64), in_flight=5)]
    )
    assert [fail(fleet, Fault.SERVER_OR_LINE, 0.0) for _ in range(2)] == ["b", "b"]
    assert BackendPool([backend("a", ConcurrencyLimit(64), drain=Reason.DRAINED)]).acquire(0.0) is None


def test_a_ceiling_of_the_hour_holds() -> None:
    """No calls at noon; the pool knows when to look again, whatever else may end before."""
    ceilings = [2]
    fleet = BackendPool([backend("a", ConcurrencyLimit(64), scheduled_limit=lambda: ceilings[-1])])
    first, second = fleet.acquire(0.0), fleet.acquire(0.0)
    assert first
    assert second
    assert fleet.acquire(0.0) is None
    fleet.release(first)
    fleet.release(second)
    assert fleet.opens_at(0.0) is None
    ceilings.append(0)
    assert fleet.acquire(200.0) is None
    assert fleet.opens_at(200.0) == 200.0 + SCHEDULE_SECONDS


@pytest.mark.parametrize(
    ("servers", "of_model", "part", "expected"),
    [
        ([{}], None, 1.0, 8 + 2),
        ([{"unacknowledged_max": 0}], None, 1.0, 8),
        ([{"unacknowledged_max": 100}], None, 1.0, 8 + 100),
        ([{}], None, 0.5, 4 + 1),
        ([{}, {}], None, 1.0, 16 + 4),
        ([{}, {}], 4, 1.0, 4 + 1),
        ([{}, {"drain": True}], None, 1.0, 8 + 2),
    ],
)
def test_calls_end_at_the_bound_of_results(
    servers: list[dict[str, object]], of_model: int | None, part: float, expected: int
) -> None:
    """A quarter of the calls by default, of each server, for the model's and the process's part of them."""
    named = {
        f"gpu-{n}": Settings.model_validate({"url": f"http://gpu-{n}/v1", "max_in_flight": 8, **more})
        for n, more in enumerate(servers)
    }
    made = configured({"m": Model(servers=tuple(named), max_in_flight=of_model)}, named)
    pool = made.pools["m"]
    for one in pool.backends:
        one.server.limit = ConcurrencyLimit(1_000)
    pool.set_part(part, 0.0)
    results = 0
    while (permit := pool.acquire(0.0)) is not None:
        pool.answered(permit, 0.0)
        pool.settled(permit.backend)
        results += 1
    assert results == expected
    assert pool.awaits_log
    pool.acknowledged([pool.called[0]])
    assert not pool.awaits_log
    assert pool.acquire(0.0) is not None


def test_one_line_opens_nothing_and_cuts_nothing() -> None:
    """With any refusal, and any number of them, while no other line is called."""
    for more in ({}, {"is_full": True}):
        one = backend("a", ConcurrencyLimit(64))
        fleet = BackendPool([one])
        fail(fleet, Fault.SERVER_OR_LINE, 0.0, **more)
        failures, sure = one.server.breaker.failures, one.server.limit.sure
        now = one.server.breaker.until
        for _ in range(100):
            now += 1
            if one.server.breaker.failures:
                # After a pause any line is a probe.
                break
            fail(fleet, Fault.SERVER_OR_LINE, now, **more)
        assert (one.server.breaker.failures, one.server.limit.sure) == (failures, sure)


def test_suspected_lines_open_nothing_and_cut_nothing() -> None:
    """A hundred of them: they failed before while others were answered."""
    one = backend("a", ConcurrencyLimit(64))
    fleet = BackendPool([one])
    sure = one.server.limit.sure
    for number in range(100):
        fail(fleet, Fault.SERVER_OR_LINE, 0.0, number, is_suspected=True, is_full=bool(number % 2))
    assert (one.server.breaker.failures, one.server.breaker.row, one.server.limit.sure) == (0, 0, sure)
    assert one.server.refused_part == 0


def test_a_full_server_is_told_from_one_that_refuses_some() -> None:
    """By the share of calls that it refuses."""
    for every, is_full in ((2, True), (20, False)):
        one = backend("a", ConcurrencyLimit(64))
        fleet = BackendPool([one])
        for number in range(400):
            now = max(number / 10, one.server.breaker.until)
            if number % every:
                call = fleet.acquire(now)
                assert call is not None
                fleet.answered(call, now)
            else:
                fail(fleet, Fault.SERVER_OR_LINE, now, number, is_full=True)
        assert (one.server.refused_part > REFUSED_PART_MAX) == is_full


def test_a_line_avoids_the_server_that_failed_it() -> None:
    """As long as another server is healthy, even a full one; and the line does not probe a third one."""
    first, second = (
        backend("a", ConcurrencyLimit(64)),
        backend("b", ConcurrencyLimit(START_CALLS), in_flight=START_CALLS),
    )
    fleet = BackendPool([first, second])
    assert fleet.acquire(0.0, avoid=first) is None
    assert fleet.acquire(0.0, avoid=second) is not None
    second.server.breaker.failed(failed(Fault.SERVER), is_probe=False)
    call = fleet.acquire(0.0, avoid=first)
    assert call is not None
    assert call.backend is first
    first.server.drain = True
    assert fleet.acquire(second.server.breaker.until, avoid=first, probes=False) is None
    second.server.in_flight = 0
    assert fleet.acquire(second.server.breaker.until, avoid=first) is not None


def test_answers_are_known_by_endpoint() -> None:
    """An answer of embeddings proves nothing for chat, and an error of the line's own proves nothing at all."""
    fleet = BackendPool([backend("a", ConcurrencyLimit(64))])
    for now, endpoint in ((1.0, "/v1/embeddings"), (2.0, None)):
        call = fleet.acquire(now)
        assert call is not None
        fleet.answered(call, now + 10, endpoint=endpoint, begun=now)
    assert fleet.that_answered("/v1/embeddings", 0.5) == fleet.backends
    assert not fleet.that_answered("/v1/embeddings", 1.0)
    assert not fleet.that_answered("/v1/chat/completions", 0.0)


def test_a_call_that_breaks_off_with_a_server_that_goes_is_not_the_fault_of_its_line() -> None:
    """However many others the server answered; the next call goes elsewhere at once, and no probe goes there."""
    going, staying = (server(name, ConcurrencyLimit(64)) for name in ("going", "staying"))
    pool = BackendPool([Backend(going)])
    call, other = pool.acquire(0.0), pool.acquire(0.0)
    assert call is not None
    assert other is not None
    pool.answered(other, 2.0, endpoint="/v1/embeddings", begun=1.0)
    pool.configure([staying], calls_max=None, now=3.0)
    failure = failed(Fault.SERVER_OR_LINE, line=("batch", 0), endpoint="/v1/embeddings", at=3.0)
    evidence = pool.failed(call, failure, History(0.0))
    assert (evidence.others_answered, evidence.other_is_well) == (False, True)
    assert going.in_flight == 0
    assert pool.acquire_health_probe(call.backend, 4.0) is None
    elsewhere = pool.acquire(4.0, avoid=call.backend)
    assert elsewhere is not None
    assert elsewhere.backend.server is staying


FULL: list[dict[str, Any]] = [{"scheduled_limit": lambda: 0}, {"calls_max": 8, "in_flight": 2}]


@pytest.mark.parametrize("more", FULL, ids=["schedule", "part"])
def test_a_health_probe_keeps_to_all_limits_of_its_server(more: dict[str, Any]) -> None:
    """Also to the schedule and to the process's part; no more calls than allowed are in flight."""
    one = backend("a", ConcurrencyLimit(64), **more)
    fleet = BackendPool([one])
    one.server.set_part(0.25, 0.0)
    assert fleet.acquire_health_probe(one, 0.0) is None
    one.server.scheduled_limit, one.server.in_flight = None, 0
    assert fleet.acquire_health_probe(one, 0.0) is not None


def test_a_health_probe_leaves_people_their_headroom() -> None:
    """No probe goes out while the requests of others fill the server."""
    room = Headroom()
    one = backend("a", ConcurrencyLimit(64), headroom=room)
    fleet = BackendPool([one])
    for second in range(4):
        room.read(ServerMetrics(running=64, waiting=100), 0, 1.0, second)
    assert room.left(3.0) == 0
    assert fleet.acquire_health_probe(one, 3.0) is None


async def test_a_health_probe_gets_a_turn_at_a_server_that_others_fill() -> None:
    """Its model waits for a turn as for any call, and gets it when a call of the other model ends."""
    shared = server("a", ConcurrencyLimit(64), calls_max=2)
    filling, asking = BackendPool([Backend(shared)]), BackendPool([Backend(shared)])
    started: list[Permit | None] = []

    def ask() -> bool:
        started.append(asking.acquire_health_probe(asking.backends[0], 0.0))
        return False

    filling.join(lambda: None, lambda: False)
    asking.join(lambda: NextLine(0.0, "p", 0.0), ask)
    calls = [filling.acquire(0.0) for _ in range(2)]
    assert asking.acquire_health_probe(asking.backends[0], 0.0) is None
    assert calls[0] is not None
    filling.answered(calls[0], 0.0)
    await asyncio.sleep(0)
    assert [one is not None for one in started] == [True]
