"""The pulse of a process: proof that its event loop turns, and a look at what runs on it, once a second.

Three listen to it: the supervisor that started the process (`notify`), a thread of the process itself, which ends
it when the loop is blocked for good (`watchdog.LoopGuard`), and whoever asks `/livez`.
"""

import asyncio
import faulthandler
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tidemill.runtime import notify
from tidemill.runtime.watchdog import LOOK_SECONDS, LOOP_SECONDS_MAX, LoopGuard

log = logging.getLogger("tidemill.runtime.heartbeat")

BLOCKED: Final = 70
"""Exit code of a process whose event loop did not turn any more."""
TICK_SECONDS_MAX: Final = 10.0
"""A tick that is older shows in `/livez`."""

Look = Callable[[float], str | None]
"""Given the seconds since the last look, says what is wrong for too long."""


class Dead(Exception):
    """The process is alive but does not work any more; the text says why."""


class Heartbeat:
    """The pulse of this process.

    Args:
        look: What else is looked at.
        loop_seconds_max: The longest that the event loop may be blocked.
    """

    def __init__(self, look: Look | None = None, *, loop_seconds_max: float = LOOP_SECONDS_MAX) -> None:
        self._look = look
        self._guard = LoopGuard(_give_up, seconds_max=loop_seconds_max)
        self._ill: str | None = None
        self._ticked_at = time.monotonic()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Have the process ended where its loop is blocked within the block, the closing of the loop included."""
        self._guard.start()
        try:
            yield
        finally:
            self._guard.stop()

    async def run(self) -> None:
        """Beat until the task is cancelled.

        Raises:
            Dead: Something that was looked at is wrong for too long.
        """
        while True:
            now = time.monotonic()
            seconds, self._ticked_at = now - self._ticked_at, now
            self._guard.beat()
            notify.alive()
            if self._look is not None and (ill := self._look(seconds)) is not None:
                self._ill = ill
                raise Dead(ill)
            await asyncio.sleep(LOOK_SECONDS)

    def fault(self) -> str | None:
        """What is wrong with the process itself; None where nothing is. Which consumer it is the log says."""
        if self._ill is None and (age := time.monotonic() - self._ticked_at) > TICK_SECONDS_MAX:
            return f"the last tick of the event loop is {age:.0f} s old"
        return None if self._ill is None else "a consumer does not work any more"


def _give_up() -> None:
    """End the process from another thread than the one that hangs, and leave in the log where it hangs."""
    log.critical("the event loop is blocked; the process ends so that another can take over")
    faulthandler.dump_traceback()
    os._exit(BLOCKED)
