"""The log has a line for each change of a server, and few for one that comes and goes."""

import logging

import pytest
from support.simtime import SimulatedLoop
from support.simulated_stage import SERVER, World, simulated

from tidemill.processors.failures import Answer
from tidemill.processors.reports.server_log import QUIET_SECONDS, ServerLog
from tidemill.schemas.resources.load import BreakerState, Cause, ServerLoad
from tidemill.schemas.resources.waiting import Reason

PROMPT = "how do I tell her"


def load(reason: Reason | None, name: str = "a") -> ServerLoad:
    """A server with a cause."""
    status = 503 if reason is Reason.SERVER_REFUSES else None
    cause = None if reason is None else Cause(reason=reason, status=status, message=f"{name}: {reason}.", since=0)
    return _load(name, cause)


def _load(name: str, cause: Cause | None) -> ServerLoad:
    return ServerLoad(
        name=name, limit=1, in_flight=0, unacknowledged=0, refused=0, lines_per_second=0, tokens_per_second=0,
        lines_waiting=0, breaker=BreakerState.CLOSED, cause=cause,
    )  # fmt: skip


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log."""
    caplog.set_level(logging.INFO)
    return caplog


def test_each_change_is_one_line(lines: pytest.LogCaptureFixture) -> None:
    """A cause of normal operation is none."""
    log, now = ServerLog(), 0.0
    seen = (None, Reason.QUEUED, Reason.SERVER_UNREACHABLE, Reason.SERVER_UNREACHABLE, Reason.SERVER_REFUSES, None)
    for reason in seen:
        now += QUIET_SECONDS
        log.look([load(reason)], now)
    assert [(record.levelname, record.getMessage()) for record in lines.records] == [
        ("WARNING", "server a takes no calls: a: server_unreachable."),
        ("WARNING", "server a takes no calls: a answers 503."),
        ("INFO", "server a takes calls again"),
    ]


def test_a_server_that_comes_and_goes_has_few_lines(lines: pytest.LogCaptureFixture) -> None:
    """The last state is logged in the end; another server is not held up."""
    log = ServerLog()
    for second in range(600):
        log.look([load(Reason.SERVER_FAILS if second % 2 else None), load(None, "b")], float(second))
    assert len(lines.records) <= 1 + 600 / QUIET_SECONDS
    log.look([load(None), load(Reason.ACCESS, "b")], 700.0)
    last, other = [record.getMessage() for record in lines.records][-2:]
    assert "server a takes" in last
    assert other == "server b takes no calls: b: access."


def test_a_server_that_is_gone_is_forgotten(lines: pytest.LogCaptureFixture) -> None:
    """Another one may have its name."""
    log = ServerLog()
    for servers in ([load(Reason.ACCESS)], [], [load(None)]):
        log.look(servers, 0.0)
    assert len(lines.records) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Answer(401, b'{"error":{"message":"you may not ask \'%b\'"}}' % PROMPT.encode()),
        Answer(503, b'{"detail":"too busy for \'%b\'"}' % PROMPT.encode()),
        Answer(200, b'{"error":{"message":"you may not ask \'%b\'","code":401}}' % PROMPT.encode()),
    ],
    ids=["401", "503", "401 in 200"],
)
def test_no_line_quotes_a_server(answer: Answer, lines: pytest.LogCaptureFixture) -> None:
    """Its error may quote a prompt: the batch has it, and the load as long as the batch has lines here."""

    async def run(loop: SimulatedLoop) -> None:
        world, log = World(loop), ServerLog()
        stalls = world.stage.stalls
        world.upstream.reply = answer
        world.publish("b")
        await world.pass_(20)
        cause = stalls.of_servers(loop.time())[SERVER]
        assert PROMPT in cause.message
        log.look([_load(SERVER, cause)], loop.time())
        world.stage.drop("b")
        await world.pass_(10)
        over = stalls.of_servers(loop.time())[SERVER]
        assert (over.reason, over.status) == (cause.reason, cause.status)
        assert PROMPT not in over.message
        assert PROMPT not in repr(vars(stalls._failed))
        await world.stage.close()

    simulated(run)
    said = [record.getMessage() for record in lines.records]
    assert any("takes no calls" in one for one in said)
    assert not any(PROMPT in one for one in said)
