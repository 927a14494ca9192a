"""The servers of a model: which of them takes the next call, and whether one does.

All times are seconds of the event loop's clock, which no step of the wall clock changes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tidemill.processors.backends.breaker import Breaker
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.failures import NO_EVIDENCE, CallFailure, Evidence, Fault, History
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit, Slot
from tidemill.processors.limits.headroom import Headroom
from tidemill.processors.limits.load_feedback import LoadFeedback
from tidemill.processors.limits.server_metrics import ServerMetrics

STEP: Final = 1 / 16
"""The weight of one call in a moving average."""
REFUSED_PART_MAX: Final = 0.25
"""A server that refuses a larger part of the calls counts as full."""
FAILED_PART_MAX: Final = 0.25
"""If a larger part of the lines fails, the next lines are picked at random."""
NEVER: Final = float("-inf")


class Permit(NamedTuple):
    """The right to make one call, until `answered`, `failed` or `release`."""

    backend: "Backend"
    slot: Slot
    is_probe: bool
    size: int = 0
    """Bytes of the line, where tokens are counted."""
    expected: tuple[float, ...] = ()
    """Tokens taken from each bucket of the backend."""


@dataclass(slots=True, eq=False)
class Backend:
    """One server of a model."""

    base: str
    """Base URL."""
    limit: ConcurrencyLimit
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """Of each call; they hold the key."""
    breaker: Breaker = field(default_factory=Breaker)
    scheduled_limit: Callable[[], int | None] | None = None
    """Calls that it may have at this hour; None, or a function that gives None, sets no bound."""
    drain: bool = False
    """Whether it gets no more calls."""
    headroom: Headroom | None = None
    """Set where the requests of others go first."""
    load_feedback: LoadFeedback = field(default_factory=LoadFeedback)
    buckets: tuple[TokenBucket, ...] = ()
    """Its own limit of tokens a minute, and that of its model."""
    part: float = 1.0
    """This process's part of the calls that may be made."""
    in_flight: int = 0
    calls: int = 0
    refused: int = 0
    """Calls that it answered with 429 or 503, or not in time."""
    answered_at: dict[str, float] = field(default_factory=dict)
    """By endpoint, when the latest call began that it answered well. What it was still working on when it went
    away says nothing of it now."""
    accepted_at: dict[str, float] = field(default_factory=dict)
    """By endpoint, when the latest health probe began that it refused after it had accepted our key and the
    address (`calls/health_probe.py`)."""
    refused_part: float = 0.0
    """Moving average of the calls that it refused with 429 or 503, without those of suspected lines."""
    failed_part: float = 0.0
    """Moving average of the lines that failed at their first call."""
    warned_at: float = NEVER
    failed_line: tuple[str, int] | None = None
    """The line that failed last, since the last answer."""

    @property
    def is_well(self) -> bool:
        """Whether it takes calls that are not probes."""
        return not self.drain and not self.breaker.failures

    def has_answered(self, endpoint: str, since: float) -> bool:
        """Whether it answered a call of an endpoint well that began after a time."""
        return self.answered_at.get(endpoint, NEVER) > since

    def allowed(self, now: float) -> int:
        """Calls that it may have in flight."""
        return self._bounded(self.limit.allowed, now)

    def found(self, now: float) -> int:
        """Calls that it takes, as far as is known; after a pause fewer may be in flight at first."""
        return self._bounded(self.limit.found, now)

    def _bounded(self, calls: int, now: float) -> int:
        if self.scheduled_limit is not None and (scheduled := self.scheduled_limit()) is not None:
            calls = min(calls, math.ceil(scheduled * self.part))
        if self.headroom is not None and (left := self.headroom.left(now)) is not None:
            calls = min(calls, left)
        return calls

    def apply_metrics(self, metrics: ServerMetrics, ours: float, now: float) -> None:
        """Adjust the limits to a reading of the server's metrics.

        Args:
            metrics: The reading.
            ours: Our calls in flight at the time of the reading.
            now: The time.
        """
        demand = self.load_feedback.judge(metrics, self.in_flight, self.allowed(now))
        if self.headroom is None:
            self.limit.hold(demand.is_full, most=demand.most, room=demand.room)
            return
        self.limit.hold(demand.is_full, most=demand.most, least=self.headroom.calls_min, room=demand.room)
        self.headroom.read(metrics, ours, self.part, now)

    def room(self, now: float) -> int:
        """Calls that it may have in flight; 0 where it takes none now."""
        if self.drain or not self.breaker.admits(now):
            return 0
        if self.buckets and not all(bucket.allows(now) for bucket in self.buckets):
            return 0
        return self.allowed(now)


