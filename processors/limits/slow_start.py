"""Slow start: how fast calls go out under a limit that was not used lately.

A limit that was found a while ago may be far too high by now, which shows only when calls go out again. So as many
calls as were in flight lately go out at once, and the others that the limit allows follow in slices, a few
milliseconds apart: a full backend refuses the first calls of a slice, and no later slice is sent. The duration of
calls does not matter, so a backend that takes all of them is at its limit within `SLICES * SLICE_SECONDS`.

Each slice is judged by its own calls, which their level identifies, the number of calls in flight with them: above
its capacity a backend refuses nearly all of them, whereas one that refuses at random refuses as many of each
slice. Calls that replace refused ones count as well, up to as many again.
"""

import math
from typing import Final

START_CALLS: Final = 8
"""Calls that may go out at once at any time."""
SLICES: Final = 8
SLICE_SECONDS: Final = 0.005
"""A refusal arrives within this time, unless the backend is far away."""
SLICE_CALLS_MIN: Final = 4
PROVEN_SECONDS: Final = 1.0
"""The server is trusted with as many calls as were in flight in this period of time, or the one before."""
REFUSED_DIVISOR: Final = 2
"""A slice fails if the server refuses more than 1/`REFUSED_DIVISOR` of its calls."""
REFUSED_MIN: Final = 4
"""With one call in twenty refused at random, hardly one slice in ten thousand fails."""


class SlowStart:
    """Bounds the calls in flight at one backend."""

    def __init__(self) -> None:
        self.level = START_CALLS
        """Calls that may be in flight."""
        self.next_at = 0.0
        """When the next slice may go out."""
        self._highest = 0
        """The most calls in flight at one time in this period."""
        self._until = float("-inf")
        """The end of this period."""
        self._opening = 0
        """Counts the times that calls went out in slices."""
        self._floor = self._top = 0
        """Calls in flight below its first slice, and at the top of its last one."""
        self._size = SLICE_CALLS_MIN
        """Calls of a slice."""
        self._sent = [0] * SLICES
        self._refused = [0] * SLICES
        self._taken: int | None = None
        """Calls that the backend accepted, once it refused those above."""

    def tick(self, in_flight: int, calls: int, now: float) -> None:
        """Raise the bound by a slice, if there are more calls to make.

        Args:
            in_flight: Calls in flight.
            calls: Calls that the limit allows.
            now: Seconds of the event loop's clock.
        """
        if now >= self._until:
            lately = self._highest if now < self._until + PROVEN_SECONDS else 0
            self.level = max(START_CALLS, lately, in_flight)
            self._highest = in_flight
            self._until = now + PROVEN_SECONDS
        if self.level < calls and in_flight >= self.level and now >= self.next_at:
            if self.level != self._top or self._top >= self._floor + SLICES * self._size:
                self._begin(calls)
            self.level = self._top = min(calls, self.level + self._size)
            self.next_at = now + SLICE_SECONDS

    def sent(self, level: int) -> int:
        """Note a call, with which `level` are in flight; returns its slice, 0 if it is in none."""
        if level > self._highest:
            self._highest = level
            self.level = max(self.level, level)
        if not self._floor < level <= self._top:
            return 0
        index = (level - self._floor - 1) // self._size
        if self._sent[index] >= 2 * self._size:
            return 0
        self._sent[index] += 1
        return self._opening * SLICES + index

    def refused(self, number: int, in_flight: int) -> int | None:
        """A call of a slice was refused.

        Args:
            number: What `sent` returned.
            in_flight: Calls that are still in flight.

        Returns:
            Calls that the backend takes, if it is full; each further refusal may lower the number by one.
        """
        opening, index = divmod(number, SLICES)
        if opening != self._opening:
            return None
        self._refused[index] += 1
        refused = self._refused[index]
        if self._taken is not None:
            # The backend has not taken all calls that were in flight then.
            self._taken -= 1
        elif refused >= REFUSED_MIN and REFUSED_DIVISOR * refused > self._sent[index]:
            self._taken = in_flight
        return self._taken

    def _begin(self, calls: int) -> None:
        self._opening += 1
        self._floor = self._top = self.level
        self._size = max(SLICE_CALLS_MIN, math.ceil((calls - self.level) / SLICES))
        self._sent = [0] * SLICES
        self._refused = [0] * SLICES
        self._taken = None
