"""Retries with back-off: what has to be done before anything else can be is tried until it succeeds.

A pause doubles with each failure up to a bound, and is shortened by chance, so that those who failed together do
not try again together. The number of tries has no bound: what waits behind the work may not be acknowledged yet.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tidemill.schemas.bounds import TEXT_CHARS_MAX

FIRST_SECONDS: Final = 0.2
LONGEST_SECONDS: Final = 10.0
JITTER: Final = 0.5
"""The share of a pause that is left to chance."""
DOUBLINGS_MAX: Final = 20

log = logging.getLogger(__name__)

T = TypeVar("T")


def pause_seconds(
    failures: int, *, first: float | None = None, longest: float | None = None, chance: float | None = None
) -> float:
    """How long to wait before the next try, in seconds.

    Args:
        failures: Tries that had failed before the last one.
        first: The longest pause after one failure; by default `FIRST_SECONDS`.
        longest: The longest pause of all; by default `LONGEST_SECONDS`.
        chance: Between 0 and 1; by default drawn.
    """
    doubled = (FIRST_SECONDS if first is None else first) * 2.0 ** min(failures, DOUBLINGS_MAX)
    drawn = random.random() if chance is None else chance  # noqa: S311  it spreads load
    return min(LONGEST_SECONDS if longest is None else longest, doubled) * (1 - JITTER * drawn)


async def retry(
    what: str, call: Callable[[], Awaitable[T]], *, faults: type[Exception] | tuple[type[Exception], ...] = OSError
) -> T:
    """Do something, again after each fault, until it succeeds; each failure is a warning in the log.

    Args:
        what: Named in the log.
        call: Begins one try.
        faults: What may pass; any other exception goes to the caller.
    """
    for failures in itertools.count():
        try:
            return await call()
        except faults as error:
            pause = pause_seconds(failures)
            log.warning("%s failed (%s); next try in %.1f s", what, reason(error), pause)
        await asyncio.sleep(pause)
    raise AssertionError


def reason(error: Exception) -> str:
    """Why something outside has failed, without the paths that the system's own words have."""
    text = (error.strerror or str(error)) if isinstance(error, OSError) else ""
    return (text or type(error).__name__)[:TEXT_CHARS_MAX]