def _refund(permit: Permit) -> None:
    for bucket, expected in zip(permit.backend.buckets, permit.expected, strict=False):
        bucket.give_back(expected)


class BackendPool:
    """The servers of one model."""

    def __init__(self, backends: list[Backend]) -> None:
        assert backends, "a model has a backend"
        self.backends = backends
        self.calls_max = math.inf
        """Calls in flight at all of them, health probes included."""
        self._in_flight = 0

    def set_part(self, part: float, now: float) -> None:
        """Set this process's part of the calls that may be made.

        Args:
            part: Of the scheduled limit, the headroom and the tokens a minute; 0 < part <= 1.
            now: The time.
        """
        for backend in self.backends:
            backend.part = part
        for bucket in {bucket for backend in self.backends for bucket in backend.buckets}:
            bucket.set_part(part, now)

    def acquire(
        self,
        now: float,
        *,
        avoid: Backend | None = None,
        among: Sequence[Backend] | None = None,
        probes: bool = True,
    ) -> Permit | None:
        """A permit at the server with the lowest load for its limit; None where no server takes a call.

        Args:
            now: The time.
            avoid: Not there, as long as another backend is well.
            among: Only at one of these.
            probes: Whether the call may be a probe.
        """
        if self._in_flight >= self.calls_max:
            return None
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
        self._in_flight += 1
        best.in_flight += 1
        best.calls += 1
        return Permit(best, best.limit.sent(best.in_flight), best.breaker.sent(now))

    def acquire_health_probe(self, backend: Backend, now: float) -> Permit | None:
        """A permit at one server, even while its breaker is open for what may be the fault of lines."""
        if backend.drain or backend.in_flight >= backend.limit.allowed or self._in_flight >= self.calls_max:
            return None
        is_doubtful = backend.breaker.is_doubtful
        if not is_doubtful and not backend.breaker.admits(now):
            return None
        self._in_flight += 1
        backend.in_flight += 1
        backend.calls += 1
        is_probe = not is_doubtful and backend.breaker.sent(now)
        return Permit(backend, backend.limit.sent(backend.in_flight), is_probe)

    def has_other(self, backend: Backend) -> bool:
        """Whether another backend is well."""
        return any(other.is_well and other is not backend for other in self.backends)

    def that_answered(self, endpoint: str, since: float) -> list[Backend]:
        """The backends that answered a call of an endpoint well that began after a time."""
        return [backend for backend in self.backends if backend.has_answered(endpoint, since)]

    @staticmethod
    def charge(permit: Permit, size: int) -> Permit:
        """Take the tokens that a line of `size` bytes is expected to use; returns the permit to go on with."""
        if not (buckets := permit.backend.buckets):
            return permit
        return permit._replace(size=size, expected=tuple(bucket.take(size) for bucket in buckets))

    def opens_at(self, now: float) -> float | None:
        """When a server may take a call again; None where only the end of a call can change that."""
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

    def release(self, permit: Permit) -> None:
        """The call was not made."""
        self._in_flight -= 1
        permit.backend.in_flight -= 1
        permit.backend.breaker.released(is_probe=permit.is_probe)
        _refund(permit)

    def answered(
        self, permit: Permit, now: float, tokens: int = 0, *, endpoint: str | None = None, begun: float = NEVER
    ) -> None:
        """The server answered the call.

        Args:
            permit: The call's.
            now: The time.
            tokens: Used by the call; 0 where the server does not say: the estimate stands then.
            endpoint: The line's, if it was answered well; None where the answer is an error of the line's.
            begun: When the call began.
        """
        backend = permit.backend
        if tokens:
            for bucket, expected in zip(backend.buckets, permit.expected, strict=False):
                bucket.settle(expected, tokens, permit.size)
        self._in_flight -= 1
        backend.in_flight -= 1
        backend.limit.answered(permit.slot, now)
        backend.breaker.answered()
        backend.refused_part -= backend.refused_part * STEP
        backend.failed_part -= backend.failed_part * STEP
        backend.failed_line = None
        if endpoint is not None and begun > backend.answered_at.get(endpoint, NEVER):
            backend.answered_at[endpoint] = begun

    def failed(self, permit: Permit, failure: CallFailure, history: History | None = None) -> Evidence:
        """The call failed: draw the conclusions about its server.

        Args:
            permit: The call's.
            failure: What happened.
            history: The failed calls of the line before this one, if there are any.

        Returns:
            What is known of the server, for the decision about the line.
        """
        if failure.fault is Fault.LINE:
            self.answered(permit, failure.at)
            return NO_EVIDENCE
        backend = permit.backend
        others_answered = backend.has_answered(failure.endpoint, failure.since)
        if failure.fault is Fault.ACCESS_OR_LINE:
            others_answered |= backend.accepted_at.get(failure.endpoint, NEVER) > failure.since
        refuses_repeatedly = backend.limit.is_pressed
        self._in_flight -= 1
        backend.in_flight -= 1
        if failure.fault is not Fault.SERVER_OR_LINE or failure.is_overload:
            # A call that broke off may have used tokens.
            _refund(permit)
        # A line that failed while others were answered says nothing of the server, nor does the same line again.
        is_suspected = history is not None and (others_answered or history.counted > 0)
        is_new = not is_suspected and failure.line != backend.failed_line
        backend.failed_line = failure.line
        self._tell_limit(permit, failure, is_new=is_new)
        if is_new:
            backend.failed_part += (1 - backend.failed_part) * STEP
            backend.refused_part += (failure.is_overload - backend.refused_part) * STEP
        if permit.is_probe or (is_new and not self._is_accident(permit, failure)):
            self._tell_breaker(permit, failure)
        return Evidence(
            others_answered,
            backend.refused_part > REFUSED_PART_MAX,
            refuses_repeatedly,
            self.has_other(backend),
        )

    @staticmethod
    def _tell_limit(permit: Permit, failure: CallFailure, *, is_new: bool) -> None:
        backend = permit.backend
        backend.refused += failure.is_full
        if failure.is_servers_word:
            backend.limit.answered(permit.slot, failure.at)
        elif is_new and failure.is_full:
            backend.limit.refused(permit.slot, backend.in_flight, failure.at, late=failure.is_timeout)

    @staticmethod
    def _is_accident(permit: Permit, failure: CallFailure) -> bool:
        """One refusal among many answers opens no breaker; that of a trial only while no call is in flight."""
        limit = permit.backend.limit
        return failure.is_full and not limit.is_pressed and not (permit.slot.trial and permit.backend.in_flight)

    @staticmethod
    def _tell_breaker(permit: Permit, failure: CallFailure) -> None:
        backend = permit.backend
        was_open = backend.breaker.is_open
        backend.breaker.failed(failure, is_probe=permit.is_probe, in_flight=backend.in_flight)
        # A server that has calls under way and refuses another is full, and not down.
        if backend.breaker.is_open and not was_open and not (failure.is_full and backend.in_flight):
            backend.limit.halve()
