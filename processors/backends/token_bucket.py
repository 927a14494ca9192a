"""Token bucket: limits the tokens a minute of a server, or of a model.

The bucket fills at the rate and allows calls while it holds anything. The use of a call is not known when it
starts, so the call takes an estimate, and its real use is settled with the answer; a bucket below zero allows
nothing until it is filled again. So a large call never gets stuck, and the average keeps to the rate. A burst may
exceed the rate by the content of a full bucket and by the errors of the estimates of all calls in flight.

Several processes share a rate by their parts of the model's calls: each fills its bucket with its own part. A call
that ends after the part has shrunk is settled in proportion, so that it costs the time that it would have cost
when it began. If the part has grown, it costs its tokens. So a process that has hardly any partitions for a moment
does not wait for hours, meanwhile or afterwards.
"""

import math
from typing import Final, NamedTuple

FULL_SECONDS: Final = 1.0
"""A full bucket holds the tokens of this many seconds."""
LIMITING_SECONDS: Final = 10.0
"""How long a bucket counts as limiting after it refused a call: it empties and fills several times a second."""
TOKEN_BYTES: Final = 4
"""Bytes of a request's body for each token, on average; the estimate of the other tokens corrects it."""
REST_TOKENS: Final = 256.0
"""Assumed tokens of a line besides its body, mostly for its answer, until the first answer."""
REST_PART: Final = 0.05
"""The weight of the last answer in the estimate of the next."""


class Taken(NamedTuple):
    """What a call took from a bucket."""

    tokens: float
    """The estimate of its use."""
    part: float
    """The process's part of the rate at that time."""


class TokenBucket:
    """One bucket; times are seconds of the event loop's clock."""

    def __init__(self, tokens_per_minute: float) -> None:
        """Start full."""
        self._per_second = tokens_per_minute / 60
        self._part = 1.0
        self._rest = REST_TOKENS
        self._level = self._full
        self._at = math.inf
        """When it was filled last."""
        self._refused_at = -math.inf
        """When it last refused a call."""

    def set_rate(self, tokens_per_minute: float, now: float) -> None:
        """Set the rate of all processes; the estimates stay."""
        self._refill(now)
        self._per_second = tokens_per_minute / 60
        self._level = min(self._level, self._full)

    def set_part(self, part: float, now: float) -> None:
        """Set this process's part of the rate, 0 <= part <= 1; what it holds changes in proportion.

        A process without a part has no lines to call, and its bucket goes on with its last part. A debt shrinks
        with the part, and does not grow with it: its calls used no more tokens than they did.
        """
        self._refill(now)
        if part > 0:
            self._level *= part / self._part if self._level > 0 else min(1.0, part / self._part)
            self._part = part

    def holds(self, size: int, lines: int) -> bool:
        """Whether it held the estimate for a call with lines of `size` bytes when it was last filled."""
        return self._expected(size, lines) <= self._level

    def allows(self, now: float) -> bool:
        """Whether a call that waits may start."""
        self._refill(now)
        if self._level > 0:
            return True
        self._refused_at = now
        return False

    def is_limiting(self, now: float) -> bool:
        """Whether it is empty, or has refused a call in the last `LIMITING_SECONDS`."""
        self._refill(now)
        return self._level <= 0 or now < self._refused_at + LIMITING_SECONDS

    def ready_at(self, now: float) -> float:
        """When a call may start, if nothing else happens."""
        self._refill(now)
        return now if self._level > 0 else now + (1 - self._level) / (self._per_second * self._part)

    def take(self, size: int, lines: int = 1) -> Taken:
        """Take the estimate for a call with lines of `size` bytes together."""
        taken = Taken(self._expected(size, lines), self._part)
        self._level -= taken.tokens
        return taken

    def give_back(self, taken: Taken) -> None:
        """Return the estimate of a call that used nothing."""
        self._add(taken.tokens, taken)

    def settle(self, taken: Taken, used: int, size: int, lines: int = 1) -> None:
        """Replace the estimate of an answered call by its real use.

        Args:
            taken: What `take` returned.
            used: Tokens of the request and of the answer, as the server counted them.
            size: What `take` was given.
            lines: The same.
        """
        self._rest += REST_PART * ((used - size / TOKEN_BYTES) / lines - self._rest)
        self._add(taken.tokens - used, taken)

    def _add(self, tokens: float, taken: Taken) -> None:
        """Add tokens of a call in flight, fewer than 0 to deduct some."""
        self._level = min(self._full, self._level + tokens * min(1.0, self._part / taken.part))

    @property
    def _full(self) -> float:
        return max(1.0, self._per_second * self._part * FULL_SECONDS)

    def _expected(self, size: int, lines: int) -> float:
        return max(1.0, size / TOKEN_BYTES + lines * self._rest)

    def _refill(self, now: float) -> None:
        self._level = min(self._full, self._level + max(0.0, now - self._at) * self._per_second * self._part)
        self._at = now
