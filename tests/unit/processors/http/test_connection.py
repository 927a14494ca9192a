"""One connection on its own: the time and the end of each call."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import uvloop
from msgspec import structs
from support.scripted_server import ANSWER, OK, SECONDS, post, serving
from support.simtime import SimulatedLoop, run
from support.waiting import WAIT_SECONDS_MAX, wait_until

from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.http.client import KEEPALIVE
from tidemill.processors.http.connection import LATE_SECONDS_MAX, Connection
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


CALLER = """
import sys, uvloop
from tidemill.processors.http.client import HttpUpstream

async def main():
    url = f"http://127.0.0.1:{sys.argv[1]}/v1/x"
    outcome = await HttpUpstream().post(url, {}, b"{}", float(sys.argv[2]))
    print(getattr(outcome, "status", outcome))

uvloop.run(main())
"""


def test_a_reply_counts_that_came_while_the_process_stood_still() -> None:
    """The timer of the call is due before the loop reads the socket."""
    seconds = 2.0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", CALLER, str(listener.getsockname()[1]), str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1 << 16)
                began = time.monotonic()
                stat = Path(f"/proc/{caller.pid}/stat")
                wait_until(lambda: ") S " in stat.read_text())
                caller.send_signal(signal.SIGSTOP)
                os.waitpid(caller.pid, os.WUNTRACED)
                peer.sendall(OK)
                wait_until(lambda: time.monotonic() > began + seconds + LATE_SECONDS_MAX + 0.1)
                caller.send_signal(signal.SIGCONT)
                said, _ = caller.communicate(timeout=WAIT_SECONDS_MAX)
    assert said == "200\n"


def test_a_call_without_a_reply_ends_soon_after_a_freeze() -> None:
    """Its time does not begin anew."""

    async def main(loop: SimulatedLoop) -> None:
        connection = Connection(LargeReplies())
        connection.connection_made(cast("asyncio.BaseTransport", Transport()))
        call = loop.create_task(connection.call(b"", 10.0, 100))
        await asyncio.sleep(5)
        loop.jump(20.0)
        assert await call is FailureKind.TIMEOUT
        assert loop.time() == pytest.approx(25.0 + LATE_SECONDS_MAX)

    run(main)


def test_a_call_ends_although_the_process_is_always_late() -> None:
    """Its time is extended once, for a reply that lies in the socket."""

    async def main(loop: SimulatedLoop) -> None:
        connection = Connection(LargeReplies())
        connection.connection_made(cast("asyncio.BaseTransport", Transport()))
        for _ in range(2):
            connection._keeps_alive, begun = True, loop.time()
            connection._transport = cast("asyncio.Transport", Transport())
            call = loop.create_task(connection.call(b"", 2.0, 100))
            while not call.done():
                await asyncio.sleep(0)
                assert loop.time() < begun + 30
                loop.jump(1.2)
            assert await call is FailureKind.TIMEOUT
            assert loop.time() < begun + 10

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


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_system_probes_an_idle_connection(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A server that vanished answers no probe, so the call ends long before its timeout."""

    async def main() -> None:
        async with serving([OK]) as (server, client):
            assert await post(server, client) == ANSWER
            ((connection,),) = client._idle.values()
            found = connection.socket
            assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            for name, value in KEEPALIVE:
                if (option := getattr(socket, name, None)) is not None:
                    assert found.getsockopt(socket.IPPROTO_TCP, option) == value

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
