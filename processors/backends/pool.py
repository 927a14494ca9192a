"""The backends of a model: which of them takes the next call, and whether one does.

All times are those of the event loop, which no step of the wall clock changes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tidemill.processors.backends.breaker import Breaker
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.failures import Kind
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit, Slot
from tidemill.processors.limits.headroom import Headroom
from tidemill.processors.limits.load_feedback import LoadFeedback
from tidemill.processors.limits.server_metrics import ServerMetrics

STEP: Final = 1 / 16
"""What one call more moves an average by."""
REFUSING_MAX: Final = 0.25
"""A server that refuses a larger part of the calls is taken to be full."""
FAILING_MAX: Final = 0.25
"""Where a larger part of the lines fails, others are looked for at random."""
NEVER: Final = float("-inf")


class Permit(NamedTuple):
    """A call that may be made, or is under way."""

    backend: "Backend"
    slot: Slot
    is_probe: bool
    size: int = 0
    """Bytes of the line, where tokens are counted."""
    expected: tuple[float, ...] = ()
    """What each bucket of the backend was told that it will use."""


class Failed(NamedTuple):
    """A call that failed, as far as its server is concerned."""

    kind: Kind
    line: tuple[str, int]
    """Which line it was made for."""
    is_suspected: bool = False
    """Whether the line has failed before while others were answered: then it says nothing of the server."""
    is_full: bool = False
    """Whether it says that the server has too many calls: 429, 503, no answer in time."""
    is_late: bool = False
    """Whether it was not answered in time."""
    is_taken: bool = False
    """Whether the server took it in, and said itself that it failed."""
    asked: float | None = None
    """Seconds the server asked us to wait."""


@dataclass(slots=True, eq=False)
class Backend:
    """One backend; `headers` go with each call and hold its key."""

    base: str
    limit: ConcurrencyLimit
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    breaker: Breaker = field(default_factory=Breaker)
    ceiling: Callable[[], int | None] | None = None
    """Calls that it may have now by the hour of the day; gives None where only the limit counts, as without it."""
    drain: bool = False
    """It gets no call any more."""
    spare: Headroom | None = None
    """Where others' requests go first."""
    pressure: LoadFeedback = field(default_factory=LoadFeedback)
    buckets: tuple[TokenBucket, ...] = ()
    """Its own limit of tokens a minute, and that of its model."""
    part: float = 1.0
    """This process's part of the calls that may be made."""
    in_flight: int = 0
    calls: int = 0
    refused: int = 0
    """Of all calls, those that were answered with 429 or 503, or not in time."""
    proven_at: dict[str, float] = field(default_factory=dict)
    """By endpoint, when the latest call began that it has answered well: what it was still working on when it went
    away says nothing of it now."""
    refusing: float = 0.0
    """Which part of the calls it refused lately as too many, but for those of lines that are suspected."""
    failing: float = 0.0
    """Which part of the lines failed lately, at their first call."""
    warned_at: float = NEVER
    failed_line: tuple[str, int] | None = None
    """The line that failed last, since it last answered."""

    @property
    def is_well(self) -> bool:
        """Whether calls go out to it that are no probes."""
        return not self.drain and not self.breaker.failures

    def has_answered(self, endpoint: str, since: float) -> bool:
        """Whether it has answered a call of an endpoint well that began after that time."""
        return self.proven_at.get(endpoint, NEVER) > since

    def allowed(self, now: float) -> int:
        """Calls that it may have in flight."""
        return self._bounded(self.limit.allowed, now)

    def found(self, now: float) -> int:
        """Calls that it takes, as far as is known; after a pause fewer may be in flight at first."""
        return self._bounded(self.limit.found, now)

    def _bounded(self, calls: int, now: float) -> int:
        if self.ceiling is not None and (ceiling := self.ceiling()) is not None:
            calls = min(calls, math.ceil(ceiling * self.part))
        if self.spare is not None and (left := self.spare.left(now)) is not None:
            calls = min(calls, left)
        return calls

    def heed(self, gauges: ServerMetrics, ours: float, now: float) -> None:
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


def _give_back(call: Permit) -> None:
    for bucket, expected in zip(call.backend.buckets, call.expected, strict=False):
        bucket.give_back(expected)


