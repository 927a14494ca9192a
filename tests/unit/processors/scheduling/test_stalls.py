"""Reports of processors on lines that wait, on simulated time: each reason, its begin and its end."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from support.simtime import SimulatedLoop
from support.simulated_stage import LINES, SERVER, WELL, World, simulated

from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.calls.retry import TRIES_MAX
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.limits.headroom import Headroom
from tidemill.processors.limits.server_metrics import ServerMetrics
from tidemill.processors.memory_budget import LINES_BYTES_MAX
from tidemill.processors.scheduling.stalls import CHECK_SECONDS, REPORT_SECONDS, REPORTS_MAX, STALL_SECONDS
from tidemill.schemas.resources.waiting import Reason
from tidemill.sealing.wrapping import KeyUnavailable
from tidemill.storage.address import DirectoryStore

WORDS = b'{"error":{"message":"Who are you?"}}'


FAULTS = {
    "stopped": (FailureKind.CONNECT, Reason.SERVER_UNREACHABLE, None, "cannot be reached: Connection refused"),
    "503": (Answer(503, b""), Reason.SERVER_REFUSES, 503, "answers 503."),
    "401": (Answer(401, WORDS), Reason.SERVER_REFUSES, 401, "answers 401: Who are you?"),
    "403": (Answer(403, b'{"detail":"no such user"}'), Reason.SERVER_REFUSES, 403, "answers 403: no such user"),
    "hung": (None, Reason.SERVER_SILENT, None, "answered none yet."),
    "cut": (FailureKind.READ, Reason.SERVER_FAILS, None, "Calls to http://"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_failing_server_is_reported(case: str) -> None:
    """Half of a batch is done; the rest and a fresh batch say which server, what it answers, and since when."""
    reply, reason, status, words = FAULTS[case]

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.publish("b")
        await world.pass_(4)
        assert not world.said
        since = loop.now()
        world.upstream.reply = reply
        world.publish("fresh")
        await world.pass_(STALL_SECONDS + 2 * CHECK_SECONDS + 1)
        for batch_id in ("b", "fresh"):
            waits = world.waits(batch_id)
            assert waits, batch_id
            told = next(one for one in waits if one.reason is reason)
            assert (told.server, told.status) == (SERVER, status)
            assert abs(told.since - since) <= 2 * CHECK_SECONDS + 1
        assert any(words in one.message for one in world.waits("b")), world.waits("b")
        world.upstream.reply = WELL
        await world.pass_(120)
        assert (world.waits("b"), world.waits("fresh")) == ((), ())
        await world.stage.close()

    simulated(run)


def test_a_server_that_breaks_its_answers_off_ends_their_lines() -> None:
    """Also a line that is alone; meanwhile the report says what the server does, and not that it answers 500."""
    broken_off = Answer(200, b'{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"abort"}]}')

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.upstream.reply = broken_off
        world.publish("b", 1, "/v1/chat/completions")
        await world.pass_(30)
        (told,) = world.waits("b")
        assert told.reason is Reason.SERVER_FAILS
        assert "The server broke its answer off: A choice ended with the finish_reason abort" in told.message
        await world.pass_(300)
        assert world.pool.line_counts.lines == {"completed": 0, "failed": 1}
        assert world.pool.line_counts.attempts["failed"] == TRIES_MAX
        await world.stage.close()

    simulated(run)


GATES: dict[str, tuple[dict[str, Any], Reason]] = {
    "schedule": ({"scheduled_limit": lambda: 0}, Reason.SCHEDULE),
    "drained": ({"drain": Reason.DRAINED}, Reason.DRAINED),
    "headroom": ({"headroom": Headroom()}, Reason.HEADROOM),
}


async def fill(headroom: Headroom | None) -> None:
    """Let people fill the server, by its metrics."""
    while headroom is not None:
        headroom.read(ServerMetrics(running=64, waiting=500), 0, 1.0, asyncio.get_running_loop().time())
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("case", GATES)
def test_a_server_without_calls_is_reported(case: str) -> None:
    """Its lines were never called; the report says why."""
    backend, reason = GATES[case]

    async def run(loop: SimulatedLoop) -> None:
        filled = asyncio.create_task(fill(backend.get("headroom")))
        await asyncio.sleep(1)
        world = World(loop, **backend)
        world.publish("b")
        await world.pass_(STALL_SECONDS + 2 * CHECK_SECONDS)
        filled.cancel()
        (told,) = world.waits("b")
        assert (told.reason, told.server, told.lines) == (reason, SERVER, LINES)
        await world.stage.close()

    simulated(run)


def test_a_batch_for_the_night_begins_with_it() -> None:
    """Nothing else happens in the evening that would start its first call; the report says why it waits."""

    async def run(loop: SimulatedLoop) -> None:
        night = loop.time() + 600
        world = World(loop, scheduled_limit=lambda: 0 if loop.time() < night else 8)
        world.publish("b")
        await world.pass_(590)
        assert {one.reason for one in world.waits("b")} == {Reason.SCHEDULE}
        assert world.stage.pending == LINES
        await world.pass_(110)
        assert world.stage.pending == 0
        assert world.waits("b") == ()
        await world.stage.close()

    simulated(run)


def test_waiting_for_tokens_and_for_a_turn_is_reported() -> None:
    """A batch behind a long one waits for its turn, and one that has used its tokens for these."""

    async def run(loop: SimulatedLoop) -> None:
        turns = World(loop)
        turns.upstream.seconds = 40.0
        turns.publish("a", 8)
        turns.publish("b", 8)
        await turns.pass_(20)
        assert {one.reason for one in turns.waits("b")} == {Reason.QUEUED}
        assert {one.reason for one in turns.waits("a")} == {Reason.SERVER_SILENT}
        await turns.stage.close()
        tokens = World(loop, buckets=(TokenBucket(60),))
        tokens.publish("b")
        await tokens.pass_(60)
        assert Reason.TOKENS_PER_MINUTE in {one.reason for one in tokens.waits("b")}
        await tokens.stage.close()

    simulated(run)


class LinesAway(DirectoryStore):
    """A store whose large lines cannot be read, for an error."""

    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(folder)
        self._error = error

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        del key, start, end
        raise self._error
        yield b""


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (OSError("timeout"), Reason.STORE, "The object store does not answer."),
        (KeyUnavailable("no key file is set"), Reason.KEY, "The key of the batch is unavailable."),
    ],
)
def test_a_large_line_that_cannot_be_read_is_reported(
    tmp_path: Path, error: OSError, reason: Reason, words: str
) -> None:
    """No server is at fault, and the line goes on waiting."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop, store=LinesAway(tmp_path, error))
        world.publish_large("b", 0)
        await world.pass_(STALL_SECONDS + 2 * CHECK_SECONDS + 1)
        (wait,) = world.waits("b")
        assert (wait.reason, wait.message, wait.lines, wait.server) == (reason, words, 1, None)
        assert not world.stage.stalls.of_servers(loop.time())
        await world.stage.close()

    simulated(run)


