"""A supervised process: starts, watches, restarts and stops it."""

import asyncio
import os
import signal
import time
from asyncio.subprocess import DEVNULL, STDOUT
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final, Protocol

from tidemill.kafka.freeze_guard import FROZEN
from tidemill.local import log_file, parent_death
from tidemill.retrying import pause_seconds
from tidemill.runtime import notify
from tidemill.runtime.heartbeat import BLOCKED
from tidemill.runtime.watchdog import LOOK_SECONDS, Silence

START_SECONDS_MAX = 180.0
"""How long a start may take without progress."""
STOP_SECONDS_MAX = 10.0
LAST_WORK_SECONDS_MAX = 20.0
"""How much longer a stop may take while the program does its `last_work`."""
KILLED_SECONDS_MAX = 5.0
"""How long to wait for the end of a process that was killed."""
PUMP_SECONDS_MAX = 1.0
"""How long to wait for the last output of a process that has ended."""
SILENCE_SECONDS_MAX = 30.0
"""A process that sends heartbeats is restarted after this time without one."""
CHUNK_BYTES = 64 * 1024
TAIL_LINES = 15
DELAY_SECONDS_MIN = 0.1
DELAY_SECONDS_MAX = 10.0
STABLE_SECONDS = 30.0
"""A process that was ready for this long did not fail at its start, so its restart delays start over."""
STARTS_MAX = 3
"""How often a process that was never ready is started."""

Say = Callable[[str], None]
"""Prints a line for the operator."""


class ChildError(Exception):
    """A process cannot be started; the text has the end of its log."""


class Process(Protocol):
    """A process that runs, or has ended."""

    @property
    def pid(self) -> int:
        """Its id."""
        ...

    async def wait(self) -> int:
        """Return its exit code, or the negative number of the signal that ended it, once it has ended."""
        ...

    def terminate(self) -> None:
        """Send SIGTERM; raises `ProcessLookupError`, or does nothing, if it has ended."""
        ...


Start = Callable[[FileIO, FileIO], Coroutine[Any, Any, Process]]
"""Starts a process that writes its output to the first pipe, and words of `tidemill.runtime.notify` to the second.
It has a process group of its own: Ctrl-C goes only to the supervisor, which stops everything in order."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program: a way to start it, its log, and a way to notice that it is ready."""

    name: str
    start: Start
    log: Path
    """File for its output."""
    answers: Callable[[], Awaitable[None]] | None = None
    """Returns once the program is ready; None for a program that uses `tidemill.runtime.notify`."""
    last_words: Callable[[], str] | None = None
    """Returns its last output, if that is not in `log`."""
    start_seconds_max: float = START_SECONDS_MAX
    """Each `notify.progress` restarts this time."""
    stage: str | None = None
    """Its stage, which may have several processes; by default its name."""
    niceness: int = 0
    """Added to the niceness of this process once the program is ready."""
    last_work: Callable[[], str | None] = lambda: None
    """What the program still does at its stop, as a sentence; None if it has no reason to take longer."""
    give_up: Callable[[], None] = lambda: None
    """Makes `Process.wait` return if the end of a killed process is not reported."""


def executed(command: Callable[[], list[str]], environ: Mapping[str, str], folder: Path | None = None) -> Start:
    """Start the command line that `command` returns each time, in this folder, by default that of this process."""

    async def start(output: FileIO, messages: FileIO) -> Process:
        return await asyncio.create_subprocess_exec(
            *parent_death.command(command()),
            stdin=DEVNULL,
            stdout=output,
            stderr=STDOUT,
            env={**environ, notify.VARIABLE: str(messages.fileno())},
            cwd=folder,
            pass_fds=(messages.fileno(),),
            process_group=0,
        )

    return start


