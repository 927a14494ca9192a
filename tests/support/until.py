"""Waiting for what must become true, within a bound."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LOOK_SECONDS = 0.05


def until(condition: Callable[[], T | None], *, seconds_max: float, what: str) -> T:
    """Ask again and again until the answer is true, and return it.

    Raises:
        AssertionError: It has not come true in `seconds_max`; the text says `what` was waited for.
    """
    give_up = time.monotonic() + seconds_max
    while True:
        if answer := condition():
            return answer
        if time.monotonic() >= give_up:
            raise AssertionError(f"after {seconds_max} s there was still no {what}")
        time.sleep(LOOK_SECONDS)
