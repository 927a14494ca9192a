"""What a process reports of its servers and models, on simulated time: how often, what, and until when."""

import asyncio
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.servers_at_work import World as ServersAtWork
from support.simtime import SimulatedLoop
from support.simulated_stage import World, simulated

from tidemill.kafka.connection import LogUnavailable
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.backends.server import Server
from tidemill.processors.backends.token_bucket import LIMITING_SECONDS, TokenBucket
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.limits.server_metrics import ServerMetrics
from tidemill.processors.reports import reporter
from tidemill.processors.reports.reporter import Reporter
from tidemill.processors.scheduling.stalls import CHECK_SECONDS, FIRST_SECONDS, STALL_SECONDS
from tidemill.schemas.log import codec
from tidemill.schemas.resources.load import HEARTBEAT_SECONDS, SERVERS_MAX, BreakerState, Cause, ProcessReport
from tidemill.schemas.resources.waiting import Reason

TOKENS = Answer(200, b'{"data":[{"index":0,"embedding":[1]}],"usage":{"prompt_tokens":30,"total_tokens":30}}')
DECODE: codec.Decoder[ProcessReport] = codec.decoder(ProcessReport)


@dataclass
class Servers:
    """The servers of one model, and as many idle ones as a test wants."""

    pools: dict[str, BackendPool]
    idle: list[Server] = field(default_factory=list)

    def __iter__(self) -> Iterator[Server]:
        return iter([*self.idle, *(backend.server for pool in self.pools.values() for backend in pool.backends)])


class Reports:
    """Takes one step of a reporter a second; has what it sent, with the time."""

    def __init__(self, world: World) -> None:
        self.world, self.sent = world, list[tuple[float, bytes | None]]()
        self.is_away = False
        self.servers = Servers({"m": world.pool})
        self.reporter = Reporter(
            self.servers, lambda: [("m", world.stage)], self._send, clock=world.loop.now, monotonic=world.loop.time
        )

    async def _send(self, process: str, value: bytes | None) -> None:
        assert process == reporter.process_name()
        if self.is_away:
            raise LogUnavailable("away")
        self.sent.append((self.world.loop.time(), value))

    async def pass_(self, seconds: int) -> None:
        for _ in range(seconds):
            await asyncio.sleep(1)
            await self.reporter.step()

    @property
    def last(self) -> ProcessReport:
        return DECODE(self.sent[-1][1])


def test_reports_of_a_busy_server() -> None:
    """Eight calls at a time of half a second each, with 30 tokens, are 16 lines and 480 tokens a second."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.upstream.reply = TOKENS
        reports = Reports(world)
        await reports.pass_(1)
        world.publish("b", lines=10_000)
        await reports.pass_(30)
        (server,), (model,) = reports.last.servers, reports.last.models
        assert (server.limit, server.in_flight, server.refused) == (8, 8, 0)
        assert server.lines_per_second == pytest.approx(16, rel=0.2)
        assert server.tokens_per_second == pytest.approx(480, rel=0.2)
        assert server.lines_waiting == model.lines_waiting == pytest.approx(10_000 - 16 * 30, rel=0.1)
        assert sum(server.durations) == pytest.approx(16 * 30, rel=0.1)
        assert server.durations.index(max(server.durations)) in {4, 5}, "from 0.25 to 0.5, or to 1 second"
        assert (server.breaker, server.queued) == (BreakerState.CLOSED, None)
        assert server.cause
        assert server.cause.reason is Reason.QUEUED
        times = [at for at, _ in reports.sent]
        assert min(later - one for one, later in itertools.pairwise(times)) >= 1
        world.pool.backends[0].server.apply_metrics(ServerMetrics(running=8, waiting=5), 8, loop.time())
        await reports.pass_(1)
        assert (reports.last.servers[0].queued, reports.last.servers[0].running) == (5, 8)
        await world.stage.close()

    simulated(run)


def test_a_server_that_is_gone_is_not_counted_with_the_one_that_has_its_name() -> None:
    """Its last calls are in flight; it takes no other, and nothing of it mixes with what the live one does."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.upstream.reply = TOKENS
        reports = Reports(world)
        (live,) = world.pool.backends
        gone = World(loop).pool.backends[0].server
        assert gone.name == live.server.name
        gone.in_flight = 3
        reports.servers.idle.append(gone)
        await reports.pass_(1)
        world.publish("b", lines=10_000)
        await reports.pass_(60)
        found = reports.last.servers
        assert sorted(one.in_flight for one in found) == [3, 8]
        assert sum(one.limit for one in found) == 8
        assert sum(one.lines_per_second for one in found) == pytest.approx(16, rel=0.2)
        await world.stage.close()

    simulated(run)


