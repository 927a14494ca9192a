"""Health probes show whether the server or the line is at fault: the dispatcher in virtual time."""

from typing import Any, cast

import pytest
from support.bad_lines import (
    ENDPOINT,
    HOUR,
    NO_LINE,
    PLAIN_PROBE,
    Outcome,
    Place,
    Server,
    World,
    is_answered,
    lines,
    refusal,
    words,
)
from support.simtime import SimulatedLoop, run

from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.calls import health_probe
from tidemill.processors.failures import FailureKind
from tidemill.schemas.endpoints import ENDPOINTS
from tidemill.schemas.resources.waiting import Reason


def test_no_health_probe_is_sent_while_lines_are_answered() -> None:
    """A server that rejects all probes gets no other for a while."""
    bad = lines("b", range(0, 100, 20))

    async def main(loop: SimulatedLoop) -> None:
        def rule(place: Place, _: float) -> Outcome | None:
            return refusal(400) if place == NO_LINE else refusal(500) if place in bad else None

        server = Server(rule, seconds=1.0, seats=4)
        world = World(loop, [server], max_in_flight=4)
        world.publish("b", 1200)
        good = lines("b", range(1200)) - bad
        await world.run(HOUR, world.has_ended(good))
        assert server.calls[NO_LINE] == 0
        assert len(world.ends) == 1200, "they end while others are answered"
        bad.update(lines("c", range(3)))
        world.publish("c", 3)
        await world.run(health_probe.REFUSED_SECONDS)
        assert 1 <= server.calls[NO_LINE] <= 5
        await world.stage.close()

    run(main)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_form_of_a_probe_has_the_required_fields(endpoint: str) -> None:
    """A bound on the reply that an endpoint requires stays in the second form."""
    for form in health_probe.requests(endpoint):
        assert all(type(form.get(name)) in kinds for name, kinds in ENDPOINTS[endpoint].form(form).items())


PROBES = {NO_LINE, PLAIN_PROBE}


@pytest.mark.parametrize(
    ("outcome", "refused"),
    [(refusal(500), {NO_LINE}), (refusal(403), PROBES)],
    ids=["500, plain form answered", "403, no form answered"],
)
@pytest.mark.parametrize("status", [400, 422])
def test_the_last_lines_end_if_the_server_rejects_probes(
    outcome: Outcome, refused: set[Place], status: int
) -> None:
    """A second form is answered, or the refusal itself shows that the server accepts our key."""

    async def main(loop: SimulatedLoop) -> None:
        server = Server(
            lambda place, _: refusal(status) if place in refused else outcome if place[0] == "b" else None
        )
        world = World(loop, [server])
        world.publish("b", 3)
        await world.run(300, world.has_ended(lines("b", range(3))))
        assert world.failed == lines("b", range(3))
        assert all(words(outcome) in text for text in world.ends.values())
        await world.stage.close()

    run(main)


def test_a_server_that_rejects_probes_hides_no_other() -> None:
    """The first of two servers refuses all forms of it, the second comes later and answers; both fail lines."""

    async def main(loop: SimulatedLoop) -> None:
        first = Server(lambda place, _: refusal(400 if place in PROBES else 500))
        begin = loop.time() + 60

        def rule(place: Place, now: float) -> Outcome | None:
            return FailureKind.CONNECT if now < begin else None if place in PROBES else refusal(500)

        second = Server(rule)
        world = World(loop, [first, second])
        world.publish("b", 3)
        await world.run(health_probe.REFUSED_SECONDS / 2, world.has_ended(lines("b", range(3))))
        assert world.failed == lines("b", range(3))
        await world.stage.close()

    run(main)


@pytest.mark.parametrize("reason", [Reason.DRAINED, Reason.ACCESS])
def test_a_line_that_failed_at_a_server_that_is_drained_ends_elsewhere(reason: Reason) -> None:
    """That server gets no probe, so nothing would ever show whose fault the failures were."""

    async def main(loop: SimulatedLoop) -> None:
        first, second = Server(lambda *_: refusal(500)), Server()
        world = World(loop, [first, second])
        here, there = world.fleet.backends
        there.server.drain = Reason.DRAINED
        world.publish("b", 1)
        await world.run(60, lambda: first.calls["b", 0] == 2)
        await world.run(0.05)
        here.server.drain, there.server.drain = reason, None
        world.fleet.changed()
        await world.run(300, world.has_ended(lines("b", range(1))))
        assert is_answered(world, ("b", 0))
        assert (first.calls["b", 0], second.calls["b", 0]) == (2, 1)
        await world.stage.close()

    run(main)


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_server_without_calls_at_this_hour_gets_no_probe(is_alone: bool) -> None:
    """A line that failed twice there goes to another server, or waits for the hour."""

    async def main(loop: SimulatedLoop) -> None:
        first, second = Server(lambda *_: refusal(500)), Server()
        world = World(loop, [first] if is_alone else [first, second])
        here = world.fleet.backends[0].server
        ceiling = [64]
        here.scheduled_limit = lambda: ceiling[-1]
        for one in world.fleet.backends[1:]:
            one.server.drain = Reason.DRAINED
        world.publish("b", 1)
        await world.run(60, lambda: first.calls["b", 0] == 2)
        ceiling.append(0)
        for one in world.fleet.backends[1:]:
            one.server.drain = None
        world.fleet.changed()
        before = first.calls.total()
        await world.run(HOUR, world.has_ended(lines("b", range(1))))
        assert first.calls.total() == before
        assert is_answered(world, ("b", 0)) is not is_alone
        first.rule = lambda *_: None
        ceiling.append(64)
        await world.run(120, world.has_ended(lines("b", range(1))))
        assert is_answered(world, ("b", 0))
        await world.stage.close()

    run(main)


