"""Retries with back-off until the work succeeds.

A pause doubles with each failure up to a bound, and is shortened at random, so that tasks that fail together do
not retry together. The number of attempts has no bound, since the records behind the work stay unacknowledged.
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
"""The random share of a pause."""
DOUBLINGS_MAX: Final = 20

log = logging.getLogger(__name__)

T = TypeVar("T")


def pause_seconds(failures: int, *, first: float | None = None, longest: float | None = None) -> float:
    """The pause before the next attempt in seconds, after an attempt that `failures` others preceded.

    `first` and `longest` bound the first and all pauses.
    """
    doubled = (FIRST_SECONDS if first is None else first) * 2.0 ** min(failures, DOUBLINGS_MAX)
    longest = LONGEST_SECONDS if longest is None else longest
    return min(longest, doubled) * (1 - JITTER * random.random())  # noqa: S311  it spreads load


async def retry(
    what: str, call: Callable[[], Awaitable[T]], *, faults: type[Exception] | tuple[type[Exception], ...] = OSError
) -> T:
    """Repeat a call until it succeeds; logs the transient `faults` as warnings, and raises other errors."""
    for failures in itertools.count():
        try:
            return await call()
        except faults as error:
            pause = pause_seconds(failures)
            log.warning("%s failed (%s); next attempt in %.1f s", what, reason(error), pause)
        await asyncio.sleep(pause)
    raise AssertionError


def reason(error: Exception) -> str:
    """Why an external call failed, without the paths in the system's error texts."""
    text = (error.strerror or str(error)) if isinstance(error, OSError) else ""
    return (text or type(error).__name__)[:TEXT_CHARS_MAX]
