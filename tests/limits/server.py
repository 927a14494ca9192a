"""One server in virtual time, and the processes that call it."""

import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from support.virtual import failed

from tidemill.processors.backends.backend import Permit
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.limits.server_metrics import ServerMetrics

REFUSAL_SECONDS: Final = 0.001
READING_SECONDS: Final = 1.0
SAMPLE_SECONDS: Final = 0.05


def always(_: float) -> bool:
    """There are always lines."""
    return True


@dataclass(frozen=True, kw_only=True)
class Load:
    """A server, and when each process has lines for it. Times are seconds since the start.

    Attributes:
        seconds: Duration of the run.
        capacity: Calls that the server works on concurrently, by time.
        latency: Mean seconds of a call; calls take between half and one and a half of it, evenly distributed.
        queues: Whether it queues calls above its capacity; otherwise it refuses them.
        has_metrics: Whether it reports running and waiting calls, once a second.
        crowded: Number of calls from which on it refuses a share of them, and that share.
        chance: Share of calls that it refuses at random, at their end.
        deaf: Bound in seconds on the delay with which a process sees the end of a call.
        wanted: For each process, whether it has lines at a time.
        measured_from: Time before which nothing counts.
    """

    seconds: float
    capacity: Callable[[float], int]
    latency: float = 0.1
    queues: bool = False
    has_metrics: bool = False
    crowded: tuple[int, float] | None = None
    chance: float = 0.0
    deaf: float = 0.002
    wanted: Sequence[Callable[[float], bool]] = (always,)
    measured_from: float = 0.0


@dataclass
class Seen:
    """Results of a simulation: the times of events, and levels sampled twenty times a second."""

    sent: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    levels: list[tuple[float, int, int]] = field(default_factory=list)
    """Time, running calls, waiting calls."""


@dataclass
class _Call:
    pool: BackendPool
    permit: Permit
    number: int


class Simulation:
    """Runs one load against pools of one backend each."""

    def __init__(self, load: Load, pools: Sequence[BackendPool], *, reads_metrics: bool, seed: int) -> None:
        self._load = load
        self._pools = pools
        self._reads = reads_metrics and load.has_metrics
        self._chance = random.Random(seed)
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._running = 0
        self._queue: deque[_Call] = deque()
        self.seen = Seen()

    def run(self) -> Seen:
        """From the start to the end."""
        load = self._load
        for number in range(int(load.seconds / SAMPLE_SECONDS)):
            self._at(number * SAMPLE_SECONDS, self._sample)
        for number in range(1, int(load.seconds / READING_SECONDS)):
            self._at(number * READING_SECONDS, self._read)
        while self._events and self._events[0][0] <= load.seconds:
            self._now, _, act = heappop(self._events)
            act()
            self._fill()
        return self.seen

    def _at(self, at: float, act: Callable[[], None]) -> None:
        heappush(self._events, (at, next(self._order), act))

    def _fill(self) -> None:
        for pool, wanted in zip(self._pools, self._load.wanted, strict=True):
            if not wanted(self._now):
                continue
            while (permit := pool.acquire(self._now)) is not None:
                self.seen.sent.append(self._now)
                self._send(_Call(pool, permit, len(self.seen.sent)))
            if (at := pool.opens_at(self._now)) is not None:
                self._at(at, lambda: None)

    def _send(self, call: _Call) -> None:
        load = self._load
        if self._running < load.capacity(self._now) and not self._is_crowded():
            self._start(call)
        elif load.queues:
            self._queue.append(call)
        else:
            self._hear(REFUSAL_SECONDS, call, well=False)

    def _is_crowded(self) -> bool:
        crowded = self._load.crowded
        return crowded is not None and self._running >= crowded[0] and self._chance.random() < crowded[1]

    def _start(self, call: _Call) -> None:
        self._running += 1
        self._at(self._now + self._load.latency * self._chance.uniform(0.5, 1.5), lambda: self._end(call))

    def _end(self, call: _Call) -> None:
        self._running -= 1
        while self._queue and self._running < self._load.capacity(self._now):
            self._start(self._queue.popleft())
        self._hear(0.0, call, well=self._chance.random() >= self._load.chance)

    def _hear(self, seconds: float, call: _Call, *, well: bool) -> None:
        self._at(self._now + seconds + self._load.deaf * self._chance.random(), lambda: self._heard(call, well))

    def _heard(self, call: _Call, well: bool) -> None:
        if well:
            self.seen.answered.append(self._now)
            call.pool.answered(call.permit, self._now)
            return
        self.seen.refused.append(self._now)
        failure = failed(line=("batch", call.number), at=self._now, is_full=True, retry_after=1.0)
        call.pool.failed(call.permit, failure)

    def _sample(self) -> None:
        self.seen.levels.append((self._now, self._running, len(self._queue)))

    def _read(self) -> None:
        if not self._reads:
            return
        metrics = ServerMetrics(running=self._running, waiting=len(self._queue))
        for pool in self._pools:
            for backend in pool.backends:
                if backend.in_flight:
                    backend.server.apply_metrics(metrics, backend.in_flight, self._now)
