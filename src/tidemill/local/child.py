"""One supervised process: started, watched, started again when it ends, stopped."""

import asyncio
import os
import random
import signal
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from tidemill.local import backoff, log_file, parent_death
from tidemill.runtime import notify
from tidemill.runtime.watchdog import LOOK_SECONDS, Silence

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 10.0
PUMP_SECONDS_MAX = 1.0
"""How long the last words of a process that has ended are waited for."""
SILENCE_SECONDS_MAX = 30.0
"""A process that promised to say that it is alive and says nothing for so long is ended, and started again."""
CHUNK_BYTES = 64 * 1024
TAIL_LINES = 15

Tell = Callable[[str], None]
"""Takes a line for the operator."""


class ChildError(Exception):
    """A process cannot be started; the text has the end of its log."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is to be run, and how one sees that it is ready."""

    name: str
    command: Callable[[], list[str]]
    """Asked for the command line at every start."""
    log: Path
    """Takes what it prints."""
    environ: Mapping[str, str] = field(repr=False)
    answers: Callable[[], Awaitable[None]] | None = None
    """Returns once the program is ready; without it the program says so through `tidemill.runtime.notify`."""
    last_words: Callable[[], str] | None = None
    """What it said last, where that is not in `log`."""
    start_seconds_max: float = START_SECONDS_MAX
    folder: Path | None = None
    """Where it runs; by default where this process does."""
    stage: str | None = None
    """The stage that it is one of several processes of; by default its name."""
    niceness: int = 0
    """Added to that of this process once the program is ready."""