class Child:
    """Keeps one program running until it is stopped; calls `changed` after each change of `pid`.

    Attributes:
        ready: Whether the current process is ready.
    """

    def __init__(self, program: Program, *, say: Say, changed: Callable[[], None]) -> None:
        self.name = program.name
        self.stage = program.stage or program.name
        self.ready = asyncio.Event()
        self._program = program
        self._say = say
        self._changed = changed
        self._stopping = asyncio.Event()
        self._has_run = False
        """Whether the last start brought a process, which may have written something."""
        self._ever_ready = False
        self._ready_at: float | None = None
        """Monotonic time at which the current or last process was ready, if it was."""
        self._beats = False
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """The current process, if any."""
        return self._process.pid if self._process else None

    async def run(self) -> None:
        """Run the program, restarting it when it ends; returns once it has ended after `stop` or `kill`.

        Raises:
            ChildError: It cannot be started.
        """
        failures = 0
        while not self._stopping.is_set():
            self._ready_at, self._has_run = None, False
            end = await self._run_once()
            if self._stopping.is_set():
                return
            is_stable = self._ready_at is not None and time.monotonic() - self._ready_at >= STABLE_SECONDS
            failures = 1 if is_stable else failures + 1
            if not self._ever_ready and failures >= STARTS_MAX:
                words = self._last_words() if self._has_run else ""
                its_log = f" Its log ends with:\n{words}" if words else ""
                raise ChildError(f"{self.name} cannot be started: it {end}.{its_log}")
            delay = pause_seconds(failures - 1, first=DELAY_SECONDS_MIN, longest=DELAY_SECONDS_MAX)
            self._say(f"{self.name} {end}; restarting it in {delay:.1f} s. Its log: {self._program.log}")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def stop(self, seconds_max: float = STOP_SECONDS_MAX) -> None:
        """Terminate it, kill it after that time or after its last work, and wait for its end."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), seconds_max)
        except TimeoutError:
            if (work := self._program.last_work()) is not None:
                self._say(work)
                seconds_max += LAST_WORK_SECONDS_MAX
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), LAST_WORK_SECONDS_MAX)
                    return
            self._say(f"{self.name} did not stop within {seconds_max:.0f} s; killing it.")
            self.kill()
            await self._end(process)

    def kill(self) -> None:
        """Kill it and its children."""
        self._stopping.set()
        if self._process is not None:
            _kill_group(self._process.pid)

    async def _run_once(self) -> str:
        """Start it and watch it until it ends; returns how it ended."""
        with ExitStack() as stack:
            try:
                log = log_file.LogFile(self._program.log)
                stack.callback(log.close)
                # asyncio's own pipes would make `process.wait` wait for every process that inherited them.
                output, output_end = _pipe(stack)
                messages, messages_end = _pipe(stack)
                process = await self._start(output_end, messages_end)
            except TimeoutError:
                return f"could not be run within {self._program.start_seconds_max:.0f} s"
            except OSError as error:
                return f"could not be run: {error}"
            if process is None:
                return "was stopped before it ran"
            self._has_run = True
            output_end.close()
            messages_end.close()
            self._now(process)
            # `stop` may have been called while the process was starting.
            if self._stopping.is_set():
                _kill_group(process.pid)
            helpers = (_task(_pump(output, log)), _task(process.wait()), _task(self._see_ready(messages)))
            try:
                return await self._watch(helpers[1], helpers[2], messages)
            finally:
                await self._reap(process, helpers)

    async def _start(self, output: FileIO, messages: FileIO) -> Process | None:
        """Start the program; None if it is to stop before it runs. Raises `TimeoutError` if it takes too long."""
        starting, stopping = _task(self._program.start(output, messages)), _task(self._stopping.wait())
        try:
            await asyncio.wait(
                (starting, stopping),
                timeout=self._program.start_seconds_max,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if starting.done():
                process: Process = starting.result()
                return process
            if self._stopping.is_set():
                return None
            raise TimeoutError
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)

    async def _end(self, process: Process) -> None:
        """Wait for the end of a process that was killed."""
        try:
            await asyncio.wait_for(process.wait(), KILLED_SECONDS_MAX)
        except TimeoutError:
            self._program.give_up()
            await process.wait()

    async def _reap(self, process: Process, helpers: tuple[asyncio.Task[Any], ...]) -> None:
        _kill_group(process.pid)
        await self._end(process)
        # The pipe still holds its last output.
        await asyncio.wait(helpers[:1], timeout=PUMP_SECONDS_MAX)
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        self._now(None)

    async def _watch(self, ended: asyncio.Task[int], readiness: asyncio.Task[None], messages: FileIO) -> str:
        await asyncio.wait([ended, readiness], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            try:
                readiness.result()
            except TimeoutError:
                return f"made no progress and was not ready within {self._program.start_seconds_max:.0f} s"
            self._ever_ready = True
            self._ready_at = time.monotonic()
            self._add_niceness()
            self.ready.set()
            silence = _task(_silence(messages) if self._beats else asyncio.Event().wait())
            try:
                await asyncio.wait([ended, silence], return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    return f"sent no heartbeat for {SILENCE_SECONDS_MAX:.0f} s"
            finally:
                silence.cancel()
        return describe_end(await ended)

    async def _see_ready(self, messages: FileIO) -> None:
        """Return once it is ready; raises `TimeoutError` after too long without progress."""
        loop, patience = asyncio.get_running_loop(), self._program.start_seconds_max
        async with asyncio.timeout(patience) as limit:
            if self._program.answers is not None:
                await self._program.answers()
                return
            while said := await _read(messages):
                if notify.READY in said:
                    self._beats = notify.BEATS in said
                    return
                if notify.PROGRESS in said:
                    limit.reschedule(loop.time() + patience)
            # A pipe closed without a message: the process has ended, or never sends one.
            await loop.create_future()

    def _now(self, process: Process | None) -> None:
        self._process = process
        if process is None:
            self.ready.clear()
        self._changed()

    def _add_niceness(self) -> None:
        if self.pid is not None and self._program.niceness:
            niceness = os.getpriority(os.PRIO_PROCESS, 0) + self._program.niceness
            # The process may have ended. Linux has a niceness for each thread; this sets it for the whole group.
            with suppress(ProcessLookupError, PermissionError):
                os.setpriority(os.PRIO_PGRP, self.pid, niceness)

    def _last_words(self) -> str:
        if self._program.last_words is not None:
            return self._program.last_words()
        return log_file.tail(self._program.log, TAIL_LINES)


def _task(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(coroutine)


def _pipe(stack: ExitStack) -> tuple[FileIO, FileIO]:
    """The reading and the writing end; the stack closes both."""
    reading, writing = (FileIO(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
    os.set_blocking(reading.fileno(), False)
    return stack.enter_context(reading), stack.enter_context(writing)


async def _read(pipe: FileIO) -> bytes:
    """The next bytes; empty at the end."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(pipe, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(pipe)
    return pipe.read(CHUNK_BYTES) or b""


