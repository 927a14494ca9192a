"""Waits for conditions, with a bound, and for locks, so that no test sleeps for a guessed time."""

import asyncio
import fcntl
import inspect
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS_MIN = 0.02
POLL_SECONDS_MAX = 0.1
POLLS_OF_A_WAIT = 20
"""A wait is longer than necessary by at most one part in this, and a long one polls rarely."""
WAIT_SECONDS_MAX = 900.0
"""The bound of all waits. It ends a hang, and measures no speed: a busy machine is ten times slower."""


def wait_until(
    condition: Callable[[], T], what: str = "the condition", *, seconds_max: float = WAIT_SECONDS_MAX
) -> T:
    """Ask until the answer is true, and return it; raises `AssertionError` with `what` if it never is."""
    began = time.monotonic()
    while not (answer := condition()):
        time.sleep(_pause(time.monotonic() - began, what, seconds_max))
    return answer


async def until(
    condition: Callable[[], T | Awaitable[T]],
    what: str = "the condition",
    *,
    seconds_max: float = WAIT_SECONDS_MAX,
) -> T:
    """Like `wait_until`, as a coroutine; the condition may be one, too."""
    began = time.monotonic()
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        await asyncio.sleep(_pause(time.monotonic() - began, what, seconds_max))


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """A block that only one test process of this user at a time runs on this machine."""
    with (Path(tempfile.gettempdir()) / f"tidemill-test-{name}-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pause(waited: float, what: str, seconds_max: float) -> float:
    """Seconds until the next question."""
    assert waited < seconds_max, f"{what} did not come true in {seconds_max} s"
    return min(POLL_SECONDS_MAX, max(POLL_SECONDS_MIN, waited / POLLS_OF_A_WAIT))