class Child:
    """Keeps one program running until it is stopped.

    Args:
        program: What to run.
        tell: Takes what an operator should know.
        changed: Called when `pid` has changed.

    Attributes:
        pid: The process, while there is one.
        ready: Whether the current process is ready.
    """

    def __init__(self, program: Program, *, tell: Tell, changed: Callable[[], None]) -> None:
        self.name = program.name
        self.stage = program.stage or program.name
        self.pid: int | None = None
        self.ready = asyncio.Event()
        self._program = program
        self._tell = tell
        self._changed = changed
        self._stopping = asyncio.Event()
        self._ever_ready = False
        self._beats = False
        self._process: Process | None = None

    async def run(self) -> None:
        """Run the program again and again; returns once `stop` or `kill` was called and it has ended.

        Raises:
            ChildError: It was never ready and will not be.
        """
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            end = await self._run_once()
            if self._stopping.is_set():
                return
            match backoff.decide(
                failures=failures,
                alive_seconds=time.monotonic() - began,
                ever_ready=self._ever_ready,
                chance=random.random(),  # noqa: S311  it spreads load
            ):
                case backoff.GiveUp():
                    raise ChildError(f"{self.name} cannot be started: it {end}.\n{self._last_words()}")
                case backoff.Again(seconds=seconds, failures=failures):
                    self._tell(f"{self.name} {end}; it is started again in {seconds:.1f} s.")
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), seconds)

    async def stop(self, seconds_max: float = STOP_SECONDS_MAX) -> None:
        """Ask it to end, and end it after that time; returns when it has ended."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), seconds_max)
        except TimeoutError:
            self._tell(f"{self.name} did not stop in {seconds_max:.0f} s and is killed.")
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """End it and whatever it has started, at once."""
        self._stopping.set()
        if self._process is not None:
            _kill_group(self._process.pid)

    async def _run_once(self) -> str:
        """Start it, and see it ready and ended; says how it ended."""
        with ExitStack() as given_back:
            try:
                log = log_file.LogFile(self._program.log)
                given_back.callback(log.close)
                # A pipe of asyncio's own would make `process.wait` wait for all who have inherited it.
                said, saying = _pipe(given_back)
                word, notifying = _pipe(given_back)
                process = self._process = await self._spawn(saying, notifying)
            except OSError as error:
                return f"could not be run: {error}"
            saying.close()
            notifying.close()
            self._now(process.pid)
            # Whoever asked for a stop while the process was being made has not seen it.
            if self._stopping.is_set():
                _kill_group(process.pid)
            helpers = (_task(_pump(said, log)), _task(process.wait()), _task(self._see_ready(word)))
            try:
                return await self._watch(helpers[1], helpers[2], word)
            finally:
                await self._bury(process, helpers)

    async def _bury(self, process: Process, helpers: tuple[asyncio.Task[Any], ...]) -> None:
        _kill_group(process.pid)
        await process.wait()
        # What it has said last is still in the pipe.
        await asyncio.wait(helpers[:1], timeout=PUMP_SECONDS_MAX)
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        self._process = None
        self._now(None)

    async def _spawn(self, saying: FileIO, notifying: FileIO) -> Process:
        environ = {**self._program.environ, notify.VARIABLE: str(notifying.fileno())}
        return await asyncio.create_subprocess_exec(
            *parent_death.command(self._program.command()),
            stdin=DEVNULL,
            stdout=saying,
            stderr=STDOUT,
            env=environ,
            cwd=self._program.folder,
            pass_fds=(notifying.fileno(),),
            # Ctrl-C goes to the supervisor alone, which knows the order of things.
            process_group=0,
        )

    async def _watch(self, ended: asyncio.Task[int], readiness: asyncio.Task[None], word: FileIO) -> str:
        patience = self._program.start_seconds_max
        await asyncio.wait([ended, readiness], timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            if not readiness.done():
                return f"was not ready in {patience:.0f} s"
            readiness.result()
            self._ever_ready = True
            self._add_niceness()
            self.ready.set()
            silence = _task(_silence(word) if self._beats else asyncio.Event().wait())
            try:
                await asyncio.wait([ended, silence], return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    return f"has not been heard of for {SILENCE_SECONDS_MAX:.0f} s"
            finally:
                silence.cancel()
        return _how(await ended)

    async def _see_ready(self, word: FileIO) -> None:
        if self._program.answers is not None:
            await self._program.answers()
            return
        if said := await _read(word):
            self._beats = notify.BEATS in said
            return
        # A pipe that is closed without a word belongs to a process that has ended or will not speak.
        await asyncio.get_running_loop().create_future()

    def _now(self, pid: int | None) -> None:
        self.pid = pid
        if pid is None:
            self.ready.clear()
        self._changed()

    def _add_niceness(self) -> None:
        if self.pid is not None and self._program.niceness:
            niceness = os.getpriority(os.PRIO_PROCESS, 0) + self._program.niceness
            # It may have ended. Linux has a niceness for each thread, and sets it for all of a group.
            with suppress(ProcessLookupError, PermissionError):
                os.setpriority(os.PRIO_PGRP, self.pid, niceness)

    def _last_words(self) -> str:
        if self._program.last_words is not None:
            return self._program.last_words()
        return log_file.tail(self._program.log, TAIL_LINES)


def _task(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(coroutine)


def _pipe(given_back: ExitStack) -> tuple[FileIO, FileIO]:
    """The reading and the writing end; both are closed with the stack at the latest."""
    reading, writing = (FileIO(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
    os.set_blocking(reading.fileno(), False)
    return given_back.enter_context(reading), given_back.enter_context(writing)


async def _read(pipe: FileIO) -> bytes:
    """The next bytes; none at the end."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(pipe, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(pipe)
    return pipe.read(CHUNK_BYTES) or b""


async def _silence(word: FileIO) -> None:
    """Return once a process that promised to say that it is alive has said nothing for too long."""
    silence = Silence()
    while True:
        began = time.monotonic()
        said = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                said = await _read(word)
                if not said:
                    # It has closed the pipe: it has ended, or will not speak any more.
                    await asyncio.get_running_loop().create_future()
        if said:
            silence.heard()
        elif silence.pass_(time.monotonic() - began) >= SILENCE_SECONDS_MAX:
            return


async def _pump(said: FileIO, log: log_file.LogFile) -> None:
    while chunk := await _read(said):
        # A full disk must not hold up the process: what cannot be written is lost.
        with suppress(OSError):
            log.write(chunk)


def _kill_group(pid: int) -> None:
    """The group outlives its leader: what that has started goes with it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _how(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.strsignal(-code) or f'signal {-code}'}"
    return f"ended with exit code {code}"
