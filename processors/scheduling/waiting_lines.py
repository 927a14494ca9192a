"""The lines of a model that wait for a call: which is called next, and by which backend.

A line waits with the others of its batch and project (`scheduler.py`), after a failure for its next try
(`held_lines.py`), and if it is large, perhaps for memory (`large_lines.py`).
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from tidemill.processors.backends.pool import FAILED_PART_MAX, BackendPool, Permit
from tidemill.processors.calls.proof import Proof
from tidemill.processors.lines import Line
from tidemill.processors.memory_budget import LineBudget
from tidemill.processors.scheduling.held_lines import HeldLines
from tidemill.processors.scheduling.large_lines import LargeLines
from tidemill.processors.scheduling.prefix_groups import PRIMER_SECONDS_MAX, Prefixes
from tidemill.processors.scheduling.scheduler import Scheduler
from tidemill.schemas.log.codec import RequestHead

RUN_PART: Final = 4
"""A run of lines of one batch is at most one part in so many of what is in flight."""


class WaitingLines:
    """Chooses among them; needs a running event loop."""

    def __init__(
        self,
        pool: BackendPool,
        proof: Proof,
        budget: LineBudget,
        *,
        chance: Callable[[], float],
        weights: Mapping[str, float] | None,
        prefixes: Prefixes[Line] | None,
        calls_max: Callable[[], int],
        wake: Callable[[], None],
    ) -> None:
        """Hold none.

        Args:
            pool: The backends of the model.
            proof: Asks them whether they answer.
            budget: The memory for large lines.
            chance: Random numbers, 0 <= x < 1.
            weights: Of projects, by name; 1 if a project is not named.
            prefixes: Set if lines with a common prefix are called one after the other.
            calls_max: Calls that the backends are known to take, and that may be made.
            wake: Called when a line may be called that could not be before.
        """
        self._pool = pool
        self._chance = chance
        self._calls_max = calls_max
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._fresh: Scheduler[Line] = Scheduler(weights, prefixes=prefixes)
        self._large = LargeLines(budget, weights, self._wake_soon)
        self._held = HeldLines(pool, proof, wake)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def add(self, lines: Iterable[Line], head: RequestHead) -> None:
        """Let lines of one record wait; they keep their order."""
        self._fresh.add(lines, project=head.project, batch_id=head.batch_id, deadline=head.deadline)

    def hold(self, line: Line, at: float) -> None:
        """Let a line wait for another try until `at`, in seconds of the event loop's clock."""
        self._held.put(line, at)

    def waiting(self, batch_id: str) -> int:
        """Lines of a batch that wait for their first call, and not for memory."""
        return self._fresh.waiting(batch_id)

    def waiting_for_memory(self, batch_id: str) -> int:
        """Large lines of a batch that wait for memory."""
        return self._large.waiting(batch_id)

    def take(self, in_flight: int) -> tuple[Line, Permit] | None:
        """The line that is called next and the permit for its call; None if none may be called.

        Either `begin` or `abandon` follows.

        Args:
            in_flight: Calls of the model that are in flight.
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
        """The call of a line begins."""
        # At once, and not when its task starts: the next line of the same round depends on it.
        self._held.begin(line, others_wait=bool(self._fresh))
        if self._fresh.is_primer(line):
            self._loop.call_later(PRIMER_SECONDS_MAX, self._primed, line)

    def end(self, line: Line) -> None:
        """The call of a line has ended; its failure, if it is one, is not noted yet."""
        self._held.end(line)
        if line.head.ref is not None:
            self._large.release(line)
        self._primed(line)

    def abandon(self, line: Line, permit: Permit) -> None:
        """The call of a line is not made after all."""
        self._pool.release(permit)
        if line.head.ref is not None:
            self._large.release(line)
        self._fresh.primed(line)

    def drop(self, batch_id: str) -> list[Line]:
        """Take out all lines of a batch."""
        return [*self._fresh.drop(batch_id), *self._held.drop(batch_id), *self._large.drop(batch_id)]

    def clear(self) -> list[Line]:
        """Take out all lines."""
        return [*self._fresh.clear(), *self._held.clear(), *self._large.clear()]

    def close(self) -> None:
        """Wake the dispatcher no more."""
        self._held.close()
        self._large.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _choose(self, now: float, in_flight: int) -> tuple[Line, Permit] | None:
        if self._large and (line := self._large.ready) is not None:
            if (permit := self._pool.acquire(now, avoid=line.avoid)) is not None:
                return line, permit
            if not in_flight:
                self._large.suspend()
        if self._held.are_due:
            found = self._held.take(now, self._calls_max(), others_wait=bool(self._fresh))
            if found is not None:
                return found
        if not self._fresh:
            if self._held.are_due or self._large.ready is not None:
                self._wake_later(now)
            return None
        if (permit := self._pool.acquire(now)) is None:
            self._wake_later(now)
            self._held.ask_doubtful()
            return None
        # If many lines fail, the next ones in order may fail for the same reason.
        is_random = permit.is_probe or permit.backend.failed_part > FAILED_PART_MAX
        chance = self._chance() if is_random else None
        line = self._fresh.take(permit.backend, stretch=in_flight // RUN_PART, chance=chance)
        assert line is not None, "there is one"
        return line, permit

    def _primed(self, line: Line) -> None:
        """Lines that waited for the call of this one may be called, if there are any."""
        if self._fresh.primed(line):
            self._wake()

    def _wake_soon(self) -> None:
        self._loop.call_soon(self._wake)

    def _wake_later(self, now: float) -> None:
        """Look again when a backend may take a call; the end of a call wakes the dispatcher by itself."""
        if (at := self._pool.opens_at(now)) is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(at - now, self._look)

    def _look(self) -> None:
        self._timer = None
        self._wake()