def test_an_idle_process_sends_heartbeats_alone() -> None:
    """Also after work, when the last minute is over; a log that is away costs one report."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        reports = Reports(world)
        world.publish("b", lines=40)
        await reports.pass_(120)
        assert not any(reports.last.servers[0].durations)
        assert reports.last.servers[0].lines_per_second == 0
        reports.sent.clear()
        await reports.pass_(10 * HEARTBEAT_SECONDS)
        assert len(reports.sent) == 10
        assert len({value for _, value in reports.sent}) == 1
        reports.is_away = True
        with pytest.raises(LogUnavailable):
            await reports.pass_(HEARTBEAT_SECONDS)
        reports.is_away = False
        await reports.pass_(HEARTBEAT_SECONDS)
        assert len(reports.sent) == 11

    simulated(run)


@pytest.mark.parametrize(
    ("reply", "reason", "refused"),
    [
        (FailureKind.CONNECT, Reason.SERVER_UNREACHABLE, False),
        (Answer(503, b""), Reason.SERVER_REFUSES, True),
        (Answer(429, b""), Reason.SERVER_REFUSES, True),
    ],
)
def test_a_server_that_takes_no_calls(
    caplog: pytest.LogCaptureFixture, reply: Any, reason: Reason, refused: bool
) -> None:
    """Its cause says why and since when; it ends with the first answer. The log has its end and its return."""
    caplog.set_level(logging.INFO, "tidemill.processors.reports")

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        reports = Reports(world)
        world.upstream.reply = reply
        world.publish("b")
        begun = loop.now()
        await reports.pass_(20)
        (server,) = reports.last.servers
        assert server.cause
        assert (server.cause.reason, server.breaker is not BreakerState.CLOSED) == (reason, True)
        assert begun <= server.cause.since <= begun + 10
        assert bool(server.refused) is refused
        assert reports.last.models[0].cause == server.cause
        world.upstream.reply = TOKENS
        await reports.pass_(40)
        assert reports.last.servers[0].cause is reports.last.models[0].cause is None
        assert reports.last.servers[0].breaker is BreakerState.CLOSED

    simulated(run)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "takes no calls: " in said[0]
    assert said[1].endswith("takes calls again")


@pytest.mark.parametrize("rate", [50, 100, 200, 400])
def test_a_limit_in_tokens_is_shown_for_as_long_as_it_holds(rate: int) -> None:
    """Not from one second to the next, as the bucket fills and empties; it ends with the lines that wait."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop, buckets=(TokenBucket(60 * rate),))
        reports = Reports(world)
        world.upstream.reply = TOKENS
        world.publish("b", lines=2 * rate)
        begun = loop.now()
        await reports.pass_(10)
        for _ in range(30):
            await reports.pass_(1)
            (server,), (model,) = reports.last.servers, reports.last.models
            assert server.lines_waiting
            assert _reason(server.cause) is _reason(model.cause) is Reason.TOKENS_PER_MINUTE
            assert server.cause.since <= begun + 10
        while world.stage.pending:
            await reports.pass_(1)
        await reports.pass_(int(LIMITING_SECONDS) + 1)
        assert reports.last.servers[0].cause is reports.last.models[0].cause is None
        await world.stage.close()

    simulated(run)


def test_a_server_that_accepts_calls_and_does_not_answer() -> None:
    """It says so before the first call has timed out, and no more once it answers."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        reports = Reports(world)
        world.upstream.reply = None
        world.stage._caller._seconds_max = 600
        world.publish("b")
        await world.pass_(FIRST_SECONDS - 1)
        await reports.pass_(1)
        assert _reason(reports.last.servers[0].cause) is Reason.QUEUED
        await world.pass_(2 * CHECK_SECONDS)
        await reports.pass_(1)
        (server,), (model,) = reports.last.servers, reports.last.models
        assert server.cause
        assert server.cause == model.cause
        assert (server.cause.reason, server.breaker) == (Reason.SERVER_SILENT, BreakerState.CLOSED)
        assert server.cause.message == "http://a/v1 accepted 8 calls and answered none yet."
        world.upstream.reply = TOKENS
        await world.pass_(600)
        await reports.pass_(1)
        assert reports.last.servers[0].cause is None
        await world.stage.close()

    simulated(run)


@pytest.mark.parametrize("seconds", [15.0, 50.0])
def test_a_server_with_long_calls_is_not_silent(seconds: float) -> None:
    """Its calls begin and end together, so that none ends for as long as one takes; then it hangs."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        reports = Reports(world)
        world.upstream.reply, world.upstream.seconds = TOKENS, seconds
        world.stage._caller._seconds_max = 600
        world.publish("b")
        until = loop.time() + 5.5 * seconds
        while loop.time() < until:
            await world.pass_(1)
            await reports.pass_(1)
            assert reports.last.servers[0].in_flight == 8
            assert _reason(reports.last.servers[0].cause) is Reason.QUEUED
        world.upstream.reply = None
        await world.pass_(5 * seconds + STALL_SECONDS)
        await reports.pass_(1)
        assert _reason(reports.last.servers[0].cause) is Reason.SERVER_SILENT
        await world.stage.close()

    simulated(run)


