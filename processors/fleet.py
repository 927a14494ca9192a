"""Which of a model's backends takes the next call: the least loaded one that has not failed just now."""

from dataclasses import dataclass, field
from typing import Final

from tidemill.processors.retry import Kind

COOLING_SECONDS_BASE: Final = 0.5
COOLING_SECONDS_MAX: Final = 30.0
DOUBLINGS_MAX: Final = 10
SUSPECTS_IN_A_ROW: Final = 3
"""One line may make a backend stumble; so many calls in a row that break off are the backend's own fault."""


@dataclass(slots=True, eq=False)
class Backend:
    """One backend; `headers` go with each call and hold its key."""

    base: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    in_flight: int = 0
    failures: int = 0
    """Calls in a row that it did not answer."""
    answered_at: float = 0.0
    """When it last answered a line, in Unix time."""
    cool_until: float = 0.0
    warned_at: float = 0.0


class Fleet:
    """The backends of one model. A backend that refuses calls has few in flight, so load alone would choose it."""

    def __init__(self, backends: list[Backend]) -> None:
        assert backends, "a model has a backend"
        self.backends = backends

    def pick(self, now: float) -> Backend:
        """The backend of the next call; among backends that all cool off, the one that is done first."""
        if len(self.backends) == 1:
            return self.backends[0]
        return min(self.backends, key=lambda backend: (max(0.0, backend.cool_until - now), backend.in_flight))

    def answered(self, backend: Backend, now: float) -> None:
        """It answered a line."""
        backend.failures = 0
        backend.cool_until = 0.0
        backend.answered_at = now

    def failed(self, backend: Backend, kind: Kind, now: float) -> None:
        """A call to it failed. While it cools off, other backends are asked first."""
        if kind is Kind.FINAL or now < backend.cool_until:
            return
        backend.failures += 1
        doublings = backend.failures - (SUSPECTS_IN_A_ROW if kind is Kind.SUSPECT else 1)
        if doublings >= 0:
            seconds = COOLING_SECONDS_BASE * 2.0 ** min(doublings, DOUBLINGS_MAX)
            backend.cool_until = now + min(COOLING_SECONDS_MAX, seconds)
