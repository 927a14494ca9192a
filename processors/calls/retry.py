"""Whether a call that failed is made again, and when: the evidence decides whose fault the failure is.

What a server refuses for one line while it answers others is the line's fault. What it refuses while it answers
no other line may be the server's: the line waits, and only its deadline ends it. So a failure *counts* against a
line only if the server has answered another call of the same endpoint that began after the line's failure before;
that one counts as well then.

| what happened | a line has failed |
|---|---|
| a 4xx that is not named below | at once: the server has read the request, and judged it |
| 3xx, 401, 402, 403, 404, 405, 407, 410, 421: key, model or address may be wrong | when two count |
| 408, 409, 424, 425, 429, 5xx, no answer in time, a reply that is cut or unreadable | when `tries_max` count |
| no connection, or no access to a line in the store | never |

The last of `tries_max` failures comes `spread_seconds_min` after the first, or later. One that says that the
server is full (429, 503) counts only while the server refuses few others.
"""

from dataclasses import dataclass
from typing import Final

from tidemill.processors.failures import Kind, Past

WAIT_SECONDS_BASE: Final = 0.5
WAIT_SECONDS_MAX: Final = 60.0
TRIES_MAX: Final = 10
SPREAD_SECONDS_MIN: Final = 60.0
PROOF_SECONDS_MIN: Final = 2.0
"""Between two requests that only ask whether a server answers (`processors/calls/proof.py`)."""
REFUSALS_MAX: Final = 2
BRISK_PART: Final = 0.2
"""Of a wait, where one call was refused among many that are answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """The bounds; see the constants above."""

    wait_seconds_base: float = WAIT_SECONDS_BASE
    wait_seconds_max: float = WAIT_SECONDS_MAX
    tries_max: int = TRIES_MAX
    spread_seconds_min: float = SPREAD_SECONDS_MIN
    proof_seconds_min: float = PROOF_SECONDS_MIN


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Call again at this time."""

    at: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The line has failed."""


@dataclass(frozen=True, slots=True)
class Expire:
    """No try is left before the deadline: the line expires, which is for the owner of the batch to say."""


Verdict = RetryAt | GiveUp | Expire

POLICY: Final = Policy()


def decide(
    kind: Kind,
    past: Past,
    *,
    counts: bool,
    attempt: int,
    now: float,
    deadline: float,
    chance: float,
    elsewhere: bool = False,
    brisk: bool = False,
    retry_after: float | None = None,
    policy: Policy = POLICY,
) -> Verdict:
    """Decide what follows a failed call.

    Args:
        kind: Whose fault it may be.
        past: The failed calls of the line, this one included.
        counts: Whether this one counts against the line.
        attempt: Calls made for the line so far, this one included.
        now: The time, by a clock that nobody steps, as are the others.
        deadline: When no call is made any more.
        chance: A random number, 0 <= chance < 1: full jitter spreads lines that failed together.
        elsewhere: Whether the server answers nobody, and another one of the model is well.
        brisk: Whether the call was refused while most calls are answered.
        retry_after: Seconds the server asked us to wait.
        policy: The bounds.
    """
    if kind is Kind.FINAL or (counts and _is_the_lines(past, now, policy)):
        return GiveUp()
    # The exponent is bounded, as a line may be tried for days.
    longest = 2 * policy.spread_seconds_min / policy.tries_max if counts else policy.wait_seconds_max
    wait = chance * min(longest, policy.wait_seconds_base * 2.0 ** min(attempt - 1, 30))
    if brisk:
        wait *= BRISK_PART
    if elsewhere:
        wait = 0.0
    else:
        wait = max(wait, retry_after or 0.0)
        if past.tries >= policy.tries_max - 1:
            wait = max(wait, past.since + policy.spread_seconds_min - now)
    at = now + wait
    return RetryAt(at) if at < deadline else Expire()


def _is_the_lines(past: Past, now: float, policy: Policy) -> bool:
    if past.refusals >= REFUSALS_MAX:
        return True
    return past.tries >= policy.tries_max and now - past.since >= policy.spread_seconds_min
