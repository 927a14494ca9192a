"""Patience: what has to be done before anything else can be is tried until it succeeds."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

PAUSE_SECONDS_MIN: Final = 0.2
PAUSE_SECONDS_MAX: Final = 10.0
"""How long to wait after a failure of the store or the log; doubled each time. There is no other bound: until
it is done nothing behind it may be acknowledged."""


async def stubborn(what: str, call: Callable[[], Awaitable[T]]) -> T:
    """Do something, again after each failure of a door, until it succeeds.

    Args:
        what: Named in the log.
        call: Begins one try.
    """
    pause_seconds = PAUSE_SECONDS_MIN
    while True:
        try:
            return await call()
        except OSError as error:
            log.warning("%s failed (%s); again in %.1f s", what, type(error).__name__, pause_seconds)
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)
