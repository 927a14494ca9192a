"""An inference server, as all models of a process share it.

The limit of concurrent calls, the breaker, the tokens a minute, the metrics and the headroom are the server's. All
times are seconds of the event loop's clock, which no step of the wall clock changes.

Several processes share a server by parts: each makes as large a part of the calls as its consumer group gives it
of the partitions, and these parts add up to 1.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tidemill import metrics
from tidemill.instruments import Buckets
from tidemill.processors.backends.breaker import Breaker
from tidemill.processors.backends.permit_queue import PermitQueue
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.limits.headroom import STALE_SECONDS, Headroom
from tidemill.processors.limits.load_feedback import LoadFeedback
from tidemill.processors.limits.server_metrics import ServerMetrics
from tidemill.schemas.resources.waiting import Reason

PART_MIN: Final = 0.001
"""A server without a part may still get a call."""


@dataclass(frozen=True, slots=True)
class CallOptions:
    """The headers and fields that Tidemill adds to each call of a server."""

    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """They hold the key."""
    priority_by_deadline: bool = False
    deadline_header: str | None = None
    """Name of the header with the milliseconds that the line has left."""


@dataclass(slots=True, kw_only=True, eq=False)
class Seats:
    """Places for calls, of a server or of a model.

    A call holds a seat until it is answered. Its result holds none, unless more results than `unacknowledged_max`
    wait for the log's acknowledgement: each further one takes the seat of a call. So a restart after a kill
    repeats at most as many calls as the process's parts of both numbers add up to.
    """

    calls_max: int
    """Calls that all processes together may have in flight, health probes included."""
    unacknowledged_max: int = 0
    """Results that hold no seat, of all processes together."""
    part: float = 1.0
    """The process's part of both."""
    in_flight: int = 0
    unacknowledged: int = 0
    """Results that the log has not acknowledged."""
    in_flight_max: int = field(init=False)
    """Calls that this process may have in flight."""
    _bound: int = field(init=False)
    """The same, plus results that hold no seat."""

    def __post_init__(self) -> None:
        """Compute the numbers of this process."""
        self.resize(self.calls_max, self.unacknowledged_max, self.part)

    def resize(self, calls_max: int, unacknowledged_max: int, part: float) -> None:
        """Set the numbers of all processes, and this process's part of them."""
        self.calls_max, self.unacknowledged_max, self.part = calls_max, unacknowledged_max, part
        self.in_flight_max = int(calls_max * part) or 1
        self._bound = self.in_flight_max + int(unacknowledged_max * part)

    @property
    def seats(self) -> int:
        """Calls that this process may have in flight, with the seats of results deducted."""
        left = self._bound - self.unacknowledged
        return min(self.in_flight_max, left)

    @property
    def awaits_log(self) -> bool:
        """Whether another call would start if the log acknowledged results."""
        return self.seats <= self.in_flight < self.in_flight_max


@dataclass(slots=True, eq=False)
class Server(Seats):
    """One server."""

    name: str
    base: str
    """Base URL."""
    limit: ConcurrencyLimit
    options: CallOptions = field(default_factory=CallOptions)
    breaker: Breaker = field(default_factory=Breaker)
    scheduled_limit: Callable[[], int | None] | None = None
    """Calls that it may have at this hour; None, or a function that gives None, sets no bound."""
    drain: Reason | None = None
    """Why it gets no more calls: its settings drain it, or this process lacks its key or a file."""
    headroom: Headroom | None = None
    """Set if the requests of others go first."""
    load_feedback: LoadFeedback = field(default_factory=LoadFeedback)
    bucket: TokenBucket | None = None
    refused_part: float = 0.0
    """Moving average of the calls that it refused with 429, 503 or 529, without those of suspected lines."""
    company: int = 0
    """Inputs in flight beyond one for each call: a server counts each as a request."""
    inputs_per_call: float = 1.0
    """The average number of inputs of the calls in flight, when its metrics were last read."""
    first_byte: Buckets = field(default_factory=lambda: Buckets(metrics.CALL_SECONDS))
    """For the metrics: seconds to the head of its replies."""
    queue: PermitQueue = field(init=False)

    def __post_init__(self) -> None:
        """Create the queue, in which no model waits."""
        # `slots=True` creates a new class, and `super()` without arguments refers to the old one.
        Seats.__post_init__(self)
        self.queue = PermitQueue(self)

    def set_part(self, part: float, now: float) -> None:
        """Set this process's part of the partitions, 0 <= part <= 1, and start calls that it allows."""
        self.take_part(part, now)
        self.queue.changed()

    def take_part(self, part: float, now: float) -> None:
        """Set this process's part, without starting a call."""
        self.resize(self.calls_max, self.unacknowledged_max, max(PART_MIN, part))
        if self.bucket is not None:
            self.bucket.set_part(part, now)

    def allowed(self, now: float) -> int:
        """Calls that it may have in flight."""
        return self._bounded(self.limit.allowed, now)

    def proven_calls(self, now: float) -> int:
        """The highest number of calls that it was seen to take; after a pause fewer may be in flight at first."""
        return self._bounded(self.limit.found, now)

    def _bounded(self, calls: int, now: float) -> int:
        part = self.part
        calls = min(calls, self.in_flight_max)
        if self.scheduled_limit is not None and (scheduled := self.scheduled_limit()) is not None:
            calls = min(calls, math.ceil(scheduled * part))
        if self.headroom is not None:
            calls = min(calls, self.headroom.left(now))
        return calls

    @property
    def is_out_of_hours(self) -> bool:
        """Whether its schedule allows no call now."""
        return self.scheduled_limit is not None and self.scheduled_limit() == 0

    @property
    def is_used(self) -> bool:
        """Whether calls are in flight, or the log has not acknowledged their results."""
        return bool(self.in_flight or self.unacknowledged)

    def has_room(self) -> bool:
        """Whether it takes another call now."""
        now = asyncio.get_running_loop().time()
        self.limit.tick(self.in_flight, now)
        return self.room(now) > self.in_flight

    def room(self, now: float) -> int:
        """Calls that it may have in flight; 0 if it takes none now."""
        if self.drain or not self.breaker.admits(now):
            return 0
        if self.bucket is not None and not self.bucket.allows(now):
            return 0
        allowed, seats = self.allowed(now), self.seats
        return min(seats, allowed)

    def fresh_metrics(self, now: float) -> ServerMetrics | None:
        """Its latest metrics; None if they are old, or it has none."""
        read, at = self.load_feedback.latest
        return read if now < at + STALE_SECONDS else None

    def apply_metrics(self, read: ServerMetrics, ours: float, now: float) -> None:
        """Adjust the limits to a reading of the server's metrics.

        Args:
            read: The reading.
            ours: Our calls in flight at the time of the reading.
            now: The time.
        """
        self.load_feedback.latest = read, now
        if self.in_flight:
            self.inputs_per_call = 1 + self.company / self.in_flight
        read = read.in_calls(self.inputs_per_call)
        if self.headroom is not None:
            # The limit follows refusals alone, and the headroom bounds it.
            self.limit.release()
            self.headroom.read(read, ours, self.part, now)
            return
        demand = self.load_feedback.judge(read, self.in_flight, self.allowed(now))
        self.limit.hold(demand.is_full, most=demand.most, room=demand.room)