async def _silence(messages: FileIO) -> None:
    """Return once a process that sends heartbeats has been silent for too long."""
    silence = Silence()
    while True:
        began = time.monotonic()
        said = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                said = await _read(messages)
                if not said:
                    # The pipe is closed: the process has ended, or sends nothing more.
                    await asyncio.get_running_loop().create_future()
        if said:
            silence.reset()
        elif silence.advance(time.monotonic() - began) >= SILENCE_SECONDS_MAX:
            return


async def _pump(output: FileIO, log: log_file.LogFile) -> None:
    while chunk := await _read(output):
        # A full disk must not block the process: then its output is lost.
        with suppress(OSError):
            log.write(chunk)


def _kill_group(pid: int) -> None:
    """Kill a process group, which may outlive its leader."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


_REASONS: Final = {
    BLOCKED: "its event loop was blocked",
    FROZEN: "it stood still for seconds, as on a machine without CPU to spare or one that slept",
}
"""Why a process of Tidemill ended itself, by its exit code."""


def describe_end(code: int) -> str:
    """How a process ended, by its exit code or the negative number of a signal: "ended with exit code 1"."""
    if code < 0:
        return f"was ended by {signal.strsignal(-code) or f'signal {-code}'}"
    reason = f": {_REASONS[code]}" if code in _REASONS else ""
    return f"ended with exit code {code}{reason}"
