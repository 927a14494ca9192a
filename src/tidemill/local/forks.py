"""Processes that the fork server has forked, as their supervisor uses them."""

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import Final, Self

from tidemill.local import fork_server, log_file, parent_death
from tidemill.local.child import TAIL_LINES, describe_end
from tidemill.local.fork_server import Request

ARE_SAFE: Final = sys.platform == "linux"
"""Whether stages may be forks. On macOS frameworks of the system end a fork that uses them, and S3 needs one."""
ANSWER_SECONDS_MAX: Final = 1.0
"""How long the answer to a request that is given up may take."""
_CHUNK_BYTES: Final = 64 * 1024
_KILLED: Final = -signal.SIGKILL
"""How the forks of a server that has ended end: the kernel kills them."""
SERVER: Final = "the process that forks the stages"


class ForkError(OSError):
    """The stage is not forked; the text says why."""


class Fork:
    """A process of a stage."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        """Return its exit code, or the negative number of the signal that ended it, once it has ended."""
        return await asyncio.shield(self._end)

    def terminate(self) -> None:
        """Send SIGTERM, unless it has ended."""
        if not self._end.done():
            os.kill(self.pid, signal.SIGTERM)

    def take_end(self, code: int) -> None:
        """It has ended."""
        if not self._end.done():
            self._end.set_result(code)


class Forks:
    """Forks stages; starts the server when it is needed, and another one if it has ended."""

    def __init__(self, environ: Mapping[str, str], log: Path, *, say: Callable[[str], None]) -> None:
        """Start nothing yet.

        Args:
            environ: The environment of the server.
            log: File for the output of the latest server, which has none unless it fails.
            say: Prints a line for the operator.
        """
        self._environ = environ
        self._log = log
        self._say = say
        self._turn = asyncio.Lock()
        self._server: _Server | None = None

    async def prepare(self) -> None:
        """Start the server, and return before it has imported the stages; an error waits for the first fork."""
        async with self._turn:
            with suppress(OSError):
                await self._running()

    async def fork(self, request: Request, output: FileIO, messages: FileIO) -> Fork:
        """Start a stage that writes to `output`, and the words of `tidemill.runtime.notify` to `messages`.

        Raises:
            OSError: The server has ended, or the system has no room; the next call tries again.
        """
        asked_at = asyncio.get_running_loop().time()
        async with self._turn:
            if self._server is not None and asked_at <= self._server.ended_at:
                # Another one would fail, too.
                raise ForkError(self._server.fault)
            server = await self._running()
            return await server.fork(request, output, messages)

    def kill(self) -> None:
        """Kill the server, with which its forks end."""
        if self._server is not None:
            self._server.kill()

    async def stop(self) -> None:
        """End the server; a fork that still runs is killed."""
        if self._server is not None:
            await self._server.stop()

    async def _running(self) -> "_Server":
        if self._server is None or self._server.has_ended:
            self._server = await _Server.start(self._environ, self._log, self._say)
        return self._server


class _Server:
    """One process of the server, and its forks."""

    def __init__(self, process: Process, control: socket.socket, log: Path, say: Callable[[str], None]) -> None:
        self.has_ended = False
        self.fault = ""
        """How it ended."""
        self.ended_at = float("-inf")
        """When it ended, by the clock of the event loop."""
        self._process = process
        self._control = control
        self._log = log
        self._say = say
        self._forks: dict[int, Fork] = {}
        self._asked: asyncio.Future[Fork] | None = None
        self._reading = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def start(cls, environ: Mapping[str, str], log: Path, say: Callable[[str], None]) -> Self:
        log.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        command = [sys.executable, "-P", "-m", fork_server.__name__, str(theirs.fileno())]
        with ExitStack() as stack:
            stack.enter_context(ours)
            with theirs, log.open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    *parent_death.command(command),
                    stdin=DEVNULL,
                    stdout=output,
                    stderr=STDOUT,
                    env=environ,
                    pass_fds=(theirs.fileno(),),
                    process_group=0,
                )
            stack.pop_all()
        return cls(process, ours, log, say)

    async def fork(self, request: Request, output: FileIO, messages: FileIO) -> Fork:
        loop = asyncio.get_running_loop()
        self._asked = loop.create_future()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            try:
                with theirs, suppress(ConnectionError):
                    ends = [end.fileno() for end in (output, messages, theirs)]
                    socket.send_fds(self._control, [fork_server.FORK], ends)
                fork = await asyncio.shield(self._asked)
            except asyncio.CancelledError:
                await self._give_up(self._asked)
                raise
            # The fork may have ended, which `Fork.wait` says.
            with suppress(OSError):
                await loop.sock_sendall(ours, request.encoded())
        return fork

    async def _give_up(self, asked: asyncio.Future[Fork]) -> None:
        """Kill the fork of a request, or the server if it makes none; the other forks may be stopping in order."""
        await asyncio.wait([asked], timeout=ANSWER_SECONDS_MAX)
        if not asked.done():
            # Its next message would answer a request that was given up.
            self.has_ended = True
            self.kill()
        elif asked.exception() is None:
            with suppress(ProcessLookupError):
                os.killpg(asked.result().pid, signal.SIGKILL)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> None:
        self._say = lambda _: None
        self.kill()
        await self._reading

    async def _read(self) -> None:
        loop, rest = asyncio.get_running_loop(), b""
        with suppress(OSError):
            while chunk := await loop.sock_recv(self._control, _CHUNK_BYTES):
                *messages, rest = (rest + chunk).split(b"\n")
                for message in messages:
                    self._take(**json.loads(message))
        self.fault = f"{SERVER} {describe_end(await self._process.wait())}"
        self.has_ended, self.ended_at = True, loop.time()
        self._control.close()
        with_it = ", and the stages with it; they start again" if self._forks else ""
        words = log_file.tail(self._log, TAIL_LINES)
        self._say(f"{self.fault}{with_it}." + (f" Its log ends with:\n{words}" if words else ""))
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(ForkError(self.fault))
        for fork in self._forks.values():
            fork.take_end(_KILLED)

    def _take(self, pid: int = 0, code: int | None = None, fault: str = "") -> None:
        """Take a message of the server: it forked a process, or could not, or one ended."""
        if code is not None:
            if pid in self._forks:
                self._forks.pop(pid).take_end(code)
            return
        if pid:
            self._forks[pid] = Fork(pid)
        if self._asked is not None and not self._asked.done():
            if pid:
                self._asked.set_result(self._forks[pid])
            else:
                self._asked.set_exception(ForkError(fault))
