"""The backends of a model: which of them takes the next call, and whether one does.

All times are those of the event loop, which no step of the wall clock changes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tidemill.processors.breaker import Breaker
from tidemill.processors.bucket import Bucket
from tidemill.processors.gauges import Gauges
from tidemill.processors.limit import Limit, Slot
from tidemill.processors.pressure import Pressure
from tidemill.processors.retry import Kind
from tidemill.processors.spare import Spare

RETRIES_PER_ANSWER: Final = 0.15
"""What is tried again, as a part of what is answered, before tries are spread out further."""
RETRIES_SAVED_MAX: Final = 100.0
NEVER: Final = float("-inf")


class Pass(NamedTuple):
    """A call that may be made, or is under way."""

    backend: "Backend"
    slot: Slot
    is_probe: bool
    size: int = 0
    """Bytes of the line, where tokens are counted."""
    expected: tuple[float, ...] = ()
    """What each bucket of the backend was told that it will use."""


@dataclass(slots=True, eq=False)
class Backend:
    """One backend; `headers` go with each call and hold its key."""

    base: str
    limit: Limit
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    breaker: Breaker = field(default_factory=Breaker)
    ceiling: Callable[[], int | None] | None = None
    """Calls that it may have now by the hour of the day; gives None where only the limit counts, as without it."""
    drain: bool = False
    """It gets no call any more."""
    spare: Spare | None = None
    """Where others' requests go first."""
    pressure: Pressure = field(default_factory=Pressure)
    buckets: tuple[Bucket, ...] = ()
    """Its own limit of tokens a minute, and that of its model."""
    part: float = 1.0
    """This process's part of the calls that may be made."""
    in_flight: int = 0
    calls: int = 0
    refused: int = 0
    """Of all calls, those that were answered with 429 or 503, or not in time."""
    answered_at: float = 0.0
    """When it last answered a line."""
    warned_at: float = NEVER
    failed_line: tuple[str, int] | None = None
    """The line that failed last, since it last answered."""
    fails_all: bool = False
    """Whether it has failed more than one line since it last answered."""
    retries: float = RETRIES_SAVED_MAX

    def allowed(self, now: float) -> int:
        """Calls that it may have in flight."""
        calls = self.limit.allowed
        if self.ceiling is not None and (ceiling := self.ceiling()) is not None:
            calls = min(calls, math.ceil(ceiling * self.part))
        if self.spare is not None and (left := self.spare.left(now)) is not None:
            calls = min(calls, left)
        return calls

    def heed(self, gauges: Gauges, ours: float, now: float) -> None:
        """Take in what it says of itself.

        Args:
            gauges: The reading.
            ours: Calls in flight at that time.
            now: The time.
        """
        demand = self.pressure.judge(gauges, self.in_flight, self.allowed(now))
        if self.spare is None:
            self.limit.hold(demand.is_full, most=demand.most, room=demand.room)
            return
        self.limit.hold(demand.is_full, most=demand.most, least=self.spare.calls_min, room=demand.room)
        self.spare.read(gauges, ours, self.part, now)

    def room(self, now: float) -> int:
        """Calls that it may have in flight, 0 where none may go out to it now."""
        if self.drain or not self.breaker.admits(now):
            return 0
        if self.buckets and not all(bucket.allows(now) for bucket in self.buckets):
            return 0
        return self.allowed(now)


def _give_back(call: Pass) -> None:
    for bucket, expected in zip(call.backend.buckets, call.expected, strict=False):
        bucket.give_back(expected)


