"""The lease of a process: who was frozen may have lost what it owned, and must not write before it knows.

A process that was stopped as a whole (SIGSTOP, a machine that slept) goes on in the middle of what it did, and
hears only later that others have its partitions. So it looks at the clock before a request leaves for the broker.
A thread notes the time again and again; where that stood still for long, everything did, and the process ends: its
successor, or itself after a start, reads again. A loop that is only busy does not hold up the thread.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

BEAT_SECONDS: Final = 0.5
FROZEN_SECONDS_MAX: Final = 3.0
"""Heartbeats go out every 2 s and a session lasts for 6 s, so who stood still for less owns what it had."""
FROZEN: Final = 71
"""Exit code of a process that was frozen for longer."""

log = logging.getLogger(__name__)


class Lease:
    """The lease of this process.

    Args:
        end: Ends the process at once.
        clock: Seconds that go on while the process is frozen.
    """

    def __init__(
        self, end: Callable[[], object] = lambda: os._exit(FROZEN), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._end = end
        self._clock = clock
        self._beat_at = clock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Begin to note the time."""
        self._beat_at = self._clock()
        self._thread.start()

    def stop(self) -> None:
        """Note it no more."""
        self._stopped.set()

    def check(self) -> None:
        """End the process where it has stood still; to be called on any thread before something is written."""
        if (seconds := self._clock() - self._beat_at) > FROZEN_SECONDS_MAX and not self._stopped.is_set():
            log.critical("everything stood still for %.1f s; others may own by now what this process did", seconds)
            self._end()

    def beat(self) -> None:
        """Note the time, unless it stood still."""
        self.check()
        self._beat_at = self._clock()

    def _run(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            self.beat()


def guarded(client: Any, check: Callable[[], None]) -> None:
    """Have the lease checked before each request that a client of Kafka sends; a second time changes nothing.

    Args:
        client: aiokafka's `AIOKafkaClient`, as a producer has one.
        check: Does not return where the lease is lost.
    """
    if getattr(client, "is_guarded", False):
        return
    send = client.send

    async def checked(*args: Any, **kwargs: Any) -> Any:
        check()
        return await send(*args, **kwargs)

    client.send = checked
    client.is_guarded = True