def test_waiting_for_memory_is_reported() -> None:
    """Calls of other models use all of it."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        assert world.budget.take(LINES_BYTES_MAX)
        for index in range(3):
            world.publish_large("b", index)
        await world.pass_(20)
        ((reason, lines),) = [(one.reason, one.lines) for one in world.waits("b")]
        assert (reason, lines) == (Reason.MEMORY, 3)
        await world.stage.close()

    simulated(run)


def test_a_batch_that_is_alone_waits_for_its_own_calls() -> None:
    """They take all places, and so no line of others is named."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.upstream.seconds = 40.0
        world.publish("b", 16)
        await world.pass_(20)
        (told,) = [one for one in world.waits("b") if one.reason is Reason.QUEUED]
        assert told.lines == 8
        assert "of this batch" in told.message
        await world.stage.close()

    simulated(run)


def test_one_line_is_told_in_the_singular() -> None:
    """Of a server that hangs, of a log without room, and of another batch."""

    async def told(loop: SimulatedLoop, reason: Reason, lines: dict[str, int], fault: str = "") -> str:
        world = World(loop)
        world.upstream.seconds = 1000.0 if not fault else 1.0
        if fault == "hung":
            world.upstream.reply = None
        if fault == "full":
            world.outbox.room.clear()
        for batch_id, count in lines.items():
            world.publish(batch_id, count)
        await world.pass_(STALL_SECONDS + 2 * CHECK_SECONDS + 1)
        message = next(one.message for one in world.waits("b") if one.reason is reason)
        world.outbox.room.set()
        await world.stage.close()
        return message

    async def run(loop: SimulatedLoop) -> None:
        silent = await told(loop, Reason.SERVER_SILENT, {"b": 1}, "hung")
        assert silent == f"{SERVER} accepted 1 call and answered none yet."
        full = await told(loop, Reason.DELIVERY, {"b": 1}, "full")
        assert full == "The log or the store does not accept 1 result."
        behind = await told(loop, Reason.QUEUED, {"a": 1, "b": 16})
        assert behind == "Other batches have 1 line in flight or with an earlier turn."

    simulated(run)


