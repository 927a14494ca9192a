"""When a process that has ended is started again: pure decisions, the dice are given."""

from dataclasses import dataclass

FIRST_SECONDS = 0.1
LONGEST_SECONDS = 10.0
STEADY_SECONDS = 30.0
"""A process that has lived this long has not ended because of how it was started."""
JITTER = 0.5
"""The share of a delay that is left to chance, so that what ended together does not start together."""
STARTS_MAX = 3
"""A process that was never ready is started this often; after that it will not become ready either."""
DOUBLINGS_MAX = 20


@dataclass(frozen=True, kw_only=True)
class Again:
    """Start it again after a delay in seconds; `failures` is to be handed in at its next end."""

    seconds: float
    failures: int


@dataclass(frozen=True)
class GiveUp:
    """It cannot be started."""


def decide(*, failures: int, alive_seconds: float, ever_ready: bool, chance: float) -> Again | GiveUp:
    """Say what follows the end of a process that nobody has asked to end.

    Args:
        failures: How often in a row it had ended before.
        alive_seconds: How long it has lived this time.
        ever_ready: Whether it has ever said that it is ready; one that has is never given up.
        chance: Between 0 and 1.
    """
    failures = 1 if alive_seconds >= STEADY_SECONDS else failures + 1
    if not ever_ready and failures >= STARTS_MAX:
        return GiveUp()
    longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(failures - 1, DOUBLINGS_MAX))
    return Again(seconds=longest * (1 - JITTER * chance), failures=failures)
