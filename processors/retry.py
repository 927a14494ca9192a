"""Whether a call that failed is made again, and when.

Two kinds of failure are told apart, since only one of them can be the line's own fault:

- an *outage* says that the backend is not there, is full or does not take us: refused connections, 429, 502, 503,
  504, and 401, 403, 404 or a redirect, which are about our key, our model or our address. A line is never failed
  for it; only its deadline ends the tries.
- a *suspect* failure may come from the line itself: 500 and other 5xx, 408, 409, 425, a timeout, a connection that
  breaks during the call, a reply that is not the JSON object it claims to be. The line is failed after
  `attempts_min` tries, and only once its backend is known to be well: it has answered another line since this one
  was first tried. With no other answer to go by, `patience_seconds` must have passed, and it must be the only line
  that fails: a backend that fails them all is at fault itself, whatever it says and for how long.

Tries are few beside what is answered: a backend has a budget of them, and where that is spent, the next one comes
`spread_seconds_min` later or more.

Any other status is an answer, and is no business of this module.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

WAIT_SECONDS_BASE: Final = 0.5
WAIT_SECONDS_MAX: Final = 60.0
FAULT_WAIT_SECONDS_MIN: Final = 5.0
"""A backend that refuses our key or does not know our model is asked again no sooner."""
ATTEMPTS_MIN: Final = 10
PATIENCE_SECONDS: Final = 300.0
SPREAD_SECONDS_MIN: Final = 5.0
BRISK_PART: Final = 0.2
"""Of a wait, where one call was refused among many that are answered."""

_OUTAGES: Final = frozenset({429, 502, 503, 504})
_SUSPECTS: Final = frozenset({408, 409, 425})
_FAULTS: Final = frozenset({401, 403, 404})


class Kind(Enum):
    """What a failure says."""

    OUTAGE = auto()
    """The backend is away or full."""
    FAULT = auto()
    """The backend is set up wrongly for us: an outage that somebody has to mend."""
    SUSPECT = auto()
    """It may be the line's own doing."""
    FINAL = auto()
    """Trying again would end in the same way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """The bounds; see the constants above."""

    wait_seconds_base: float = WAIT_SECONDS_BASE
    wait_seconds_max: float = WAIT_SECONDS_MAX
    fault_wait_seconds_min: float = FAULT_WAIT_SECONDS_MIN
    attempts_min: int = ATTEMPTS_MIN
    patience_seconds: float = PATIENCE_SECONDS
    spread_seconds_min: float = SPREAD_SECONDS_MIN


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Call again at this time."""

    at: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The line has failed."""


@dataclass(frozen=True, slots=True)
class Lapse:
    """No try is left before the deadline: the line expires, which is for the owner of the batch to say."""


Verdict = RetryAt | GiveUp | Lapse

POLICY: Final = Policy()


def kind_of(status: int) -> Kind | None:
    """What an HTTP status says; None where it is an answer."""
    if status < 300 or (400 <= status < 500 and status not in _OUTAGES | _SUSPECTS | _FAULTS):  # noqa: PLR2004
        return None
    if status in _OUTAGES:
        return Kind.OUTAGE
    if status in _FAULTS or status < 400:  # noqa: PLR2004
        return Kind.FAULT
    return Kind.SUSPECT


def decide(
    kind: Kind,
    *,
    attempt: int,
    now: float,
    since: float,
    well: bool,
    alone: bool = True,
    spread: bool = False,
    brisk: bool = False,
    deadline: float,
    chance: float,
    retry_after: float | None = None,
    policy: Policy = POLICY,
) -> Verdict:
    """Decide what follows a failed call.

    Args:
        kind: What the failure said.
        attempt: Calls made for the line so far, this one included.
        now: The time, by a clock that nobody steps, as are the others.
        since: When the line was first called.
        well: Whether the backend that failed has answered another line since then.
        alone: Whether the backend has failed no other line since it last answered one.
        spread: Whether the budget of tries is spent.
        brisk: Whether it was refused while most calls are answered.
        deadline: When no call is made any more.
        chance: A random number, 0 <= chance < 1: full jitter spreads lines that failed together.
        retry_after: Seconds the backend asked us to wait.
        policy: The bounds.
    """
    if kind is Kind.FINAL:
        return GiveUp()
    if (
        kind is Kind.SUSPECT
        and attempt >= policy.attempts_min
        and (well or (alone and now - since >= policy.patience_seconds))
    ):
        return GiveUp()
    # The exponent is bounded, as a line may be tried for days.
    wait = chance * min(policy.wait_seconds_max, policy.wait_seconds_base * 2.0 ** min(attempt - 1, 30))
    if brisk:
        wait *= BRISK_PART
    if kind is Kind.FAULT:
        wait = max(wait, policy.fault_wait_seconds_min * (1 + chance))
    elif spread:
        wait = max(wait, policy.spread_seconds_min * (1 + chance))
    at = now + max(wait, retry_after or 0.0)
    return RetryAt(at) if at < deadline else Lapse()
