"""Whether a backend is called at all: it is left alone after a failure, then asked with one call.

A failure stops the sending until another call is answered or a pause is over. So where most calls are answered,
one that is not costs the others next to nothing, and its `Retry-After` holds nobody up; where none is, the pause
is what the backend asked for, or doubles from half a second to five seconds. After it a single call goes out: its
answer opens everything again, its failure means another pause.
"""

from dataclasses import dataclass
from typing import Final

from tidemill.processors.retry import Kind

PAUSE_SECONDS_BASE: Final = 0.5
PAUSE_SECONDS_MAX: Final = 5.0
"""Of a pause that nobody asked for: a backend that is back is found out within this time."""
FAULT_PAUSE_SECONDS: Final = 10.0
"""Where our key or model is not taken somebody has to mend it."""
ASKED_PAUSE_SECONDS_MAX: Final = 60.0
"""Of a pause that the backend asked for."""
PROBE_SECONDS_MAX: Final = 10.0
"""A probe that has no answer by then is joined by another one."""
SUSPECTS_IN_A_ROW: Final = 3
"""One line may make a backend stumble; so many calls in a row that break off are the backend's own fault."""
DOUBLINGS_MAX: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Pauses:
    """The lengths; see the constants above."""

    base: float = PAUSE_SECONDS_BASE
    longest: float = PAUSE_SECONDS_MAX
    fault: float = FAULT_PAUSE_SECONDS
    asked: float = ASKED_PAUSE_SECONDS_MAX
    probe: float = PROBE_SECONDS_MAX


PAUSES: Final = Pauses()


class Breaker:
    """The state of one backend."""

    def __init__(self, pauses: Pauses = PAUSES) -> None:
        self._pauses = pauses
        self._suspects = 0
        self.failures = 0
        """Pauses in a row; 0 while the backend is well."""
        self.until = 0.0
        """When it may be asked next, if it is not well."""

    @property
    def is_open(self) -> bool:
        """Whether its last probe failed, too: it is down, and not just busy."""
        return self.failures > 1

    def admits(self, now: float) -> bool:
        """Whether a call may go out."""
        return not self.failures or now >= self.until

    def sent(self, now: float) -> bool:
        """A call goes out; returns whether it is a probe."""
        if not self.failures:
            return False
        self.until = now + self._pauses.probe
        return True

    def answered(self) -> None:
        """A call was answered."""
        self.failures = self._suspects = 0
        self.until = 0.0

    def failed(self, kind: Kind, now: float, *, is_probe: bool, asked: float | None = None) -> None:
        """A call failed.

        Args:
            kind: What the failure says.
            now: Seconds of a clock that nobody steps.
            is_probe: What `sent` said of it.
            asked: Seconds the backend asked us to wait.
        """
        if kind is Kind.FINAL or (self.failures and now < self.until and not is_probe):
            # Calls that were in flight at the first failure say the same thing again.
            return
        if kind is Kind.SUSPECT and not self.failures:
            self._suspects += 1
            if self._suspects < SUSPECTS_IN_A_ROW:
                return
        self.failures += 1
        pauses = self._pauses
        pause = min(pauses.longest, pauses.base * 2.0 ** min(self.failures - 1, DOUBLINGS_MAX))
        if kind is Kind.FAULT:
            pause = pauses.fault
        self.until = now + max(pause, min(asked or 0.0, pauses.asked))
