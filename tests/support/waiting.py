"""Waiting for a condition, with a bound, and for a turn: a test never sleeps for a time it has guessed."""

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

POLL_SECONDS = 0.02
WAIT_SECONDS_MAX = 30.0


def wait_until(
    condition: Callable[[], T], what: str = "the condition", *, seconds_max: float = WAIT_SECONDS_MAX
) -> T:
    """Ask until the answer is true, and return it; an `AssertionError` says what did not come."""
    patience = time.monotonic() + seconds_max
    while not (answer := condition()):
        assert time.monotonic() < patience, f"{what} did not come true in {seconds_max} s"
        time.sleep(POLL_SECONDS)
    return answer


async def until(
    condition: Callable[[], T | Awaitable[T]],
    what: str = "the condition",
    *,
    seconds_max: float = WAIT_SECONDS_MAX,
) -> T:
    """As `wait_until`, in a coroutine; the condition may be one too."""
    patience = time.monotonic() + seconds_max
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert time.monotonic() < patience, f"{what} did not come true in {seconds_max} s"
        await asyncio.sleep(POLL_SECONDS)


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """A block that one test process of this machine and user runs at a time."""
    with (Path(tempfile.gettempdir()) / f"tidemill-test-{name}-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
