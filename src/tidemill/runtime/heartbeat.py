"""The heartbeat of a process: once a second it proves that the event loop runs, and checks the work on the loop.

It notifies the supervisor (`notify`) and a thread of the process, which ends a process whose loop is blocked
(`watchdog.LoopGuard`); `/livez` reports it.
"""

import asyncio
import faulthandler
import logging
import os
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Final

from tidemill.runtime import notify
from tidemill.runtime.watchdog import LOOK_SECONDS, LOOP_SECONDS_MAX, LoopGuard

log = logging.getLogger("tidemill.runtime.heartbeat")

BLOCKED: Final = 70
"""Exit code of a process whose event loop was blocked."""
AGE_SECONDS_MAX: Final = 10.0
"""An older heartbeat is a fault in `/livez`."""

Look = Callable[[float], str | None]
"""Called with the seconds since the last look; returns a symptom that has lasted too long, or None."""


class Dead(Exception):
    """The process is alive but has stopped working; the text says why."""


class Heartbeat:
    """The heartbeat of this process; `look` checks the work on the loop."""

    def __init__(self, look: Look | None = None) -> None:
        self.progress: Callable[[], Hashable] = int
        """Changes while the start makes progress; the supervisor bounds the time without a change."""
        self._look = look
        self._mark: Hashable = self.progress()
        self._guard = LoopGuard(_give_up, seconds_max=LOOP_SECONDS_MAX)
        self._symptom: str | None = None
        self._beat_at = time.monotonic()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """End the process if its loop is blocked within the block, which includes the closing of the loop."""
        self._guard.start()
        try:
            yield
        finally:
            self._guard.stop()

    async def run(self) -> None:
        """Beat until the task is cancelled.

        Raises:
            Dead: A symptom has lasted too long.
        """
        while True:
            now = time.monotonic()
            seconds, self._beat_at = now - self._beat_at, now
            self._guard.beat()
            notify.alive()
            if (mark := self.progress()) != self._mark:
                self._mark = mark
                notify.progress()
            if self._look is not None and (symptom := self._look(seconds)) is not None:
                self._symptom = symptom
                raise Dead(symptom)
            await asyncio.sleep(LOOK_SECONDS)

    def fault(self) -> str | None:
        """The fault of the process itself, or None; only the log names the consumer."""
        if self._symptom is None and (age := time.monotonic() - self._beat_at) > AGE_SECONDS_MAX:
            return f"the last heartbeat is {age:.0f} s old"
        return None if self._symptom is None else "a consumer has stopped working"


def _give_up() -> None:
    """Log where the event loop hangs, and end the process; runs on the guard's thread."""
    log.critical("the event loop is blocked; the process exits so that another can take over")
    faulthandler.dump_traceback()
    os._exit(BLOCKED)
