"""The lines whose last call failed, and when each is called again.

A line waits for its time without a call in flight. While lines wait that have not failed, retries get few calls:
one in `RETRY_DIVISOR` of those in flight, and that part of the time which the other calls take. The time of a
retry is estimated beforehand from the line's last call. So a line that always times out costs the others next to
nothing, even if few calls may be in flight.

After two failures a line is called again only once a server has answered another line of its endpoint, or is known
to answer none: otherwise another failure would prove nothing. Even if no other line waits, such lines get no more
than one call in `SUSPECT_DIVISOR`, since other lines may arrive.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from itertools import chain
from typing import Final

from tidemill.processors.backends.backend import Permit
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.calls.health_probe import HealthProbe
from tidemill.processors.lines import Line
from tidemill.processors.scheduling.prefix_groups import take_wanted
from tidemill.processors.timer import EarliestTimer

RETRY_DIVISOR: Final = 16
SUSPECT_DIVISOR: Final = 8
"""The part for suspects while no other line waits: lines that failed while others were answered, or repeatedly."""
CREDIT_SECONDS_MAX: Final = 3600.0
PATIENCE_SECONDS: Final = 10.0
"""How long after its last failure a line waits for the calls of other lines, before a health probe is sent."""
MEAN_CALLS: Final = 32
"""Calls over which the duration is averaged."""
BLIND_FAILURES: Final = 2


class RetryShare:
    """The part of the calls that goes to failed lines, in seconds of calls in flight."""

    def __init__(self) -> None:
        self.busy = 0
        """Retries in flight."""
        self._credit = 0.0
        self._mean = 0.0

    def earn(self, seconds: float, lines: int) -> None:
        """Note the end of a call with `lines` lines for one of them that has not failed."""
        self._mean += (seconds - self._mean) / MEAN_CALLS
        if self._credit < CREDIT_SECONDS_MAX:
            self._credit += seconds / (RETRY_DIVISOR * lines)

    def allows(self, seconds: float, calls_max: int) -> bool:
        """Whether a line may be retried while others wait; `seconds` is the duration of its last call."""
        return self.busy < max(1, calls_max // RETRY_DIVISOR) and self._credit >= self._cost(seconds)

    def pay(self, seconds: float) -> None:
        """Note the end of a retry that began while others waited."""
        self._credit -= self._cost(seconds)

    def _cost(self, seconds: float) -> float:
        return min(max(seconds, self._mean), CREDIT_SECONDS_MAX)


class RetryQueue:
    """Lines that wait for another call; needs a running event loop."""

    def __init__(self, pool: BackendPool, probe: HealthProbe, wake: Callable[[], None]) -> None:
        """Start empty; `wake` is called when the time of a line has come."""
        self._share = RetryShare()
        self._others_busy = 0
        """Calls in flight for lines that have not failed."""
        self._pool = pool
        self._probe = probe
        self._wake_dispatcher = wake
        self._loop = asyncio.get_running_loop()
        self._endpoint = ""
        """The endpoint of the line that failed last."""
        self._waits: list[tuple[float, int, Line]] = []
        self._sequence = 0
        self._timer = EarliestTimer(self._wake)
        self._queues: tuple[deque[Line], ...] = (deque(), deque(), deque())
        """Due lines: those with a fault of the server, those that failed once, and suspects."""

    @property
    def are_due(self) -> bool:
        """Whether the time of any line has come."""
        return any(self._queues)

    def put(self, line: Line, at: float) -> None:
        """Let a failed line wait until `at`, by the event loop's clock."""
        self._endpoint = line.head.url
        self._sequence += 1
        heappush(self._waits, (at, self._sequence, line))
        self._timer.set(at)

    def take(self, now: float, calls_max: int, *, others_wait: bool) -> tuple[Line, Permit] | None:
        """The line that is called next and the permit for its call; None if no line may be called.

        While others wait that have not failed, a suspect does not probe a server.
        """
        for queue in self._queues:
            if queue and self._may_go(queue[0], calls_max, others_wait=others_wait):
                permit = self._acquire(queue[0], now, probes=not others_wait or queue is not self._queues[-1])
                return None if permit is None else (queue.popleft(), permit)
        return None

    def _acquire(self, line: Line, now: float, *, probes: bool) -> Permit | None:
        """A permit for a server where another failure would be evidence, else for another server than before."""
        if _is_blind(line) and (proven := self._pool.that_answered(line.head.url, line.since)):
            return self._pool.acquire(now, among=proven, probes=probes)
        return self._pool.acquire(now, avoid=line.avoid, probes=probes)

    def take_along(self, batch_id: str, wants: Callable[[Line], bool], span: int) -> None:
        """Like `Scheduler.take_along`, for due lines that are not suspect."""
        take_wanted(self._queues[0], lambda line: line.head.batch_id == batch_id and wants(line), span)

    def ask_doubtful(self) -> None:
        """Probe servers that accept no calls, perhaps because of bad lines."""
        self._probe.ask_doubtful(self._endpoint)

    def begin(self, line: Line, *, others_wait: bool) -> None:
        """Note that the call of any line begins."""
        line.began_at = self._loop.time()
        if not line.attempts:
            line.since = line.began_at
        line.attempts += 1
        if (history := line.history) is None or history.is_clear:
            self._others_busy += 1
        else:
            self._share.busy += 1
            history.is_charged = others_wait

    def end(self, line: Line, lines: int = 1) -> None:
        """Note that a call with `lines` lines has ended for one of them, before its failure is noted."""
        seconds = line.seconds = self._loop.time() - line.began_at
        if (history := line.history) is None or history.is_clear:
            self._others_busy -= 1
            self._share.earn(seconds, lines)
            return
        self._share.busy -= 1
        if history.is_charged:
            self._share.pay(seconds)

    def abort(self, line: Line) -> None:
        """Note that the call of a line was aborted: its duration does not count."""
        if line.history is None or line.history.is_clear:
            self._others_busy -= 1
        else:
            self._share.busy -= 1

    def drop(self, batch_id: str) -> list[Line]:
        """Remove and return all lines of a batch."""
        return self._take_out(lambda line: line.head.batch_id == batch_id)

    def clear(self) -> list[Line]:
        """Remove and return all lines."""
        return self._take_out(lambda _: True)

    def close(self) -> None:
        """Stop waking the dispatcher."""
        self._timer.cancel()

    def _may_go(self, line: Line, calls_max: int, *, others_wait: bool) -> bool:
        if line.history is None or line.history.is_clear:
            return True
        if others_wait:
            if not self._share.allows(line.seconds, calls_max):
                return False
        elif _is_suspected(line) and self._share.busy >= max(1, calls_max // SUSPECT_DIVISOR):
            return False
        if not _is_blind(line) or self._pool.that_answered(line.head.url, line.since):
            return True
        others_may_prove = others_wait or self._others_busy > 0
        self._probe.ask(line, patience_seconds=PATIENCE_SECONDS if others_may_prove else 0.0)
        return self._probe.cannot_help(line)

    def _take_out(self, is_wanted: Callable[[Line], bool]) -> list[Line]:
        lines: Iterable[Line] = chain(*self._queues, (line for _, _, line in self._waits))
        taken = [line for line in lines if is_wanted(line)]
        if taken:
            self._queues = tuple(deque(line for line in queue if not is_wanted(line)) for queue in self._queues)
            self._waits = [wait for wait in self._waits if not is_wanted(wait[2])]
            heapify(self._waits)
        return taken

    def _wake(self) -> None:
        now = self._loop.time()
        while self._waits and self._waits[0][0] <= now:
            line = heappop(self._waits)[2]
            self._queues[_rank(line)].append(line)
        if self._waits:
            self._timer.set(self._waits[0][0])
        self._wake_dispatcher()


def _is_blind(line: Line) -> bool:
    """Whether another failure would prove nothing unless other lines are answered."""
    return line.history is not None and line.history.failures >= BLIND_FAILURES


def _rank(line: Line) -> int:
    if line.history is None or line.history.is_clear:
        return 0
    return 1 + _is_suspected(line)


def _is_suspected(line: Line) -> bool:
    return line.history is not None and (line.history.counted > 0 or line.history.failures >= BLIND_FAILURES)