class BackendPool:
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

    def enter(
        self,
        now: float,
        *,
        avoid: Backend | None = None,
        among: Sequence[Backend] | None = None,
        probes: bool = True,
    ) -> Permit | None:
        """Take a place at the least loaded backend that has one, measured by what it may have.

        Each pass must be given back by `answered`, `failed` or `leave`.

        Args:
            now: The time.
            avoid: Not there, as long as another backend is well.
            among: Only at one of these.
            probes: Whether the call may be a probe.
        """
        best = None
        load = 0.0
        if avoid is not None and not self.has_other(avoid):
            avoid = None
        for backend in self.backends if among is None else among:
            if backend is avoid or (not probes and backend.breaker.failures):
                continue
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
        return Permit(best, best.limit.sent(best.in_flight), best.breaker.sent(now))

    def ask(self, backend: Backend, now: float) -> Permit | None:
        """Take a place at one backend, also where it is left alone for what may be the fault of lines."""
        if backend.drain or backend.in_flight >= backend.limit.allowed:
            return None
        is_doubtful = backend.breaker.is_doubtful
        if not is_doubtful and not backend.breaker.admits(now):
            return None
        backend.in_flight += 1
        backend.calls += 1
        is_probe = not is_doubtful and backend.breaker.sent(now)
        return Permit(backend, backend.limit.sent(backend.in_flight), is_probe)

    def has_other(self, backend: Backend) -> bool:
        """Whether another backend is well."""
        return any(other.is_well and other is not backend for other in self.backends)

    def proven(self, endpoint: str, since: float) -> list[Backend]:
        """The backends that have answered a call of an endpoint well that began after that time."""
        return [backend for backend in self.backends if backend.has_answered(endpoint, since)]

    @staticmethod
    def load(call: Permit, size: int) -> Permit:
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

    def leave(self, call: Permit) -> None:
        """The call was not made after all."""
        call.backend.in_flight -= 1
        call.backend.breaker.left(is_probe=call.is_probe)
        _give_back(call)

    def answered(
        self, call: Permit, now: float, tokens: int = 0, *, endpoint: str | None = None, begun: float = NEVER
    ) -> None:
        """The backend answered a line.

        Args:
            call: The call.
            now: The time.
            tokens: What it used, all in all; 0 where the backend does not say: then it was what was expected.
            endpoint: The line's, where it was answered well, and not with an error that is its own.
            begun: When the call began.
        """
        backend = call.backend
        if tokens:
            for bucket, expected in zip(backend.buckets, call.expected, strict=False):
                bucket.settle(expected, tokens, call.size)
        backend.in_flight -= 1
        backend.limit.answered(call.slot, now)
        backend.breaker.answered()
        backend.refusing -= backend.refusing * STEP
        backend.failing -= backend.failing * STEP
        backend.failed_line = None
        if endpoint is not None and begun > backend.proven_at.get(endpoint, NEVER):
            backend.proven_at[endpoint] = begun

    def failed(self, call: Permit, failed: Failed, now: float) -> None:
        """The call failed."""
        backend = call.backend
        backend.in_flight -= 1
        if failed.kind is not Kind.SUSPECT or (failed.is_full and not failed.is_late):
            # One that broke off may have been worked on.
            _give_back(call)
        if failed.is_full:
            backend.refused += 1
        is_new = not failed.is_suspected and failed.line != backend.failed_line
        backend.failed_line = failed.line
        if failed.is_taken:
            backend.limit.answered(call.slot, now)
        elif is_new and failed.is_full:
            backend.limit.refused(call.slot, backend.in_flight, now, late=failed.is_late)
        if is_new:
            backend.failing += (1 - backend.failing) * STEP
            backend.refusing += ((failed.is_full and not failed.is_late) - backend.refusing) * STEP
        if call.is_probe or (is_new and not self._is_accident(call, failed)):
            self._stop(call, failed, now)

    @staticmethod
    def _is_accident(call: Permit, failed: Failed) -> bool:
        """One refusal among many answers holds nobody up, and that of a trial only until the next answer."""
        limit = call.backend.limit
        return failed.is_full and not limit.is_pressed and not (call.slot.trial and call.backend.in_flight)

    @staticmethod
    def _stop(call: Permit, failed: Failed, now: float) -> None:
        backend = call.backend
        was_open = backend.breaker.is_open
        backend.breaker.failed(
            failed.kind,
            now,
            is_probe=call.is_probe,
            is_full=failed.is_full and not failed.is_late,
            in_flight=backend.in_flight,
            asked=failed.asked,
        )
        # One that has calls under way and refuses another is full, and is not away.
        if backend.breaker.is_open and not was_open and not (failed.is_full and backend.in_flight):
            backend.limit.halve()