def test_results_that_the_log_does_not_accept_are_reported() -> None:
    """The calls are done, and their results wait."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.outbox.room.clear()
        world.publish("b", 8)
        await world.pass_(30)
        (told,) = world.waits("b")
        assert (told.reason, told.lines) == (Reason.DELIVERY, 8)
        await world.stage.close()

    simulated(run)


def test_results_that_the_log_refuses_are_reported_with_its_reason() -> None:
    """It says more than an outage: the topic has to change."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.outbox.room.clear()
        world.stage.stalls.refusal = lambda: "MessageSizeTooLargeError"
        world.publish("b", 8)
        await world.pass_(30)
        (told,) = world.waits("b")
        assert (told.reason, told.message) == (
            Reason.DELIVERY, "The log refuses 8 results (MessageSizeTooLargeError).",
        )  # fmt: skip
        await world.stage.close()

    simulated(run)


def test_lines_that_wait_for_the_log_say_so() -> None:
    """Those of other batches, too: no call begins for them until the log acknowledges results."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop, calls_max=8, unacknowledged_max=2)
        world.outbox.room.clear()
        world.publish("b", 20)
        world.publish("c", 5)
        await world.pass_(30)
        (told,) = world.waits("b")
        assert (told.reason, told.lines) == (Reason.DELIVERY, 20)
        (told,) = world.waits("c")
        assert (told.reason, told.lines) == (Reason.DELIVERY, 5)
        assert told.message == "No call starts until the log has acknowledged results of earlier ones."
        world.outbox.room.set()
        await world.pass_(10)
        assert world.waits("c") == ()
        await world.stage.close()

    simulated(run)


def test_the_number_of_reports_is_bounded() -> None:
    """With any number of waiting batches: batches take turns, and each report is renewed before it expires."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop, scheduled_limit=lambda: 0)
        batches = [f"b{number}" for number in range(200)]
        for batch_id in batches:
            world.publish(batch_id, 1)
        await world.pass_(200)
        looks: dict[float, int] = {}
        last: dict[str, tuple[float, int]] = {}
        for at, fact in world.said:
            looks[at] = looks.get(at, 0) + 1
            if (before := last.get(fact.batch_id)) is not None:
                assert REPORT_SECONDS <= at - before[0] < before[1]
            last[fact.batch_id] = at, fact.hold_seconds
        assert set(last) == set(batches)
        assert max(looks.values()) <= REPORTS_MAX
        await world.stage.close()

    simulated(run)


def test_reports_of_an_encrypted_batch_quote_no_server() -> None:
    """A server's text may quote the line, and the log has the report in clear."""

    async def run(loop: SimulatedLoop) -> None:
        world = World(loop)
        world.stage.stalls.hide(lambda batch_id: batch_id == "b")
        world.upstream.reply = Answer(401, WORDS)
        world.publish("b")
        await world.pass_(30)
        told = world.waits("b")
        assert told[0].status == 401
        assert not any("Who" in one.message for one in told)
        await world.stage.close()

    simulated(run)
