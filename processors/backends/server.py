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

from tidemill.processors.backends.breaker import Breaker
from tidemill.processors.backends.permit_queue import PermitQueue
from tidemill.processors.backends.token_bucket import TokenBucket
from tidemill.processors.limits.concurrency_limit import ConcurrencyLimit
from tidemill.processors.limits.headroom import Headroom
from tidemill.processors.limits.load_feedback import LoadFeedback
from tidemill.processors.limits.server_metrics import ServerMetrics
from tidemill.schemas.resources.waiting import Reason

PART_MIN: Final = 0.001
"""A part of 0 would never let a token bucket fill."""


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What Tidemill adds to each call of a server."""

    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """They hold the key."""
    priority_by_deadline: bool = False
    deadline_header: str | None = None
    """Name of the header with the milliseconds that the line has left."""


@dataclass(slots=True, eq=False)
class Server:
    """One server."""

    name: str
    base: str
    """Base URL."""
    limit: ConcurrencyLimit
    calls_max: int
    """Calls that all processes together may have in flight there."""
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
    part: float = 1.0
    """The process's part of the calls."""
    in_flight: int = 0
    refused_part: float = 0.0
    """Moving average of the calls that it refused with 429, 503 or 529, without those of suspected lines."""
    queue: PermitQueue = field(init=False)

    def __post_init__(self) -> None:
        """Let no model wait yet."""
        self.queue = PermitQueue(self)

    def set_part(self, part: float, now: float) -> None:
        """Set this process's part of the partitions, 0 <= part <= 1."""
        self.part = max(PART_MIN, part)
        if self.bucket is not None:
            self.bucket.set_part(self.part, now)
        self.queue.changed()

    def allowed(self, now: float) -> int:
        """Calls that it may have in flight."""
        return self._bounded(self.limit.allowed, now)

    def found(self, now: float) -> int:
        """Calls that it has been found to take; after a pause fewer may be in flight at first."""
        return self._bounded(self.limit.found, now)

    def _bounded(self, calls: int, now: float) -> int:
        part = self.part
        calls = min(calls, int(self.calls_max * part) or 1)
        if self.scheduled_limit is not None and (scheduled := self.scheduled_limit()) is not None:
            calls = min(calls, math.ceil(scheduled * part))
        if self.headroom is not None and (left := self.headroom.left(now)) is not None:
            calls = min(calls, left)
        return calls

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
        return self.allowed(now)

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
