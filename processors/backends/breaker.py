"""Circuit breaker: stops calls to a server that fails different lines in a row, then lets a few probes through.

One line may be at fault itself. So only failures of different lines, with no answer between them, show that the
server is down: a few, and two more for each call in flight, which the server may still answer. A refused
connection opens the breaker at once, and so does a refusal that `pool.py` takes for the refusal of a full server.
An answer closes the breaker again, so where most calls are answered, the failures cost the other lines next to
nothing.

The pause lasts as long as the server asked for, or doubles from half a second to five. After it some probes go
out, for different lines; `scheduling/scheduler.py` picks these at random, so that one is answered even where many
lines are bad. One answered probe closes the breaker; if all fail, there is another pause.
"""

from dataclasses import dataclass
from typing import Final

from tidemill.processors.failures import CallFailure, Fault
from tidemill.schemas.resources.load import BreakerState

PAUSE_SECONDS_BASE: Final = 0.5
PAUSE_SECONDS_MAX: Final = 5.0
"""The longest pause that the server did not ask for: we notice its return at most this late."""
ACCESS_PAUSE_SECONDS_MAX: Final = 10.0
"""The longest pause after a server rejected our key or did not know the model, which only an operator can mend."""
ASKED_PAUSE_SECONDS_MAX: Final = 60.0
"""The longest pause that a server may ask for."""
PROBE_SECONDS_MAX: Final = 10.0
"""If probes have no answer by then, more are sent."""
PROBES: Final = 4
"""Probes after a pause; one if no line can be at fault. If half of all lines are bad, all four fail 1 time in
16."""
ROW_NEW: Final = 3
"""Failed lines in a row that open the breaker of a server which has answered none yet, or was down."""
ROW: Final = 8
"""The same for a server that has answered: if every second line is bad, chance opens the breaker 1 time in 256."""
ROW_TRUSTED: Final = 64
"""The same for a server that has just answered a health probe (`calls/health_probe.py`)."""
BESIDE: Final = 2
"""More failed lines are needed for each call in flight: bad lines fail fast, good ones take their time."""
DOUBLINGS_MAX: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Pauses:
    """The lengths of pauses; see the constants above."""

    base: float = PAUSE_SECONDS_BASE
    longest: float = PAUSE_SECONDS_MAX
    access: float = ACCESS_PAUSE_SECONDS_MAX
    probe: float = PROBE_SECONDS_MAX


PAUSES: Final = Pauses()


class Breaker:
    """The breaker of one server; times are seconds of the event loop's clock."""

    def __init__(self, pauses: Pauses = PAUSES) -> None:
        self._pauses = pauses
        self._row_max = ROW_NEW
        self._probes = 0
        """Probes that may still go out."""
        self._open_probes = 0
        """Probes in flight."""
        self._probes_max = PROBES
        self._is_full = False
        """Whether the pause is for a server that has too many calls."""
        self.row = 0
        """Lines that failed since the last answer."""
        self.failures = 0
        """Pauses in a row; 0 while the breaker is closed."""
        self.until = 0.0
        """When the pause ends, or when more probes may go out."""

    @property
    def is_doubtful(self) -> bool:
        """Whether it is open for failures that may be the fault of lines."""
        return self.failures > 0 and self._probes_max > 1

    @property
    def is_open(self) -> bool:
        """Whether the last probes failed too: the server is down, and not just busy."""
        return self.failures > 1

    def admits(self, now: float) -> bool:
        """Whether a call may go out."""
        return not self.failures or self._probes > 0 or now >= self.until

    def state(self, now: float) -> BreakerState:
        """Its state, for reports."""
        if not self.failures:
            return BreakerState.CLOSED
        return BreakerState.PROBING if self.admits(now) else BreakerState.OPEN

    def sent(self, now: float) -> bool:
        """Note that a call goes out; returns whether it is a probe."""
        if not self.failures:
            return False
        if not self._probes:
            self._probes = self._probes_max
            self._open_probes = 0
            self.until = now + self._pauses.probe
        self._probes -= 1
        self._open_probes += 1
        return True

    def answered(self) -> None:
        """A call was answered."""
        if not self.row and not self.failures and self._row_max >= ROW:
            return
        self.failures = self.row = self._probes = 0
        self.until = 0.0
        self._is_full = False
        self._row_max = max(ROW, self._row_max)

    def trust(self) -> None:
        """The server answered a health probe (`calls/health_probe.py`): the lines that failed were bad."""
        self._row_max = ROW_TRUSTED

    def retry(self) -> None:
        """End the pause: the settings of the server have changed, which may have mended it."""
        self.until = 0.0

    def released(self, *, is_probe: bool) -> None:
        """The call was not made."""
        if is_probe and self.failures:
            self._open_probes -= 1
            self._probes += 1

    def failed(self, failure: CallFailure, *, is_probe: bool, in_flight: int = 0) -> None:
        """A probe failed, or a call for a line that had not failed here before.

        Args:
            failure: What happened; a failure that is the line's fault changes nothing.
            is_probe: What `sent` returned.
            in_flight: Calls that the server still has.
        """
        fault = failure.fault
        if fault is Fault.LINE:
            return
        is_certain = failure.is_overload or fault is Fault.SERVER
        if self._is_full and not is_certain:
            # The server has one call less now, or accepted this one: it is not full any more.
            self.failures = self._probes = 0
            self._is_full = is_probe = False
        if self.failures:
            if not is_probe:
                # Failures of calls that were in flight when the breaker opened do not count.
                return
            self._open_probes -= 1
            if self._open_probes > 0 and not is_certain:
                return
        else:
            self.row += 1
            if not is_certain and self.row < self._row_max + BESIDE * in_flight:
                return
        self._is_full = failure.is_overload
        self._pause(failure, probes=1 if is_certain else PROBES)

    def _pause(self, failure: CallFailure, *, probes: int) -> None:
        pauses = self._pauses
        pause = min(
            pauses.access if failure.fault is Fault.ACCESS_OR_LINE else pauses.longest,
            pauses.base * 2.0 ** min(self.failures, DOUBLINGS_MAX),
        )
        self.failures += 1
        self.until = failure.at + max(pause, min(failure.retry_after or 0.0, ASKED_PAUSE_SECONDS_MAX))
        self._probes = self._open_probes = 0
        self._probes_max = probes
        self._row_max = ROW_NEW
