"""Whether a server is called at all: once it fails different lines in a row it is left alone, then asked with few.

One line may be at fault itself, so only failures of different lines with no answer between them say that the
server is: a few of them, and twice as many more as it has calls in flight, which may be answered yet. A connection
that is refused says so at once, as does the refusal of a server that is full, if `pool.py` finds it is. An answer
closes the breaker again, and where most calls are answered, what fails costs the others next to nothing.

The pause is what the server asked for, or doubles from half a second to five. After it go some probes, of
different lines (`scheduling/scheduler.py` picks them at random, so that one answers for a server even where many
lines are bad).
One that is answered opens everything again; when all have failed, there is another pause.
"""

from dataclasses import dataclass
from typing import Final

from tidemill.processors.failures import Kind

PAUSE_SECONDS_BASE: Final = 0.5
PAUSE_SECONDS_MAX: Final = 5.0
"""Of a pause that the server did not ask for: one that is back is found out within this time."""
REFUSAL_PAUSE_SECONDS_MAX: Final = 10.0
"""Where our key or model is not taken somebody has to mend it."""
ASKED_PAUSE_SECONDS_MAX: Final = 60.0
"""Of a pause that the server asked for."""
PROBE_SECONDS_MAX: Final = 10.0
"""Probes that have no answer by then are joined by others."""
PROBES: Final = 4
"""After a pause; one where it is no line's fault. Half of all lines may be bad: all of four are one time in 16."""
ROW_NEW: Final = 3
"""Lines that a server fails in a row, of which nothing is known, or which was away."""
ROW: Final = 8
"""Of one that has answered: with every second line bad, this happens once in 256."""
ROW_TRUSTED: Final = 64
"""Of one that answers, while lines fail in rows."""
BESIDE: Final = 2
"""More lines for each call in flight: bad lines fail fast, and leave their seats to good ones, which are slow."""
DOUBLINGS_MAX: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Pauses:
    """The lengths; see the constants above."""

    base: float = PAUSE_SECONDS_BASE
    longest: float = PAUSE_SECONDS_MAX
    refusal: float = REFUSAL_PAUSE_SECONDS_MAX
    asked: float = ASKED_PAUSE_SECONDS_MAX
    probe: float = PROBE_SECONDS_MAX


PAUSES: Final = Pauses()


class Breaker:
    """The state of one server."""

    def __init__(self, pauses: Pauses = PAUSES) -> None:
        self._pauses = pauses
        self._row_max = ROW_NEW
        self._probes = 0
        """Those that may go out yet."""
        self._open_probes = 0
        """Those in flight."""
        self._probes_max = PROBES
        self._is_full = False
        """Whether this pause is that of a server which has too many calls."""
        self.row = 0
        """Lines that it failed since it last answered one."""
        self.failures = 0
        """Pauses in a row; 0 while the server is well."""
        self.until = 0.0
        """When it may be asked next, if it is not well."""

    @property
    def is_doubtful(self) -> bool:
        """Whether it is left alone for what may be the fault of lines."""
        return self.failures > 0 and self._probes_max > 1

    @property
    def is_open(self) -> bool:
        """Whether its last probes failed, too: it is down, and not just busy."""
        return self.failures > 1

    def admits(self, now: float) -> bool:
        """Whether a call may go out."""
        return not self.failures or self._probes > 0 or now >= self.until

    def sent(self, now: float) -> bool:
        """A call goes out; returns whether it is a probe."""
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
        self.failures = self.row = self._probes = 0
        self.until = 0.0
        self._is_full = False
        self._row_max = max(ROW, self._row_max)

    def trust(self) -> None:
        """The server has answered a request that is no line's (`proof.py`): what failed before were bad lines."""
        self._row_max = ROW_TRUSTED

    def left(self, *, is_probe: bool) -> None:
        """A call was not made after all."""
        if is_probe and self.failures:
            self._open_probes -= 1
            self._probes += 1

    def failed(
        self,
        kind: Kind,
        now: float,
        *,
        is_probe: bool,
        is_full: bool = False,
        in_flight: int = 0,
        asked: float | None = None,
    ) -> None:
        """A call for a line failed that has not failed here before, or a probe did.

        Args:
            kind: Whose fault it may be.
            now: Seconds of a clock that nobody steps.
            is_probe: What `sent` said of it.
            is_full: Whether it says that the server has too many calls.
            in_flight: Calls that the server has still.
            asked: Seconds the server asked us to wait.
        """
        if kind is Kind.FINAL:
            return
        is_certain = is_full or kind is Kind.OUTAGE
        if self._is_full and not is_certain:
            # It has one call less now, or took this one in: whatever else it is, it is not full.
            self.failures = self._probes = 0
            self._is_full = is_probe = False
        if self.failures:
            if not is_probe:
                # Calls that were in flight at the first failure say the same thing again.
                return
            self._open_probes -= 1
            if self._open_probes > 0 and not is_certain:
                return
        else:
            self.row += 1
            if not is_certain and self.row < self._row_max + BESIDE * in_flight:
                return
        self._is_full = is_full
        self._pause(kind, now, asked, probes=1 if is_certain else PROBES)

    def _pause(self, kind: Kind, now: float, asked: float | None, *, probes: int) -> None:
        pauses = self._pauses
        pause = min(
            pauses.refusal if kind is Kind.REFUSAL else pauses.longest,
            pauses.base * 2.0 ** min(self.failures, DOUBLINGS_MAX),
        )
        self.failures += 1
        self.until = now + max(pause, min(asked or 0.0, pauses.asked))
        self._probes = self._open_probes = 0
        self._probes_max = probes
        self._row_max = ROW_NEW
