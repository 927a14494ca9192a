"""The calls in flight of one model: most need no task, all can be aborted.

A call on an open connection begins at once, and its answer is judged and settled as it arrives. A task makes the
calls that must first wait for something, and judges the failures and large answers of the others.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

from tidemill.processors.backends.backend import Permit
from tidemill.processors.calls.caller import Caller, CallResult
from tidemill.processors.failures import Answer, FailureKind
from tidemill.processors.lines import Line

T = TypeVar("T")


class CallsInFlight:
    """The calls of one model; needs a running event loop."""

    def __init__(
        self,
        caller: Caller,
        on_end: Callable[[Line, Permit, CallResult], None],
        on_abort: Callable[[Sequence[Line]], None],
    ) -> None:
        """Start without calls; `on_end` gets the result of each call, or `on_abort` its lines."""
        self._loop = asyncio.get_running_loop()
        self._caller = caller
        self._on_end = on_end
        self._on_abort = on_abort
        self._tasks: dict[asyncio.Task[None], Line] = {}
        """The line that each calls; of several lines in one call the first."""
        self._begun: dict[Line, tuple[Permit, Callable[[], None]]] = {}
        """The permits of calls without a task, and what aborts them."""

    def start(self, line: Line, permit: Permit) -> None:
        """Call one line."""
        if (abort := self._caller.begin(line, permit, self._answered)) is not None:
            self._begun[line] = permit, abort
        else:
            self._finish(line, permit, self._caller.make(line, permit))

    def start_joined(
        self, lines: Sequence[Line], call: Coroutine[None, None, T], on_end: Callable[[T], None]
    ) -> None:
        """Make one call for several lines; `on_end` gets what it returns."""
        task = self._loop.create_task(self._run(lines, call, on_end))
        self._tasks[task] = lines[0]
        task.add_done_callback(self._tasks.pop)

    def abort(self, batch_id: str, seconds: float) -> None:
        """Abort the calls for lines of a batch after `seconds`; the caller starts no further ones for it."""
        self._loop.call_later(seconds, self._abort, batch_id)

    async def close(self) -> None:
        """Abort all calls, and wait until the tasks have ended."""
        for line in list(self._begun):
            self._abort_begun(line)
        tasks = list(self._tasks)
        for task in tasks:
            self._cancel(task)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _answered(self, line: Line, permit: Permit, custom_id: bytes, outcome: Answer | FailureKind) -> None:
        """A call without a task has ended."""
        del self._begun[line]
        if (result := self._caller.judge_small(line, permit, custom_id, outcome)) is not None:
            self._on_end(line, permit, result)
        else:
            self._finish(line, permit, self._caller.judge(line, permit, custom_id, outcome))

    def _finish(self, line: Line, permit: Permit, call: Coroutine[None, None, CallResult]) -> None:
        """Let a task make a call, or finish it."""
        self.start_joined([line], call, lambda result: self._on_end(line, permit, result))

    async def _run(
        self, lines: Sequence[Line], call: Coroutine[None, None, T], on_end: Callable[[T], None]
    ) -> None:
        try:
            result = await call
        except asyncio.CancelledError:
            self._on_abort(lines)
            raise
        on_end(result)

    def _abort(self, batch_id: str) -> None:
        for task, line in self._tasks.items():
            if line.head.batch_id == batch_id:
                self._cancel(task)
        for line in [line for line in self._begun if line.head.batch_id == batch_id]:
            self._abort_begun(line)

    def _cancel(self, task: asyncio.Task[None]) -> None:
        """Cancel a task after its first step: before that, it would end without its clean-up.

        A task that was created in this iteration of the event loop takes its first step in the next one, before
        the cancel.
        """
        self._loop.call_soon(task.cancel)

    def _abort_begun(self, line: Line) -> None:
        permit, abort = self._begun.pop(line)
        abort()
        self._caller.pool.release(permit, is_sent=True)
        self._on_abort([line])
