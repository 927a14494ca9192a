"""The concurrency limit of a backend, found by trial.

Refusals (429, 503, 529, a timeout) are the only sign: the duration of a call depends on the length of its answer.
The limit is a *sure* number, and at times a *trial* of some more. Calls that are sent above the sure number, and
the highest ones below it, are counted separately. That tells a full backend from one that refuses at random: a
full one refuses nearly all of the highest calls, the other the same part of these as of all.

| event | reaction |
|---|---|
| trial calls are answered, or are not refused for a second | they become sure, the next trial is twice as large |
| four trial calls in a row are refused, or three and a quarter of the trial | it ends; its level is *full* |
| half of the last eight of the highest calls are refused, or ten of the last 32 of all | it falls a little |
| ten of the last 32 calls are not answered in time | it falls to three quarters |

The first trial doubles the limit, so the capacity of a backend is found within a few calls' time. The calls of a
trial go out in slices, a few milliseconds apart: a full backend refuses the first slices, and the rest is not
sent. A trial stays below the level that was full, which is then tried by one call alone. The limit falls by one
call, and by twice as many each time until a call that was sent since is answered; or to the calls in flight. Each
answer earns a part of a refusal as credit, and trials spend it: so they cost at most about one refusal in two
hundred calls. `limit_probe.py` deals with a few refusals near the limit, `slow_start.py` with a limit that was not
used lately.
"""

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tidemill.processors.limits.limit_probe import LimitProbe
from tidemill.processors.limits.slow_start import SLICE_SECONDS, SLICES, START_CALLS, SlowStart

SETTLED_SECONDS: Final = 1.0
"""A server has accepted a call that it has not refused for this long, however long the answer takes."""
TRIAL_CALLS_MIN: Final = 3
"""Answers, or refusals, that decide a trial of any size."""
REFUSED_DIVISOR: Final = 4
"""A trial fails if the server refuses 1/`REFUSED_DIVISOR` of its calls."""
REFUSED_ROW: Final = 4
"""A server hardly ever refuses this number of trial calls in a row by chance."""
WINDOW_CALLS: Final = 32
WINDOW_REFUSED_MAX: Final = 10
"""With one call in twenty refused at random, this happens once in half a million windows."""
EDGE_DIVISOR: Final = 16
EDGE_CALLS_MIN: Final = 2
"""The highest calls below the sure number: if that is one too high, the last of them is refused each time."""
EDGE_WINDOW_CALLS: Final = 8
EDGE_REFUSED_MAX: Final = 4
"""Chance exceeds this now and then, which costs one call until the next trial."""
PRESSED_CALLS_MIN: Final = 8
KEPT_PART: Final = 0.75
"""The part of the limit that remains after many calls without an answer in time."""
DEEP_CALLS: Final = 4
"""A cut by at least this many calls is a change of the backend; a slow loss of capacity cuts one or two."""
CREDIT_PER_ANSWER: Final = 0.005
CREDIT_REFUSALS_MAX: Final = 16.0
"""Also the initial credit, so that the first trials need not wait for answers."""


class Slot(NamedTuple):
    """The limit's record of a call that was sent."""

    cut: int
    """How often the limit had been cut by then."""
    trial: int
    """The number of the trial it belongs to; 0 if it is within the sure number."""
    is_edge: bool
    """Whether it is one of the highest below the sure number."""
    slice: int = 0
    """The slice of a slow start that it belongs to; else 0."""


@dataclass(slots=True)
class _Trial:
    number: int
    since: float
    next_at: float
    """When its next slice may go out."""
    open: int = 0
    """Calls above the sure number that may go out by now."""
    sent: int = 0
    answered: int = 0
    refused: int = 0
    row: int = 0
    """Calls refused since the last answer."""


class _Window:
    """Which of the last calls were refused."""

    __slots__ = ("bits", "mask", "seen")

    def __init__(self, calls: int) -> None:
        self.bits = 0
        self.mask = (1 << calls) - 1
        self.seen = 0

    def note(self, refused: int) -> None:
        self.bits = (self.bits << 1 | refused) & self.mask
        self.seen += 1

    @property
    def refused(self) -> int:
        return self.bits.bit_count()


@dataclass(slots=True)
class _Seen:
    """The calls since the limit was cut."""

    cut: int
    """How often it has been cut."""
    found: int | None = None
    """The limit that was found before `calls_max` was set below it."""
    all: _Window = field(default_factory=lambda: _Window(WINDOW_CALLS))
    edge: _Window = field(default_factory=lambda: _Window(EDGE_WINDOW_CALLS))


