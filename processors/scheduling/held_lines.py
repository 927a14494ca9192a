"""The lines whose last call failed, and when they go again.

They wait for their times without a seat. Whose time has come may take few of the seats while lines wait that have
not failed: one in `SEATS_PART`, and no more than the same part of the time that the others' calls take, counted
beforehand by how long a line's last call took. So a line that is never answered in time costs the others next to
nothing, however few seats there are.

A line that has failed twice is tried again only after a server has answered another line of its endpoint, or where
it is known that none answers: else another failure would say nothing. Even where no other line waits, as one may
come, such lines take no more than one seat in `IDLE_SEATS_PART`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from itertools import chain
from typing import Final

from tidemill.processors.backends.pool import BackendPool, Permit
from tidemill.processors.calls.proof import Proof
from tidemill.processors.lines import Line

SEATS_PART: Final = 16
IDLE_SEATS_PART: Final = 8
"""Of the seats, for lines that failed while others were answered, or more than once; while no other line waits."""
CREDIT_SECONDS_MAX: Final = 3600.0
PATIENCE_SECONDS: Final = 10.0
"""So long after its last failure a line waits for others that could tell of its server, if there are any."""
MEAN_CALLS: Final = 32
"""Over which the length of a call is averaged."""
BLIND_FAILURES: Final = 2


class Share:
    """The part of the seats that is for lines which have failed; time is that of a seat."""

    def __init__(self) -> None:
        self.busy = 0
        """Calls of such lines in flight."""
        self._credit = 0.0
        self._mean = 0.0

    def earn(self, seconds: float) -> None:
        """A call for a line has ended that had not failed."""
        self._mean += (seconds - self._mean) / MEAN_CALLS
        if self._credit < CREDIT_SECONDS_MAX:
            self._credit += seconds / SEATS_PART

    def allows(self, seconds: float, seats: int) -> bool:
        """Whether a call may begin whose line's last one took so long, while other lines wait."""
        return self.busy < max(1, seats // SEATS_PART) and self._credit >= self._cost(seconds)

    def pay(self, seconds: float) -> None:
        """A call has ended that began while others waited."""
        self._credit -= self._cost(seconds)

    def _cost(self, seconds: float) -> float:
        return min(max(seconds, self._mean), CREDIT_SECONDS_MAX)


class HeldLines:
    """Lines that wait for another try; needs a running event loop."""

    def __init__(self, pool: BackendPool, proof: Proof, due: Callable[[], None]) -> None:
        """Be empty.

        Args:
            pool: The model's servers.
            proof: Asks them whether they answer.
            due: Called when the time of a line has come.
        """
        self._share = Share()
        self._others_busy = 0
        """Calls in flight for lines that have not failed."""
        self._pool = pool
        self._proof = proof
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._endpoint = ""
        """Of the line that failed last."""
        self._waits: list[tuple[float, int, Line]] = []
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._queues: tuple[deque[Line], ...] = (deque(), deque(), deque())
        """Lines whose time has come: as good as any, of which nothing is known, suspected."""

    @property
    def are_due(self) -> bool:
        """Whether the time of any line has come."""
        return any(self._queues)

    def put(self, line: Line, at: float) -> None:
        """Let a line wait.

        Args:
            line: It has failed.
            at: When it may go again, by the loop's time.
        """
        self._endpoint = line.head.url
        self._sequence += 1
        heappush(self._waits, (at, self._sequence, line))
        self._set_timer()

    def take(self, now: float, seats: int, *, others_wait: bool) -> tuple[Line, Permit] | None:
        """The line that goes next and where to; None where none may go.

        Args:
            now: The loop's time.
            seats: Calls that may be in flight.
            others_wait: Whether lines wait that have not failed; a line that is suspected is no probe then.
        """
        for queue in self._queues:
            if queue and self._may_go(queue[0], seats, others_wait=others_wait):
                place = self._place(queue[0], now, probes=not others_wait or queue is not self._queues[-1])
                return None if place is None else (queue.popleft(), place)
        return None

    def _place(self, line: Line, now: float, *, probes: bool) -> Permit | None:
        """A place where another failure of a line says something, or else not where the last one was."""
        if _is_blind(line) and (proven := self._pool.that_answered(line.head.url, line.since)):
            return self._pool.acquire(now, among=proven, probes=probes)
        return self._pool.acquire(now, avoid=line.avoid, probes=probes)

    def ask_doubtful(self) -> None:
        """No server takes calls: where that may be for bad lines, find out."""
        self._proof.ask_doubtful(self._endpoint)

    def begin(self, line: Line, *, others_wait: bool) -> None:
        """The call of any line of the model begins."""
        line.began_at = self._loop.time()
        if not line.attempts:
            line.since = line.began_at
        line.attempts += 1
        if (history := line.history) is None or history.is_clear:
            self._others_busy += 1
        else:
            self._share.busy += 1
            history.is_charged = others_wait

    def end(self, line: Line) -> None:
        """The call has ended, and what came of it is not noted yet."""
        seconds = line.seconds = self._loop.time() - line.began_at
        if (history := line.history) is None or history.is_clear:
            self._others_busy -= 1
            self._share.earn(seconds)
            return
        self._share.busy -= 1
        if history.is_charged:
            self._share.pay(seconds)

    def drop(self, batch_id: str) -> list[Line]:
        """Take out all lines of a batch."""
        return self._take_out(lambda line: line.head.batch_id == batch_id)

    def clear(self) -> list[Line]:
        """Take out all lines."""
        return self._take_out(lambda _: True)

    def close(self) -> None:
        """Call `due` no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _may_go(self, line: Line, seats: int, *, others_wait: bool) -> bool:
        if line.history is None or line.history.is_clear:
            return True
        if others_wait:
            if not self._share.allows(line.seconds, seats):
                return False
        elif _is_suspected(line) and self._share.busy >= max(1, seats // IDLE_SEATS_PART):
            return False
        if not _is_blind(line) or self._pool.that_answered(line.head.url, line.since):
            return True
        others_may_prove = others_wait or self._others_busy > 0
        self._proof.ask(line, patience_seconds=PATIENCE_SECONDS if others_may_prove else 0.0)
        return self._proof.is_in_vain(line)

    def _take_out(self, is_wanted: Callable[[Line], bool]) -> list[Line]:
        lines: Iterable[Line] = chain(*self._queues, (line for _, _, line in self._waits))
        taken = [line for line in lines if is_wanted(line)]
        if taken:
            self._queues = tuple(deque(line for line in queue if not is_wanted(line)) for queue in self._queues)
            self._waits = [wait for wait in self._waits if not is_wanted(wait[2])]
            heapify(self._waits)
        return taken

    def _set_timer(self) -> None:
        if self._waits and (self._timer is None or self._waits[0][0] < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = self._waits[0][0]
            self._timer = self._loop.call_later(max(0.0, self._timer_at - self._loop.time()), self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._waits and self._waits[0][0] <= now:
            line = heappop(self._waits)[2]
            self._queues[_rank(line)].append(line)
        self._set_timer()
        self._due()


def _is_blind(line: Line) -> bool:
    """Whether another failure says nothing unless other lines are answered."""
    return line.history is not None and line.history.failures >= BLIND_FAILURES


def _rank(line: Line) -> int:
    if line.history is None or line.history.is_clear:
        return 0
    return 1 + _is_suspected(line)


def _is_suspected(line: Line) -> bool:
    return line.history is not None and (line.history.counted > 0 or line.history.failures >= BLIND_FAILURES)
