"""One connection on its own: the time and the end of each call."""

import asyncio
from typing import cast

import pytest
from msgspec import structs
from support.scripted_server import ANSWER, OK, SECONDS
from support.simtime import SimulatedLoop, run

from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.http.connection import Connection
from tidemill.processors.memory_budget import LargeReplies


class Transport:
    """Collects written bytes."""

    is_closed = False

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize(("before", "seconds"), [(5.0, 30.0), (600.0, 2.0), (30.0, 30.0)])
def test_each_call_of_a_connection_has_its_own_time(before: float, seconds: float) -> None:
    """The timer of an earlier call ends no later one too early or too late."""

    async def main(loop: SimulatedLoop) -> None:
        connection = Connection(LargeReplies())
        connection.connection_made(cast("asyncio.BaseTransport", Transport()))
        first = loop.create_task(connection.call(b"", before, 100))
        await asyncio.sleep(1)
        connection.data_received(OK)
        assert await first == structs.replace(ANSWER, first_byte=1.0)
        begun = loop.time()
        assert await connection.call(b"", seconds, 100) is FailureKind.TIMEOUT
        assert loop.time() - begun == pytest.approx(seconds)

    run(main)


async def test_an_aborted_call_on_a_closing_connection_tells_nothing() -> None:
    connection = Connection(LargeReplies())
    outcomes: list[Answer | FailureKind] = []
    connection.begin(b"", SECONDS, 100, outcomes.append)
    connection.abort()
    await asyncio.sleep(0)
    assert not outcomes
    connection.begin(b"", SECONDS, 100, outcomes.append)
    await asyncio.sleep(0)
    assert outcomes == [FailureKind.READ]