class Fleet:
    """The backends of one model."""

    def __init__(self, backends: list[Backend]) -> None:
        assert backends, "a model has a backend"
        self.backends = backends

    def take_part(self, part: float, now: float) -> None:
        """From now on this process makes that part of the calls that may be made.

        Args:
            part: Of hours, of what others leave and of tokens a minute; 0 < part <= 1.
            now: Unix time.
        """
        for backend in self.backends:
            backend.part = part
        for bucket in {bucket for backend in self.backends for bucket in backend.buckets}:
            bucket.take_part(part, now)

    def enter(self, now: float) -> Pass | None:
        """Take a place at the least loaded backend that has one, measured by what it may have.

        Each pass must be given back by `answered`, `failed` or `leave`.
        """
        best = None
        load = 0.0
        for backend in self.backends:
            backend.limit.tick(backend.in_flight, now)
            if (room := backend.room(now)) <= backend.in_flight:
                continue
            weight = backend.in_flight / room
            if best is None or weight < load:
                best, load = backend, weight
        if best is None:
            return None
        best.in_flight += 1
        best.calls += 1
        return Pass(best, best.limit.sent(best.in_flight), best.breaker.sent(now))

    @staticmethod
    def load(call: Pass, size: int) -> Pass:
        """A line of so many bytes is to be called: count what it will use. Gives the pass to go on with."""
        if not (buckets := call.backend.buckets):
            return call
        return call._replace(size=size, expected=tuple(bucket.take(size) for bucket in buckets))

    def opens_at(self, now: float) -> float | None:
        """When to look again, where no backend has a place; None where only the end of a call can make one."""
        times = []
        for backend in self.backends:
            if backend.drain:
                continue
            if backend.breaker.failures:
                times.append(backend.breaker.until)
            elif (at := backend.limit.ripe_at) is not None:
                times.append(at)
            times += [bucket.ready_at(now) for bucket in backend.buckets]
        return min((at for at in times if at > now), default=None)

    def leave(self, call: Pass) -> None:
        """The call was not made after all."""
        call.backend.in_flight -= 1
        _give_back(call)

    def answered(self, call: Pass, now: float, tokens: int = 0) -> None:
        """The backend answered a line.

        Args:
            call: The call.
            now: Unix time.
            tokens: What it used, all in all; 0 where the backend does not say: then it was what was expected.
        """
        backend = call.backend
        if tokens:
            for bucket, expected in zip(backend.buckets, call.expected, strict=False):
                bucket.settle(expected, tokens, call.size)
        backend.in_flight -= 1
        backend.limit.answered(call.slot, now)
        backend.breaker.answered()
        backend.answered_at = now
        backend.failed_line = None
        backend.fails_all = False
        backend.retries = min(RETRIES_SAVED_MAX, backend.retries + RETRIES_PER_ANSWER)

    def failed(
        self, call: Pass, kind: Kind, line: tuple[str, int], now: float, *, full: bool, asked: float | None
    ) -> None:
        """The call failed.

        Args:
            call: The call.
            kind: What the failure says.
            line: Which line it was made for.
            now: The time.
            full: Whether it says that the backend has too many calls: 429, 503, no answer in time.
            asked: Seconds the backend asked us to wait.
        """
        backend = call.backend
        backend.in_flight -= 1
        if kind is not Kind.SUSPECT:
            # One that broke off may have been worked on.
            _give_back(call)
        if full:
            backend.refused += 1
            backend.limit.refused(call.slot, backend.in_flight, now, late=kind is Kind.SUSPECT)
        # One refusal among many answers holds nobody up, and that of a trial only until the next answer.
        if call.is_probe or not full or backend.limit.is_pressed or (call.slot.trial and backend.in_flight):
            was_open = backend.breaker.is_open
            backend.breaker.failed(kind, now, is_probe=call.is_probe, asked=asked)
            # One that has calls under way and refuses another is full, and is not away.
            if backend.breaker.is_open and not was_open and not (full and backend.in_flight):
                backend.limit.halve()
        if backend.failed_line not in {None, line}:
            backend.fails_all = True
        backend.failed_line = line

    def may_retry(self, call: Pass) -> bool:
        """Take a retry out of the budget of a backend; False where that is spent."""
        backend = call.backend
        if backend.retries < 1:
            return False
        backend.retries -= 1
        return True
