"""Which of a model's backends takes the next call: the least loaded one that has not failed just now."""

from dataclasses import dataclass, field
from typing import Final

COOLING_SECONDS_BASE: Final = 0.5
COOLING_SECONDS_MAX: Final = 30.0
DOUBLINGS_MAX: Final = 10


@dataclass(slots=True, eq=False)
class Backend:
    """One backend; `headers` go with each call and hold its key."""

    base: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    in_flight: int = 0
    outages: int = 0
    """Outages in a row."""
    cool_until: float = 0.0
    warned_at: float = 0.0


class Fleet:
    """The backends of one model. A backend that refuses calls has few in flight, so load alone would choose it."""

    def __init__(self, backends: list[Backend]) -> None:
        assert backends, "a model has a backend"
        self.backends = backends
        self.answered_at = 0.0
        """When a backend last answered a line."""

    def pick(self, now: float) -> Backend:
        """The backend of the next call; among backends that all cool off, the one that is done first."""
        if len(self.backends) == 1:
            return self.backends[0]
        return min(self.backends, key=lambda backend: (max(0.0, backend.cool_until - now), backend.in_flight))

    def answered(self, backend: Backend, now: float) -> None:
        """It answered a line."""
        backend.outages = 0
        backend.cool_until = 0.0
        self.answered_at = now

    def failed(self, backend: Backend, now: float) -> None:
        """It was away, full, or would not take us."""
        if now < backend.cool_until:
            return
        backend.outages = min(backend.outages + 1, DOUBLINGS_MAX)
        backend.cool_until = now + min(COOLING_SECONDS_MAX, COOLING_SECONDS_BASE * 2.0 ** (backend.outages - 1))
