"""A backend in virtual time, to test the limit and the breaker without waiting."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from support.servers import backend

from tidemill.processors.backends.backend import Backend, Permit
from tidemill.processors.backends.pool import BackendPool
from tidemill.processors.backends.server import Server as CalledServer
from tidemill.processors.failures import CallFailure, FailureKind, Fault
from tidemill.processors.limits.server_metrics import ServerMetrics

REFUSAL_SECONDS = 0.001


@dataclass
class Sample:
    """Events in a stretch of time."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    tokens: int = 0
    limits: list[int] = field(default_factory=list)

    @property
    def refused_share(self) -> float:
        return self.refused / max(1, self.sent)


class Server:
    """Takes as many calls as its present capacity; refuses others at once, and some at random at the end.

    From `crowded[0]` calls in flight on, it refuses the share `crowded[1]` at once. The process sees the end of a
    call up to `deaf_seconds` late, as if it were busy.
    `capacity` and `latency_seconds` are functions of the time; a capacity of 0 is a server that is down.
    """

    def __init__(
        self,
        fleet: BackendPool,
        *,
        capacity: Callable[[float], int],
        latency_seconds: Callable[[random.Random], float] = lambda _: 0.1,
        refused_share: float = 0.0,
        crowded: tuple[int, float] | None = None,
        retry_after: float | None = 1.0,
        deaf_seconds: float = 0.0,
        tokens: Callable[[random.Random], int] = lambda _: 0,
        line_bytes: int = 0,
        seed: int = 0,
    ) -> None:
        self.now = 1000.0
        self.in_flight = 0
        self._fleet = fleet
        self._capacity = capacity
        self._latency_seconds = latency_seconds
        self._refused_share = refused_share
        self._crowded = crowded
        self._retry_after = retry_after
        self._deaf_seconds = deaf_seconds
        self._tokens = tokens
        self._line_bytes = line_bytes
        self._rng = random.Random(seed)
        self._ends: list[tuple[float, int, Permit, bool]] = []
        self._freed: list[float] = []
        self._number = 0

    def run(self, seconds: float) -> Sample:
        """Keep more lines waiting than the limit allows; returns the events of `seconds`."""
        sample = Sample()
        until = self.now + seconds
        while True:
            while (call := self._fleet.acquire(self.now)) is not None:
                sample.sent += 1
                self._send(BackendPool.charge(call, self._line_bytes))
            sample.limits.append(sum(backend.server.allowed(self.now) for backend in self._fleet.backends))
            times = [self._ends[0][0]] if self._ends else []
            if (at := self._fleet.opens_at(self.now)) is not None:
                times.append(at)
            if not times or min(times) > until:
                self.now = until
                return sample
            self.now = max(self.now, min(times))
            while self._ends and self._ends[0][0] <= self.now:
                self._end(sample)

    def rest(self, seconds: float) -> None:
        """Let calls in flight end, and then `seconds` pass without lines."""
        sample = Sample()
        while self._ends:
            self.now = max(self.now, self._ends[0][0])
            self._end(sample)
        self.now += seconds

    def _send(self, call: Permit) -> None:
        self._number += 1
        while self._freed and self._freed[0] <= self.now:
            heappop(self._freed)
            self.in_flight -= 1
        taken = self.in_flight < self._capacity(self.now)
        if self._crowded is not None and self.in_flight >= self._crowded[0]:
            taken = taken and self._rng.random() >= self._crowded[1]
        if taken:
            self.in_flight += 1
            at = self.now + self._latency_seconds(self._rng)
            heappush(self._freed, at)
        else:
            at = self.now + REFUSAL_SECONDS
        at += self._deaf_seconds * self._rng.random()
        good = taken and self._rng.random() >= self._refused_share
        heappush(self._ends, (at, self._number, call, good))

    def _end(self, sample: Sample) -> None:
        _, number, call, good = heappop(self._ends)
        if good:
            sample.answered += 1
            tokens = self._tokens(self._rng)
            sample.tokens += tokens
            self._fleet.answered(call, self.now, tokens)
            return
        sample.refused += 1
        failure = failed(line=("batch", number), at=self.now, is_full=True, retry_after=self._retry_after)
        self._fleet.failed(call, failure)


def failed(fault: Fault = Fault.SERVER_OR_LINE, *, is_full: bool = False, **fields: object) -> CallFailure:
    """The simplest failed call with this fault; `is_full` makes it a 429."""
    kind, status = {
        Fault.SERVER: (FailureKind.CONNECT, None),
        Fault.ACCESS_OR_LINE: (FailureKind.STATUS, 401),
        Fault.SERVER_OR_LINE: (FailureKind.READ, None),
        Fault.LINE: (FailureKind.STATUS, 400),
    }[fault]
    if is_full:
        kind, status = FailureKind.STATUS, 429
    failure = CallFailure(kind, "", status, **fields)  # type: ignore[arg-type]
    assert is_full or failure.fault is fault
    return failure


def lone(limit: object, **more: object) -> BackendPool:
    """A fleet of one backend."""
    return BackendPool([backend("http://a", limit, **more)])  # type: ignore[arg-type]


class Engine:
    """A backend that refuses no call: calls beyond its capacity wait, and its metrics say so.

    `others` returns the number of other clients' requests; `seconds` is the mean duration of a call; `held` is the
    share of its cache that each running request holds. `told` has one reading per second.
    """

    def __init__(
        self,
        backend: CalledServer,
        *,
        capacity: int,
        others: Callable[[float], int],
        seconds: float = 0.2,
        held: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.now = 1000.0
        self.backend = backend
        self._fleet = BackendPool([Backend(backend)])
        self._capacity = capacity
        self._others = others
        self._seconds = seconds
        self._held = held
        self._rng = random.Random(seed)
        self._ends: list[tuple[float, int, Permit]] = []
        self._number = 0

    @property
    def requests(self) -> int:
        """Requests of all clients, ours included."""
        return self.backend.in_flight + self._others(self.now)

    @property
    def gauges(self) -> ServerMetrics:
        """Its metrics."""
        running = min(self._capacity, self.requests)
        return ServerMetrics(running=running, waiting=self.requests - running, cache=running * self._held)

    def run(self, seconds: float, *, is_asked: bool = True) -> list[int]:
        """Keep more lines waiting than the limit allows; returns the calls in flight after each second."""
        levels = []
        for _ in range(int(seconds)):
            self._second(self.now + 1)
            if is_asked:
                self.backend.apply_metrics(self.gauges, self.backend.in_flight, self.now)
            levels.append(self.backend.in_flight)
        return levels

    def _second(self, until: float) -> None:
        while True:
            while (call := self._fleet.acquire(self.now)) is not None:
                self._number += 1
                seconds = self._seconds * self._rng.uniform(0.5, 1.5) * max(1.0, self.requests / self._capacity)
                heappush(self._ends, (self.now + seconds, self._number, call))
            times = [self._ends[0][0]] if self._ends else []
            if (at := self._fleet.opens_at(self.now)) is not None:
                times.append(at)
            if not times or min(times) > until:
                self.now = until
                return
            self.now = min(times)
            while self._ends and self._ends[0][0] <= self.now:
                self._fleet.answered(heappop(self._ends)[2], self.now)
