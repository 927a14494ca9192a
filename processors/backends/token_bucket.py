"""How many tokens a minute: a bucket that fills at the rate, and lets calls out while there is anything in it.

What a call will use is not known when it goes out, so it takes an estimate, and what it really used is made good
when its answer is there: a bucket that owes lets nothing out until it is filled again. So a large call is never
stuck, and on average the rate is kept to; it may be exceeded for a moment by what a full bucket holds, and by as
much as the estimates of the calls in flight are wrong.

Several processes share a rate by their parts of the model's calls: each fills its bucket with its own part of it.
"""

import math
from typing import Final

FULL_SECONDS: Final = 1.0
"""What a full bucket holds: the rate of so long."""
TOKEN_BYTES: Final = 4
"""Of a request's body; what is wrong with it is learned with the rest."""
REST_TOKENS: Final = 256.0
"""What a call uses beside its body, as long as none has been answered: mostly its answer."""
REST_PART: Final = 0.05
"""How much the last answer counts in what is expected of the next."""


class TokenBucket:
    """One limit; times are seconds of any clock that goes forward."""

    def __init__(self, tokens_per_minute: float) -> None:
        """Begin full."""
        self._per_second = tokens_per_minute / 60
        self._part = 1.0
        self._rest = REST_TOKENS
        self._level = self._full
        self._at = math.inf
        """When it was looked at last: not yet."""

    def take_part(self, part: float, now: float) -> None:
        """From now on this process has that part of the rate, and of what is in the bucket or owed."""
        self._refill(now)
        self._level *= part / self._part
        self._part = part

    def allows(self, now: float) -> bool:
        """Whether a call may go out."""
        self._refill(now)
        return self._level > 0

    def ready_at(self, now: float) -> float:
        """When one may, if nothing else comes."""
        self._refill(now)
        return now if self._level > 0 else now + (1 - self._level) / (self._per_second * self._part)

    def take(self, size: int) -> float:
        """A call of so many bytes goes out; gives what it is expected to use."""
        expected = self._expected(size)
        self._level -= expected
        return expected

    def give_back(self, expected: float) -> None:
        """The call used nothing."""
        self._level = min(self._full, self._level + expected)

    def settle(self, expected: float, used: int, size: int) -> None:
        """The call was answered.

        Args:
            expected: What `take` gave.
            used: Tokens of the request and of the answer, by the backend's count.
            size: What `take` was given.
        """
        self._rest += REST_PART * (used - size / TOKEN_BYTES - self._rest)
        self._level = min(self._full, self._level + expected - used)

    @property
    def _full(self) -> float:
        return max(1.0, self._per_second * self._part * FULL_SECONDS)

    def _expected(self, size: int) -> float:
        return max(1.0, size / TOKEN_BYTES + self._rest)

    def _refill(self, now: float) -> None:
        self._level = min(self._full, self._level + max(0.0, now - self._at) * self._per_second * self._part)
        self._at = now
