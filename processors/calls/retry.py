"""Decides whether a failed call is retried, and when. The evidence decides whose fault the failure is.

If a server refuses one line while it answers others, the line is at fault. If it answers no other line, the server
may be: the line waits, and only its deadline ends it. So a failure *counts* against a line only if the server has
answered another call of the same endpoint that began after the line's previous failure; that failure counts then,
too. See docs/decisions/0017-fault-by-evidence.md.

| what happened | the line ends |
|---|---|
| a 4xx that is not listed below | at once: the server has judged the request |
| 3xx, 401, 402, 403, 404, 405, 407, 410, 421: key, model or address may be wrong | when two count |
| 408, 409, 424, 425, 429, 5xx, no answer in time, a truncated or unreadable reply | when `tries_max` count |
| an answer that the server broke off, which costs as much as a whole one | when `tries_max` failed: each counts |
| no connection, or a line in the store cannot be read | never |

The last of `tries_max` failures comes `spread_seconds_min` after the first, or later. A 429, 503 or 529 counts
only while the server refuses few others.

`dispatcher.py` carries out the decision; a line waits for its retry in `scheduling/retry_queue.py`.
"""

from dataclasses import dataclass
from typing import Final

from tidemill.processors.failures import CallFailure, Evidence, FailureKind, Fault, History

WAIT_SECONDS_BASE: Final = 0.5
WAIT_SECONDS_MAX: Final = 60.0
CONNECT_SECONDS_MAX: Final = 5.0
"""The longest wait of a line whose server could not be reached."""
TRIES_MAX: Final = 10
SPREAD_SECONDS_MIN: Final = 60.0
PROBE_SECONDS_MIN: Final = 2.0
"""Least time between two health probes."""
REFUSALS_MAX: Final = 2
ACCIDENT_PART: Final = 0.2
"""Part of a wait that remains if the server refuses one call and accepts most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """The bounds; see the constants above."""

    wait_seconds_base: float = WAIT_SECONDS_BASE
    wait_seconds_max: float = WAIT_SECONDS_MAX
    tries_max: int = TRIES_MAX
    spread_seconds_min: float = SPREAD_SECONDS_MIN
    probe_seconds_min: float = PROBE_SECONDS_MIN


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Call again at this time of the event loop's clock."""

    at: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The line ends with an error line."""


@dataclass(frozen=True, slots=True)
class Expire:
    """No call is possible before the deadline: the owner of the batch ends the line."""


POLICY: Final = Policy()


def decide(
    failure: CallFailure,
    evidence: Evidence,
    history: History,
    *,
    attempt: int,
    deadline: float,
    chance: float,
    policy: Policy = POLICY,
) -> RetryAt | GiveUp | Expire:
    """Decide on the next action after a failed call, and add the call to the line's history.

    Args:
        failure: What happened.
        evidence: What other calls show about the server.
        history: The line's earlier failed calls.
        attempt: Calls made for the line, including this one.
        deadline: No call begins later, by the event loop's clock.
        chance: A random number, 0 <= chance < 1, for full jitter, which spreads lines that failed together.
        policy: The bounds.
    """
    fault = blamed(failure, evidence)
    counts = fault is Fault.LINE and failure.fault is not Fault.LINE
    history.note(failure, counts=counts)
    if fault is Fault.LINE and (not counts or _has_failed(history, failure.at, policy)):
        return GiveUp()
    if evidence.other_is_well and not counts:
        wait = 0.0
    else:
        # The exponent has a bound, since a line may be retried for days.
        longest = 2 * policy.spread_seconds_min / policy.tries_max if counts else policy.wait_seconds_max
        if failure.kind is FailureKind.CONNECT:
            # The breaker lets only probes through; once one is answered, no line should wait for long.
            longest = CONNECT_SECONDS_MAX
        wait = chance * min(longest, policy.wait_seconds_base * 2.0 ** min(attempt - 1, 30))
        wait = _adjusted(wait, failure, evidence, history, policy)
    at = failure.at + wait
    return RetryAt(at) if at < deadline else Expire()


def blamed(failure: CallFailure, evidence: Evidence) -> Fault:
    """Whose fault a failure is assumed to be."""
    fault = failure.fault
    if fault in {Fault.LINE, Fault.SERVER}:
        return fault
    if failure.kind is FailureKind.BROKEN_OFF:
        # A server that breaks all answers off gives no evidence, and would be paid for them until the deadline.
        return Fault.LINE
    if evidence.others_answered and not (failure.is_overload and evidence.refuses_many):
        return Fault.LINE
    return Fault.ACCESS if fault is Fault.ACCESS_OR_LINE else Fault.SERVER


def _has_failed(history: History, now: float, policy: Policy) -> bool:
    if history.refusals >= REFUSALS_MAX:
        return True
    return history.counted >= policy.tries_max and now - history.since >= policy.spread_seconds_min


def _adjusted(wait: float, failure: CallFailure, evidence: Evidence, history: History, policy: Policy) -> float:
    """Raise the wait to what the server asks for, and before the last call to the rest of the spread."""
    if failure.is_full and not evidence.refuses_repeatedly:
        # The server refused one call among many; calling another line instead would cause the same load.
        wait *= ACCIDENT_PART
    else:
        wait = max(wait, failure.retry_after or 0.0)
    if history.counted >= policy.tries_max - 1:
        wait = max(wait, history.since + policy.spread_seconds_min - failure.at)
    return wait