def test_a_health_probe_that_ends_before_it_begins_holds_no_seat() -> None:
    """Other models may share the server."""

    async def main(loop: SimulatedLoop) -> None:
        world = World(loop, [Server()])
        one = world.fleet.backends[0]
        caller = world.stage._caller
        probe = caller.health_probe(lambda: None, 1.0)
        permit = world.fleet.acquire_health_probe(one, loop.time())
        assert permit is not None
        probe._start(permit, ENDPOINT)
        await probe.close()
        assert (one.in_flight, one.server.in_flight) == (0, 0)
        await world.stage.close()

    run(main)


def test_a_health_probe_that_is_aborted_keeps_its_tokens() -> None:
    """The server may have used them; the seat is free."""

    class Bucket(TokenBucket):
        given_back = 0

        def give_back(self, expected: float) -> None:
            self.given_back += 1
            super().give_back(expected)

    async def main(loop: SimulatedLoop) -> None:
        server = Server(seconds=30.0)
        world = World(loop, [server])
        one, bucket = world.fleet.backends[0], Bucket(6e9)
        one.buckets = (bucket,)
        probe = world.stage._caller.health_probe(lambda: None, 1.0)
        permit = world.fleet.acquire_health_probe(one, loop.time())
        assert permit is not None
        probe._start(permit, ENDPOINT)
        await world.run(1)
        assert server.in_flight == one.in_flight == 1
        await probe.close()
        assert (one.in_flight, bucket.given_back) == (0, 0)
        await world.stage.close()

    run(main)


def test_a_health_probe_that_cannot_be_written_holds_no_seat() -> None:
    """A rule for bodies may fail."""

    async def main(loop: SimulatedLoop) -> None:
        world = World(loop, [Server()])
        one = world.fleet.backends[0]
        caller = world.stage._caller
        caller._rules = cast("Any", object())
        probe = caller.health_probe(lambda: None, 1.0)
        permit = world.fleet.acquire_health_probe(one, loop.time())
        assert permit is not None
        probe._start(permit, ENDPOINT)
        await world.run(1)
        assert (one.in_flight, one.server.in_flight) == (0, 0)
        await probe.close()
        await world.stage.close()

    run(main)


def test_a_health_probe_counts_as_a_call_in_flight() -> None:
    """Of a model with one call at a time and two servers, there is never a second."""

    async def main(loop: SimulatedLoop) -> None:
        servers: list[Server] = []
        most = 0

        def rule(place: Place, _: float) -> Outcome | None:
            nonlocal most
            most = max(most, sum(server.in_flight for server in servers))
            return refusal(500) if place[0] == "b" else None

        servers += [Server(rule, seconds=1.0), Server(rule, seconds=1.0)]
        world = World(loop, servers, max_in_flight=1)
        world.publish("b", 3)
        for number in range(20):
            world.publish(f"more{number}", 1, endpoint="/v1/completions")
            await world.run(5.0)
        assert sum(server.calls[NO_LINE] for server in servers) > 0
        assert most == 1
        await world.stage.close()

    run(main)


def test_a_server_that_only_checks_requests_fails_no_line() -> None:
    """Its engine is down: it rejects the probe before it needs the engine, and answers lines with 500."""

    async def main(loop: SimulatedLoop) -> None:
        end = loop.time() + 4 * HOUR
        server = Server(lambda place, now: refusal(400 if place in PROBES else 500) if now < end else None)
        world = World(loop, [server])
        world.publish("b", 20)
        await world.run(5 * HOUR, world.has_ended(lines("b", range(20))))
        assert all(is_answered(world, place) for place in lines("b", range(20)))
        await world.stage.close()

    run(main)


@pytest.mark.parametrize("lines_wait", [True, False])
def test_a_line_whose_endpoint_no_other_line_asks_for_is_not_starved(lines_wait: bool) -> None:
    """Lines of another endpoint come without end, many or one by one: it waits for none of them."""

    async def main(loop: SimulatedLoop) -> None:
        begun = loop.time()

        def rule(place: Place, now: float) -> Outcome | None:
            return refusal(500) if place == ("b", 0) or (place[0] == "odd" and now < begun + 30) else None

        server = Server(rule, seconds=4.0, seats=4)
        world = World(loop, [server], max_in_flight=4)
        world.publish("odd", 3, endpoint="/v1/completions")
        world.publish("b", 2000 if lines_wait else 1)
        odd = lines("odd", range(3))
        for number in range(300):
            await world.run(2.0)
            world.publish(f"more{number}", 2)
        assert odd <= set(world.ends)
        assert all(is_answered(world, place) for place in odd)
        assert ("b", 0) in world.failed
        assert server.calls[NO_LINE] <= 300
        await world.stage.close()

    run(main)


def test_bad_lines_are_found_after_an_outage() -> None:
    """A server that answered no line gets another probe once it has answered one."""
    bad = lines("b", range(1000)) - lines("b", range(0, 1000, 50))

    async def main(loop: SimulatedLoop) -> None:
        back = loop.time() + 60
        server = Server(lambda place, now: refusal(500) if now < back or place in bad else None)
        world = World(loop, [server])
        world.publish("a", 1)
        await world.run(HOUR, world.has_ended(lines("a", range(1))))
        world.publish("b", 1000)
        seconds = await world.run(HOUR, world.has_ended(lines("b", range(1000)) - bad))
        assert seconds < 5
        await world.stage.close()

    run(main)