def test_a_server_that_fails_keeps_its_last_error() -> None:
    """Also while another one works on the lines that failed there; what it said ends with the batch."""

    async def run(loop: SimulatedLoop) -> None:
        world = ServersAtWork(loop, call_seconds=15.0)
        for name in ("bad", "good"):
            world.server(name, max_in_flight=8)
        world.model("m", "bad", "good")
        world.apply()
        post = world.engines.post

        async def fail(url: str, *more: Any) -> Any:
            if "bad" in url:
                return Answer(401, b'{"error":{"message":"no such key"}}')
            return await post(url, *more)

        world.engines.post = fail
        stalls = world.dispatchers["m"].stalls
        world.publish("m", "b", 12)
        said = set()
        for _ in range(120):
            await asyncio.sleep(0.5)
            stalls.check(loop.time())
            if (cause := stalls.of_servers(loop.time()).get("bad")) is not None:
                said.add(("b" in world.dispatchers["m"].lines.batches, cause.message))
        assert said == {(True, "bad answers 401: no such key"), (False, "bad answers 401.")}
        await world.dispatchers["m"].close()

    simulated(run)


@pytest.mark.parametrize(("lines", "drained_seconds"), [(3, 0), (20, 60)])
def test_a_server_that_has_room_or_just_began_is_not_silent(lines: int, drained_seconds: float) -> None:
    """Its answers may take long, and the calls of a server that was drained are young."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        reports = Reports(world)
        world.upstream.reply, world.upstream.seconds = TOKENS, 25.0 if lines < 8 else 9.0
        server = world.pool.backends[0].server
        server.drain = Reason.DRAINED if drained_seconds else None
        world.publish("b", lines=lines)
        await world.pass_(drained_seconds)
        server.drain = None
        world.publish("c", lines=1)
        until = loop.time() + 21
        while loop.time() < until:
            await world.pass_(1)
            await reports.pass_(1)
            assert reports.last.servers[0].in_flight
            assert _reason(reports.last.servers[0].cause) is not Reason.SERVER_SILENT
        await world.stage.close()

    simulated(run)


def test_a_server_that_answers_another_model_is_not_silent() -> None:
    """One of its models may have long answers alone."""

    async def run(loop: SimulatedLoop) -> None:
        world = ServersAtWork(loop, call_seconds=1.0)
        world.server("s", max_in_flight=8)
        world.model("slow", "s", max_in_flight=1)
        world.model("fast", "s")
        world.apply()
        post = world.engines.post

        async def slow(url: str, headers: Any, body: Any, *more: Any) -> Any:
            await asyncio.sleep(60 if b"slow" in bytes(body) else 0)
            return await post(url, headers, body, *more)

        world.engines.post = slow
        reporter = Reporter(
            world.servers, lambda: list(world.dispatchers.items()), None, clock=loop.now, monotonic=loop.time
        )
        world.publish("slow", "slow", 1)
        world.publish("fast", "fast", 400)
        for _ in range(30):
            await asyncio.sleep(1)
            for dispatcher in world.dispatchers.values():
                dispatcher.stalls.check(loop.time())
            (server,) = reporter.report(loop.time()).servers
            assert server.in_flight == 8
            assert _reason(server.cause) is not Reason.SERVER_SILENT
        for dispatcher in world.dispatchers.values():
            await dispatcher.close()

    simulated(run)


def _reason(cause: Cause | None) -> Reason | None:
    return None if cause is None else cause.reason


def test_a_drained_server_says_so_without_a_line() -> None:
    """Its model may be asleep."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        reports = Reports(world)
        world.pool.backends[0].server.drain = Reason.DRAINED
        await reports.pass_(1)
        cause = reports.last.servers[0].cause
        assert cause
        assert (cause.reason, cause.message) == (Reason.DRAINED, "http://a/v1 gets no calls: it is set to drain.")

    simulated(run)


def test_a_report_has_the_busiest_of_many_servers() -> None:
    """And says how many are missing."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        reports = Reports(world)
        for number in range(SERVERS_MAX + 5):
            idle = World(loop).pool.backends[0].server
            idle.name = f"an idle one {number}"
            reports.servers.idle.append(idle)
        world.publish("b", lines=1_000)
        await reports.pass_(2)
        assert len(reports.last.servers) == SERVERS_MAX
        assert "http://a/v1" in {one.name for one in reports.last.servers}
        assert reports.last.omitted == 6
        await world.stage.close()

    simulated(run)