class ConcurrencyLimit:
    """The limit of one backend."""

    def __init__(self, calls_max: int) -> None:
        """Start low; `calls_max` is the upper bound of the limit."""
        self._calls_max = calls_max
        self._share = 1.0
        """Our part of the limit, 0 < share <= 1; the rest is for other callers."""
        self.sure = min(START_CALLS, calls_max)
        self._step = self.sure
        self._trial: _Trial | None = None
        self._trials = 0
        self._failed = 0
        """The number of the last trial that was refused."""
        self._fall = 1
        """Calls by which the next cut lowers the limit."""
        self._full: int | None = None
        """The lowest concurrency that was refused."""
        self._seen = _Seen(0)
        self._limit_probe = LimitProbe()
        self._slow_start = SlowStart()
        self._credit = CREDIT_REFUSALS_MAX
        self._has_metrics = False
        """Whether the backend's metrics are read."""
        self._may_try = True

    @property
    def allowed(self) -> int:
        """Calls that may be in flight."""
        if self._trial is None:
            return min(self._ours(self.sure), self._slow_start.level)
        return self._ours(min(self.sure + self._trial.open, self._calls_max))

    @property
    def found(self) -> int:
        """Our part of the calls that the server has been found to take."""
        return self._ours(self.sure)

    @property
    def is_pressed(self) -> bool:
        """Whether refusals are too frequent to be accidents; also true after few calls."""
        seen = self._seen.all
        return seen.seen < PRESSED_CALLS_MIN or REFUSED_DIVISOR * seen.refused > min(seen.seen, WINDOW_CALLS)

    def sent(self, level: int) -> Slot:
        """Record a call that goes out; `level` calls are in flight with it."""
        sure = self._ours(self.sure)
        part = self._slow_start.sent(level)
        if level <= sure or self._trial is None:
            return Slot(self._seen.cut, 0, level > sure - max(EDGE_CALLS_MIN, sure // EDGE_DIVISOR), part)
        self._trial.sent += 1
        return Slot(self._seen.cut, self._trial.number, is_edge=False)

    def answered(self, slot: Slot, now: float) -> None:
        """Record a call that was answered: with a result, or with an error that is the line's fault."""
        self._credit = min(CREDIT_REFUSALS_MAX, self._credit + CREDIT_PER_ANSWER)
        self._note(slot, refused=0)
        if self._trial is not None and slot.trial == self._trial.number:
            self._trial.answered += 1
            self._trial.row = 0
            self._judge(now)

    def refused(self, slot: Slot, in_flight: int, now: float, *, late: bool = False) -> None:
        """Record a call that was refused, or had no answer in time.

        Args:
            slot: What `sent` returned.
            in_flight: Calls that are still in flight.
            now: Seconds of the event loop's clock.
            late: Whether it had no answer in time.
        """
        if slot.trial:
            self._credit = max(0.0, self._credit - 1)
            if self._trial is not None and slot.trial == self._trial.number:
                self._trial.refused += 1
                self._trial.row += 1
                self._judge(now)
            if slot.trial == self._failed and self._full is not None:
                # The server has accepted the calls still in flight, or will refuse them in a moment.
                self._full = max(self.sure + 1, min(self._full, int(in_flight / self._share) + 1))
            return
        if slot.slice and not late:
            if (taken := self._slow_start.refused(slot.slice, in_flight)) is not None:
                self._credit = max(self._credit, 2.0 * TRIAL_CALLS_MIN)
                self._cut(min(self.sure, int(taken / self._share)))
            return
        self._note(slot, refused=1)
        if self._seen.all.refused >= WINDOW_REFUSED_MAX and late:
            self._cut(int(self.sure * KEPT_PART))
        elif self._seen.all.refused >= WINDOW_REFUSED_MAX or self._seen.edge.refused >= EDGE_REFUSED_MAX:
            fall, self._fall = self._fall, 2 * self._fall
            if fall >= DEEP_CALLS:
                # The backend has changed: trials may find a limit that was cut too deep again at once.
                self._credit = max(self._credit, 2.0 * TRIAL_CALLS_MIN)
            self._cut(max(self.sure // 2, min(self.sure - fall, int(in_flight / self._share))))

    def tick(self, in_flight: int, now: float) -> None:
        """End a trial that is over and begin the next one, if there are more calls to make."""
        sure = self._ours(self.sure)
        self._slow_start.tick(in_flight, sure, now)
        if self._trial is not None:
            if self._slow_start.level < sure:
                # The trial began when more calls were in flight.
                self._trial = None
            else:
                self._judge(now)
        if self._trial is None and in_flight >= sure:
            self._trial = self._begun(now)
        trial = self._trial
        if trial is not None and trial.open < self._step and now >= trial.next_at:
            trial.open = min(self._step, trial.open + math.ceil(self._step / SLICES))
            trial.next_at = now + SLICE_SECONDS

    def configure(self, calls_max: int, share: float) -> None:
        """Set the bound and our share; a limit that was found above a lower bound comes back with a higher one."""
        if (calls_max, share) == (self._calls_max, self._share):
            return
        self._calls_max, self._share = calls_max, share
        found = max(self.sure, self._seen.found or 0)
        self.sure = min(found, calls_max)
        self._step = min(self._step, self.sure)
        self._trial = None
        # The calls in flight were sent under another limit.
        self._seen = _Seen(self._seen.cut + 1, found if found > calls_max else None)
        self._limit_probe.reset()

    @property
    def ripe_at(self) -> float | None:
        """When more calls may go out: with the next slice, or after a trial that time alone may end."""
        if self._trial is None:
            return self._slow_start.next_at if self._slow_start.level < self._ours(self.sure) else None
        return self._trial.next_at if self._trial.open < self._step else self._trial.since + SETTLED_SECONDS

    def halve(self) -> None:
        """The backend was down: start lower, and find the limit again."""
        self._cut(self.sure // 2)
        self._full = None
        self._step = self.sure
        self._credit = CREDIT_REFUSALS_MAX

    def hold(self, is_full: bool, *, most: int | None = None, room: int | None = None) -> None:
        """Apply the demand of the backend's metrics: from now on at most one trial follows each reading.

        Args:
            is_full: The limit must not grow for now.
            most: Calls in flight that keep the backend busy; the limit does not fall below `START_CALLS`.
            room: Calls that the next trial may add.
        """
        self._has_metrics = True
        self._may_try = not is_full
        if is_full and self._trial is not None:
            self._trial = None
            self._step = 1
        if room is not None:
            self._step = min(self._step, max(1, int(room / self._share)))
        if most is None:
            return
        calls = max(START_CALLS, int(most / self._share))
        if calls < self.sure:
            self._cut(calls)
        else:
            self._full = calls + 1
            self._step = max(1, calls - self.sure)

    def release(self) -> None:
        """The backend's metrics can no longer be read."""
        self._has_metrics = False
        self._may_try = True

    def _ours(self, calls: int) -> int:
        return math.ceil(calls * self._share)

    def _begun(self, now: float) -> _Trial | None:
        """A new trial, if one is allowed."""
        if not self._may_try or not self._limit_probe.allows(self.sure + 1) or self.sure >= self._calls_max:
            return None
        if self._credit < TRIAL_CALLS_MIN:
            return None
        if self._full is not None:
            self._step = min(self._step, max(1, self._full - 1 - self.sure))
        while self._step > 1 and not self._limit_probe.allows(self.sure + self._step):
            self._step //= 2
        # Our share of a step may be less than one call.
        self._step = max(self._step, math.ceil(1 / self._share))
        self._trials += 1
        self._may_try = not self._has_metrics
        self._trial = _Trial(self._trials, now, next_at=now)
        return self._trial

    def _judge(self, now: float) -> None:
        trial = self._trial
        assert trial is not None, "it is under way"
        needed = max(TRIAL_CALLS_MIN, self._ours(self._step) // 2)
        is_settled = trial.sent >= needed and now >= trial.since + SETTLED_SECONDS
        is_refused = REFUSED_DIVISOR * trial.refused > trial.sent
        if trial.row >= REFUSED_ROW or (trial.refused >= TRIAL_CALLS_MIN and is_refused):
            self._trial = None
            self._failed = trial.number
            self._full = self.sure + self._step
        elif (trial.answered >= needed and REFUSED_DIVISOR * trial.refused <= trial.answered) or (
            is_settled and not is_refused
        ):
            self.sure = min(self.sure + self._step, self._calls_max)
            if self._full is not None and self.sure >= self._full:
                self._full = None
            self._step = min(2 * self._step, self.sure)
            self._limit_probe.begin()
            self._trial = None

    def _note(self, slot: Slot, refused: int) -> None:
        if slot.cut != self._seen.cut:
            # A refusal under a higher limit is no evidence against this one.
            return
        if not refused:
            self._fall = 1
        self._seen.all.note(refused)
        if slot.is_edge:
            self._seen.edge.note(refused)
        if not slot.trial and (calls := self._limit_probe.note(self.sure, refused=bool(refused))) is not None:
            self.sure = min(calls, self._calls_max)
            self._seen.found = None
            self._step = 1
            self._trial = None
            self._seen.cut += 1

    def _cut(self, calls: int) -> None:
        self.sure = max(1, calls)
        self._full = self.sure + 1
        self._step = 1
        self._trial = None
        self._seen = _Seen(self._seen.cut + 1)
        self._limit_probe.reset()
