"""The lines of a model that wait for a call: chooses which is called next, and at which backend.

A line waits for the turn of its project and batch (`scheduler.py`), after a failure for its next call
(`retry_queue.py`), and if it is large, perhaps for memory (`large_lines.py`).
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from tidemill.processors.backends.backend import Permit
from tidemill.processors.backends.permit_queue import NextLine
from tidemill.processors.backends.pool import FAILED_PART_MAX, BackendPool
from tidemill.processors.calls.caller import CallResult
from tidemill.processors.calls.health_probe import HealthProbe
from tidemill.processors.joined.joiner import JoinedCall, Joiner
from tidemill.processors.lines import Line
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.scheduling.large_lines import LargeLines
from tidemill.processors.scheduling.prefix_groups import PRIMER_SECONDS_MAX, Prefixes
from tidemill.processors.scheduling.retry_queue import RetryQueue
from tidemill.processors.scheduling.scheduler import Scheduler
from tidemill.processors.timer import EarliestTimer
from tidemill.schemas.log.codec import RequestHead

RUN_DIVISOR: Final = 4
"""A run of lines of one batch has at most one in `RUN_DIVISOR` of the calls in flight."""


class WaitingLines:
    """Chooses the next line and its backend; needs a running event loop."""

    def __init__(
        self,
        pool: BackendPool,
        probe: HealthProbe,
        budget: LineBudget,
        *,
        chance: Callable[[], float],
        prefixes: Prefixes[Line] | None,
        joiner: Joiner | None,
        calls_max: Callable[[], int],
        wake: Callable[[], None],
    ) -> None:
        """Start empty.

        `calls_max` returns how many calls the backends take, at most the number that may be in flight; `wake` is
        called when another line may be called.
        """
        self._pool = pool
        self._joiner = joiner
        self._chance = chance
        self._calls_max = calls_max
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._fresh: Scheduler[Line] = Scheduler(pool.clocks, prefixes=prefixes)
        self._large = LargeLines(budget, pool.clocks.weights, self._wake_soon)
        self._retries = RetryQueue(pool, probe, wake)
        self._timer = EarliestTimer(wake)

    def add(self, lines: Iterable[Line], head: RequestHead) -> None:
        """Add the lines of one record in their order."""
        self._fresh.add(lines, project=head.project, batch_id=head.batch_id, deadline=head.deadline)

    def follow(self) -> None:
        """Note that the pool has other servers or clocks."""
        self._fresh.follow(self._pool.clocks)

    def hold(self, line: Line, at: float) -> None:
        """Let a line wait for another call until `at`, by the event loop's clock."""
        self._retries.put(line, at)

    def waiting(self, batch_id: str) -> int:
        """Lines of a batch that wait for their first call, and not for memory."""
        return self._fresh.waiting(batch_id)

    def waiting_for_memory(self, batch_id: str) -> int:
        """Large lines of a batch that wait for memory."""
        return self._large.waiting(batch_id)

    def next_line(self) -> NextLine | None:
        """The next line of this model at a shared server; None if no line may be called."""
        if (next_line := self._fresh.next_line()) is not None:
            return NextLine(*next_line)
        if self._retries.are_due or self._large.ready is not None:
            return NextLine(self._pool.clocks.now, "", math.inf)
        return None

    def take(self, in_flight: int) -> tuple[Line, Permit] | None:
        """The line that is called next and the permit for its call; None if no line may be called.

        The caller then calls `begin` or `abandon`. `in_flight` counts calls of the model.
        """
        now = self._loop.time()
        while (found := self._choose(now, in_flight)) is not None:
            line, permit = found
            if line.head.ref is None or self._large.admit(line):
                return found
            self._pool.release(permit)
            self._fresh.primed(line)
        return None

    def begin(self, line: Line) -> None:
        """Note that the call of a line begins."""
        # Before its call starts, since the choice of the next line depends on it.
        self._retries.begin(line, others_wait=bool(self._fresh))
        if self._fresh.is_primer(line):
            self._loop.call_later(PRIMER_SECONDS_MAX, self._primed, line)

    def join(self, line: Line, permit: Permit) -> JoinedCall | None:
        """A call for a line and for waiting ones that begin with it; None if the line goes alone."""
        if self._joiner is None:
            return None

        def company(wants: Callable[[Line], bool], span: int) -> None:
            self._retries.take_along(line.head.batch_id, wants, span)
            self._fresh.take_along(line.head.batch_id, wants, span)

        if (call := self._joiner.join(line, permit, company)) is not None:
            for other in call.lines[1:]:
                self.begin(other)
        return call

    def end_joined(self, call: JoinedCall, results: Sequence[CallResult] | None) -> None:
        """Note the end of a joined call; without results, smaller calls must ask for its lines."""
        for line in call.lines:
            self.end(line, len(call.lines))
        assert self._joiner is not None, "it made the call"
        self._joiner.ended(call, results)

    def end(self, line: Line, lines: int = 1) -> None:
        """Note that a call with `lines` lines has ended for one of them, before its failure is noted."""
        self._retries.end(line, lines)
        self._leave(line)

    def abort(self, line: Line) -> None:
        """Note that the call of a line was aborted."""
        self._retries.abort(line)
        self._leave(line)

    def _leave(self, line: Line) -> None:
        if line.head.ref is not None:
            self._large.release(line)
        self._primed(line)

    def abandon(self, line: Line, permit: Permit) -> None:
        """Return the permit of a line that is not called."""
        self._pool.release(permit)
        if line.head.ref is not None:
            self._large.release(line)
        self._fresh.primed(line)

    def drop(self, batch_id: str) -> list[Line]:
        """Remove and return all lines of a batch."""
        return [*self._fresh.drop(batch_id), *self._retries.drop(batch_id), *self._large.drop(batch_id)]

    def clear(self) -> list[Line]:
        """Remove and return all lines."""
        return [*self._fresh.clear(), *self._retries.clear(), *self._large.clear()]

    def close(self) -> None:
        """Stop waking the dispatcher."""
        self._retries.close()
        self._large.clear()
        self._timer.cancel()

    def _choose(self, now: float, in_flight: int) -> tuple[Line, Permit] | None:
        if self._large and (line := self._large.ready) is not None:
            if (permit := self._pool.acquire(now, avoid=line.avoid)) is not None:
                return line, permit
            if not in_flight:
                self._large.suspend()
        if self._retries.are_due:
            found = self._retries.take(now, self._calls_max(), others_wait=bool(self._fresh))
            if found is not None:
                return found
        if not self._fresh:
            if self._retries.are_due or self._large.ready is not None:
                self._wake_later(now)
            return None
        if (permit := self._pool.acquire(now)) is None:
            self._wake_later(now)
            self._retries.ask_doubtful()
            return None
        # If many lines fail, the next ones in order may fail for the same reason.
        is_random = any(permit.probes) or permit.backend.failed_part > FAILED_PART_MAX
        chance = self._chance() if is_random else None
        line = self._fresh.take(permit.backend, turn_lines=in_flight // RUN_DIVISOR, chance=chance)
        assert line is not None, "there is one"
        return line, permit

    def _primed(self, line: Line) -> None:
        """Release the lines that waited for the call of this one."""
        if self._fresh.primed(line):
            # The result of the call that ends here has to be counted first.
            self._wake_soon()

    def _wake_soon(self) -> None:
        self._loop.call_soon(self._wake)

    def _wake_later(self, now: float) -> None:
        """Set a timer for when a backend may take a call; the end of a call wakes the dispatcher anyway."""
        if (at := self._pool.opens_at(now)) is not None:
            self._timer.set(at)
