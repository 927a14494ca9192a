"""A server as one model uses it, and the right to call it."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import orjson

from tidemill.processors.backends.breaker import Breaker
from tidemill.processors.backends.call_metrics import CallMetrics
from tidemill.processors.backends.server import Server
from tidemill.processors.backends.token_bucket import Taken, TokenBucket
from tidemill.processors.limits.concurrency_limit import Slot

NEVER: Final = float("-inf")
SCHEDULE_SECONDS: Final = 10.0
"""Between two looks at a schedule that allows no call now."""


class Probes(NamedTuple):
    """Whether a call is a probe, of the server's breaker and of the model's breaker there."""

    server: bool
    model: bool


NO_PROBES: Final = Probes(server=False, model=False)


class Permit(NamedTuple):
    """The right to make one call, until `answered`, `failed` or `release`."""

    backend: "Backend"
    slot: Slot
    probes: Probes = NO_PROBES
    size: int = 0
    """Bytes of the lines, if tokens are counted."""
    lines: int = 1
    taken: tuple[tuple[TokenBucket, Taken], ...] = ()
    """The buckets of the backend, and what the call took from each."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Backend:
    """A server as one model uses it."""

    server: Server
    breaker: Breaker = field(default_factory=Breaker)
    """Opens for failures that may come from the model at this server."""
    buckets: tuple[TokenBucket, ...] = ()
    """The server's limit of tokens a minute, and the model's."""
    in_flight: int = 0
    """Calls of the model."""
    answered_at: dict[str, float] = field(default_factory=dict)
    """By endpoint, the start of the latest call with a good answer: an answer to a call that began before an
    outage does not show that the server is back."""
    accepted_at: dict[str, float] = field(default_factory=dict)
    """By endpoint, the start of the latest health probe that it refused after it had accepted our key and the
    address (`calls/health_probe.py`)."""
    failed_part: float = 0.0
    """Moving average of the lines that failed at their first call."""
    warned_at: float = NEVER
    failed_line: tuple[str, int] | None = None
    """The line that failed last, since the last answer."""
    is_gone: bool = False
    """Whether the model no longer has the server; calls in flight finish."""
    metrics: CallMetrics = field(init=False)
    quoted_name: bytes = field(init=False)
    """The name of the server as JSON, for result lines."""

    def __post_init__(self) -> None:
        """Create the metrics of its calls, and quote its name."""
        self.metrics = CallMetrics(self.server.first_byte)
        self.quoted_name = orjson.dumps(self.server.name)

    @property
    def base(self) -> str:
        """Base URL of the server."""
        return self.server.base

    @property
    def name(self) -> str:
        """Name of the server."""
        return self.server.name

    @property
    def is_paused(self) -> bool:
        """Whether a breaker lets only probes through."""
        return bool(self.breaker.failures or self.server.breaker.failures)

    @property
    def is_doubtful(self) -> bool:
        """Whether a breaker is open for failures that may be the fault of lines, and none for others."""
        return self.is_paused and all(one.is_doubtful or not one.failures for one in self.breakers)

    @property
    def breakers(self) -> tuple[Breaker, Breaker]:
        """The server's, and the model's."""
        return self.server.breaker, self.breaker

    @property
    def is_well(self) -> bool:
        """Whether it takes calls that are not probes."""
        return not self.server.drain and not self.is_paused

    def has_answered(self, endpoint: str, since: float) -> bool:
        """Whether it gave a good answer to a call of an endpoint that began after a time."""
        return self.answered_at.get(endpoint, NEVER) > since

    def room(self, now: float) -> int:
        """Calls of all models that the server may have in flight; 0 if it takes none of this model's now."""
        if not self.breaker.admits(now):
            return 0
        if self.buckets and not all(bucket.allows(now) for bucket in self.buckets):
            return 0
        return self.server.room(now)

    def opens_at(self, now: float) -> list[float]:
        """When each cause that keeps it from taking a call may end, if time alone ends it."""
        if self.server.drain:
            return []
        times = [bucket.ready_at(now) for bucket in self.buckets]
        if self.is_paused:
            times.append(max(breaker.until for breaker in self.breakers if breaker.failures))
        elif (at := self.server.limit.ripe_at) is not None:
            times.append(at)
        if self.server.is_out_of_hours:
            times.append(now + SCHEDULE_SECONDS)
        return times
